"""What apply hands back, and why it may stop."""

from __future__ import annotations

from dataclasses import dataclass

from quorumesh.v1.ledger_pb2 import Outcome
from quorumesh.v1.tasks_pb2 import TaskEvent


class CannotApply(Exception):
    """This program does not know how to apply the entry. The node must stop, not guess."""

    def __init__(self, wanted: int, known: int) -> None:
        super().__init__(f"version {wanted} is needed; this program knows up to {known}")
        self.wanted = wanted
        self.known = known


@dataclass(frozen=True, slots=True)
class GrantRef:
    """A claim given in this entry; what it holds is read with Reader.grants."""

    session: bytes
    epoch: int
    subtask_ref: int
    fence: int


@dataclass(frozen=True, slots=True)
class RevokeRef:
    """A claim taken back in this entry: its agent should stop."""

    session: bytes
    subtask_ref: int
    fence: int
    why: str


@dataclass(frozen=True, slots=True)
class Applied:
    """What one log entry did. `outcomes` has one per proposal, in their order."""

    revision: int
    counted_ms: int
    outcomes: list[Outcome]
    events: list[TaskEvent]
    grants: list[GrantRef]
    revokes: list[RevokeRef]
    withdrawn: list[bytes]  # sessions whose offer was set to no slots
    faults: tuple[str, ...] = ()  # bugs met, for a log; their words may differ between nodes

"""Rows of the ledger as objects that apply works on, in the order of their columns in schema.sql.

They change in place, but only inside apply; the store writes back what was marked as changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

REF_SHIFT = 20
N_MASK = (1 << REF_SHIFT) - 1
REF_MAX = (1 << 63) - 1

RUNNING, TASK_SUCCEEDED, TASK_FAILED, TASK_CANCELLED = 1, 2, 3, 4
WAITING, BACKOFF, READY, CLAIMED, DELEGATED, SUCCEEDED, FAILED, CANCELLED = range(1, 9)
BALLOT_OPEN, BALLOT_DECIDED, BALLOT_UNDECIDED, BALLOT_CANCELLED = range(4)


class Bug(Exception):
    """Rows contradict each other. Raised in place of assert, which a flag can switch off."""


@dataclass(slots=True)
class Task:
    seq: int
    task_id: bytes
    tenant: str
    name: str
    principal: str
    state: int
    band: int
    spec_digest: bytes
    output_n: int
    subtask_count: int
    ended_count: int
    next_n: int
    due_ms: int | None
    retain_ms: int
    submitted_wall_ms: int
    ended_wall_ms: int
    failure_code: str
    failure_message: str
    submitted_revision: int
    revision: int


@dataclass(slots=True)
class Subtask:
    ref: int
    id: str
    class_id: int
    band: int
    timeout_ms: int
    attempts_max: int
    backoff_ms: int
    backoff_ms_max: int
    optional: int
    ballot_n: int
    # As it is when placed; what follows changes or is for few.
    parent_n: int = 0
    joins_n: int = 0
    depth: int = 0
    need_count: int = 0
    dependent_count: int = 0
    state: int = WAITING
    open_needs: int = 0
    need_bytes: int = 0
    attempt: int = 0
    failed_count: int = 0
    lost_count: int = 0
    fence: int = 0
    failed_fence: int = 0
    session: bytes | None = None
    node_id: str = ""
    worker: str = ""
    due_ms: int | None = None
    label: str | None = None
    weight: int = 0
    done_digest: bytes | None = None
    output_n: int = 0
    output_bytes: int = 0
    failure_code: str = ""
    failure_message: str = ""
    claimed_wall_ms: int = 0
    ended_wall_ms: int = 0
    past: str = ""

    @property
    def n(self) -> int:
        return self.ref & N_MASK

    @property
    def seq(self) -> int:
        return self.ref >> REF_SHIFT

    @property
    def holder(self) -> bytes:
        """The session of a claimed subtask."""
        if self.session is None:
            raise Bug(f"subtask {self.ref} has no holder")
        return self.session

    @property
    def has_ended(self) -> bool:
        return self.state >= SUCCEEDED


@dataclass(slots=True)
class Ballot:
    ref: int
    id: str
    hear_all: int
    plurality: int
    joins_n: int
    parent_n: int
    voter_count: int
    heard_count: int = 0
    tallies: bytes = b""
    state: int = 0
    label: str = ""
    output_n: int = 0
    output_bytes: int = 0


@dataclass(slots=True)
class Session:
    session: bytes
    epoch: int
    nonce: bytes
    node_id: str
    name: str
    profile: bytes
    slots: int
    held: int
    claim_sequence: int
    lease_until_ms: int
    granted_fence: int
    active_ms: int
    is_open: int
    skills: frozenset[str] = field(default=frozenset(), compare=False)
    labels: frozenset[tuple[str, str]] = field(default=frozenset(), compare=False)

    @property
    def free(self) -> int:
        return self.slots - self.held


@dataclass(slots=True)
class Edge:
    needs: tuple[int, ...]
    dependents: tuple[int, ...]


@dataclass(slots=True)
class Requirement:
    """A class: what a subtask asks of a worker, and which sessions satisfy it."""

    class_id: int
    skill: str
    labels: frozenset[tuple[str, str]]
    sessions: dict[bytes, Session] = field(default_factory=dict)

    def is_met_by(self, session: Session) -> bool:
        return self.skill in session.skills and self.labels <= session.labels

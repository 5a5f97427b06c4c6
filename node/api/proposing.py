"""How services bring commands into the log and wait for the ledger, within a call's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import grpc
from quorumesh.v1.ledger_pb2 import Command, Outcome

from consensus.errors import DiskFull, OutcomeUnknown, Unavailable
from consensus.ledger import Reader
from consensus.view import HEARD_MS_MAX, ReplicaView
from node.api.errors import refusal_of

CALL_MS_DEFAULT = 10_000
CALL_MS_MAX = 60_000
# An answer needs time to reach the caller before its own clock gives the call up.
ANSWER_MS = 100
LOOK_MS = 200
MINORITY_RETRY_MS = 1_000

# The class takes parameters in its stub only.
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class ReplicaPort(Protocol):
    """What the services need of the replica."""

    @property
    def node_id(self) -> str: ...

    @property
    def reader(self) -> Reader: ...

    def view(self) -> ReplicaView: ...

    async def propose(self, commands: Sequence[Command], *, timeout_ms: int) -> list[Outcome]: ...

    async def wait_revision(self, revision: int, *, timeout_ms: int) -> None: ...

    async def barrier(self, *, timeout_ms: int) -> int: ...


def time_left_ms(context: Context | None, *, default_ms: int = CALL_MS_DEFAULT) -> int:
    """How long a call may still wait: its own deadline, less what the answer needs to travel."""
    left_s = context.time_remaining() if context is not None else None
    if left_s is None:
        return default_ms
    left_ms = int(left_s * 1_000)
    return max(1, min(left_ms - min(ANSWER_MS, left_ms // 4), CALL_MS_MAX))


class Proposer:
    """Proposes for the services; refuses early on the minority side of a cut.

    While no leader is known but a majority of voters can be reached, an election is under way and
    the call waits. When fewer can be reached, and no leader has been heard for HEARD_MS_MAX,
    nothing can be written however long it waits: so it says so at once.
    """

    def __init__(self, replica: ReplicaPort, *, is_up: Callable[[str], bool]) -> None:
        self._replica = replica
        self._is_up = is_up

    async def propose(self, commands: Sequence[Command], context: Context | None) -> list[Outcome]:
        """The outcomes, refusals among them. Raises Unavailable or OutcomeUnknown in time."""
        self._check_majority()
        timeout_ms = time_left_ms(context)
        proposing = asyncio.ensure_future(self._replica.propose(commands, timeout_ms=timeout_ms))
        try:
            while True:
                done, _ = await asyncio.wait({proposing}, timeout=LOOK_MS / 1_000)
                if done:
                    return proposing.result()
                if self.minority():
                    raise OutcomeUnknown(
                        f"{self.minority()}; the command may still be written: send it again"
                    )
        finally:
            proposing.cancel()

    async def propose_one(self, command: Command, context: Context | None) -> Outcome:
        """The outcome of one command; a refusal is raised."""
        [outcome] = await self.propose([command], context)
        if outcome.reason:
            raise refusal_of(outcome.reason, outcome.message)
        return outcome

    async def catch_up(
        self, context: Context, *, at_least_revision: int = 0, linearizable: bool = False
    ) -> None:
        """Wait until a read may be answered from this node's ledger."""
        timeout_ms = time_left_ms(context)
        if linearizable:
            try:
                self._check_majority()
                await self._replica.barrier(timeout_ms=timeout_ms)
            except (OutcomeUnknown, DiskFull) as error:
                # A barrier writes nothing that anybody could see twice, nor needs room elsewhere.
                raise Unavailable(f"the read could not be confirmed: {error}") from error
        if at_least_revision:
            await self._replica.wait_revision(at_least_revision, timeout_ms=timeout_ms)

    def minority(self) -> str:
        """Why this node cannot write however long one waits; empty: it may."""
        view = self._replica.view()
        if view.trouble:
            return view.trouble
        if view.writable or not view.voters or view.leader_age_ms <= HEARD_MS_MAX:
            return ""
        others = [voter for voter in view.voters if voter != view.node_id]
        seen = sum(1 for voter in others if self._is_up(voter)) + (len(others) < len(view.voters))
        if seen * 2 > len(view.voters):
            return ""
        return (
            f"read-only: this node reaches {seen} of {len(view.voters)} voters and has not heard a"
            f" leader for {view.leader_age_ms / 1_000:.1f} s"
        )

    def _check_majority(self) -> None:
        why = self.minority()
        if why and self._replica.view().is_disk_full:
            raise DiskFull(why)
        if why:
            raise Unavailable(why, retry_ms=MINORITY_RETRY_MS)

"""One worker as its node sees it: what it holds, what waits to be told to it. No I/O, no clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from quorumesh.v1.ledger_pb2 import Claim, CloseSession, Command, SessionEpoch
from quorumesh.v1.values_pb2 import Reason
from quorumesh.v1.workers_pb2 import Grant, Revoke, Settled, ToWorker, WorkerHello

MESSAGE_BYTES_MAX = 1_000_000
SETTLED_WAITING_MAX = 16_384  # a worker that does not read its answers is put off

Key = tuple[int, int]  # subtask_ref, fence


class Outbox:
    """What waits to be written to one worker. Bounded by its slots; answers: see `is_full`."""

    def __init__(self) -> None:
        self._grants: dict[Key, Grant] = {}
        self._revokes: list[Revoke] = []
        self._settled: list[Settled] = []
        self._renewed_lease_ms = 0
        self._wake = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return len(self._settled) >= SETTLED_WAITING_MAX

    def grant(self, grant: Grant) -> None:
        self._grants[grant.subtask_ref, grant.fence] = grant
        self._wake.set()

    def revoke(self, key: Key, why: str) -> None:
        """Take back a claim. If its grant has not been written yet, the worker never sees it."""
        if self._grants.pop(key, None) is None:
            self._revokes.append(Revoke(subtask_ref=key[0], fence=key[1], why=why))
            self._wake.set()

    def settle(self, key: Key, reason: Reason.ValueType, message: str = "") -> None:
        self._settled.append(
            Settled(subtask_ref=key[0], fence=key[1], reason=reason, message=message)
        )
        self._wake.set()

    def renewed(self, lease_ms: int) -> None:
        self._renewed_lease_ms = lease_ms
        self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    async def wait(self) -> None:
        """Return when there may be something to take."""
        await self._wake.wait()
        self._wake.clear()

    def take(self) -> ToWorker | None:
        """What to write next, up to a message's bound. None: nothing is left."""
        if not (self._grants or self._revokes or self._settled or self._renewed_lease_ms):
            return None
        message = ToWorker(
            revokes=self._revokes, settled=self._settled, renewed_lease_ms=self._renewed_lease_ms
        )
        self._revokes, self._settled, self._renewed_lease_ms = [], [], 0
        size_bytes = 0
        while self._grants and size_bytes < MESSAGE_BYTES_MAX:
            grant = self._grants.pop(next(iter(self._grants)))
            message.grants.append(grant)
            size_bytes += grant.ByteSize()
        return message


@dataclass(frozen=True, slots=True)
class HeldNote:
    """What progress reports of a claim are about."""

    task_id: bytes
    subtask: str
    attempt: int


@dataclass(slots=True, eq=False)
class Seat:
    """A connected worker's session under one epoch."""

    hello: WorkerHello
    epoch: int
    slots: int
    sequence: int = 0
    outbox: Outbox = field(default_factory=Outbox)
    held: dict[Key, HeldNote] = field(default_factory=dict)
    is_late: bool = False  # a grant came too late to be handed over: list again after a renewal
    was_busy: bool = False  # it has held something since the last renewal
    over: str = ""  # why the stream is to end; empty: it goes on

    @property
    def session(self) -> bytes:
        return self.hello.session

    @property
    def session_epoch(self) -> SessionEpoch:
        return SessionEpoch(session=self.session, epoch=self.epoch)

    def hand_over(self, grant: Grant) -> None:
        """Pass a grant on, once."""
        if (grant.subtask_ref, grant.fence) not in self.held:
            self.remember(grant)
            self.outbox.grant(grant)

    def remember(self, grant: Grant) -> None:
        """It holds this now."""
        note = HeldNote(grant.task_id, grant.subtask, grant.attempt)
        self.held[grant.subtask_ref, grant.fence] = note
        self.was_busy = True

    def take_busy(self) -> bool:
        """Whether its lease matters now.

        A worker with a stream of short claims may hold nothing at the moment of asking, while the
        ledger sees one claim overlap the next and the same lease run on: so what was counts too.
        """
        is_busy = bool(self.held) or self.is_late or self.was_busy
        self.was_busy = False
        return is_busy

    def revoke(self, key: Key, why: str) -> None:
        self.held.pop(key, None)
        self.outbox.revoke(key, why)

    def settle(self, key: Key, reason: Reason.ValueType, message: str = "") -> None:
        self.held.pop(key, None)
        self.outbox.settle(key, reason, message)

    def next_claim(self) -> Command:
        """The standing offer, said again under the next sequence number."""
        self.sequence += 1
        claim = Claim(
            session=self.session, epoch=self.epoch, sequence=self.sequence, slots=self.slots
        )
        return Command(claim=claim)

    def close_command(self) -> Command:
        return Command(close_session=CloseSession(session=self.session, epoch=self.epoch))

    def end(self, why: str) -> None:
        """Ask the stream to end."""
        if not self.over:
            self.over = why
            self.outbox.wake()


def lease_left_ms(*, lease_ms: int, elapsed_ms: int, margin_ms: int) -> int:
    """What a worker may still use of a lease. Zero or less: do not hand the claim over."""
    return lease_ms - max(0, elapsed_ms) - margin_ms


@dataclass(slots=True)
class Item:
    """A command of a worker on its way into the log."""

    seat: Seat
    command: Command
    key: Key | None = None  # of completions and failure reports
    since_ms: int = 0

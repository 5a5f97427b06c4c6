"""The workers of this node in the ledger: their sessions, offers, leases, grants and reports.

Decides nothing about work: the ledger grants, this passes on. All methods are called on the loop.
Every command is idempotent by name, so what has no outcome is sent again as it was.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from quorumesh.v1.ledger_pb2 import Command, Complete, Fail, HeldClaim, OpenSession, Outcome, Renew
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.values_pb2 import Failure, Reason
from quorumesh.v1.workers_pb2 import (
    FailureReport,
    FromWorker,
    Grant,
    ProgressReport,
    WorkerHello,
)

from consensus.errors import OutcomeUnknown, Unavailable
from consensus.ledger import Applied, GrantRef
from node.api.seats import Item, Key, Seat, lease_left_ms

LEASE_MARGIN_MS = 200
BATCH_COMMANDS_MAX = 500
BATCH_BYTES_MAX = 400_000
BATCHES_IN_FLIGHT_MAX = 8
COMMANDS_WAITING_MAX = 8_192
PROPOSE_MS_MAX = 5_000
OPEN_MS_MAX = 9_000
RESEND_MS_MAX = 60_000  # far longer than any lease: what is older is refused by its fence anyway
BACKOFF_MS_MIN = 50
BACKOFF_MS_MAX = 1_000
# Refusals of a completion that leave the claim held: it fails for good instead, with the reason.
UNFIT = frozenset({Reason.INVALID, Reason.VALUE_TOO_LARGE, Reason.INTERNAL, Reason.ALREADY_EXISTS})

log = logging.getLogger("node.sessions")


class SessionRefused(Exception):
    """The ledger does not open this session. Carries the reason."""

    def __init__(self, reason: Reason.ValueType, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ReaderPort(Protocol):
    def grants(self, refs: Sequence[GrantRef]) -> Sequence[Grant]: ...

    def held(self, session: bytes) -> Sequence[HeldClaim]: ...


class ReplicaPort(Protocol):
    """What sessions need of the replica."""

    @property
    def node_id(self) -> str: ...

    @property
    def reader(self) -> ReaderPort: ...

    def counted_now_ms(self) -> int: ...

    async def propose(self, commands: Sequence[Command], *, timeout_ms: int) -> list[Outcome]: ...


@dataclass(frozen=True, slots=True)
class SessionsStats:
    worker_count: int
    slot_count: int
    held_count: int
    waiting_count: int
    in_flight_count: int
    late_count: int


class Sessions:
    """All workers connected to this node. Subscribe it to the replica, and run it.

    `on_progress` is given soft events; it must not block.
    """

    def __init__(
        self,
        replica: ReplicaPort,
        *,
        lease_ms: int,
        monotonic_ms: Callable[[], int],
        on_progress: Callable[[TaskEvent], None],
    ) -> None:
        self._replica = replica
        self._lease_ms = lease_ms
        self._monotonic_ms = monotonic_ms
        self._on_progress = on_progress
        self._seats: dict[bytes, Seat] = {}
        self._waiting: deque[Item] = deque()
        self._some = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._in_flight = asyncio.Semaphore(BATCHES_IN_FLIGHT_MAX)
        self._in_flight_count = 0
        self._late_count = 0

    async def run(self) -> None:
        """Send what workers say into the log, and renew their leases, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew_often())
            while True:
                await self._some.wait()
                await self._in_flight.acquire()
                batch = self._take_batch()
                if batch:
                    self._in_flight_count += 1
                    group.create_task(self._settle(batch))
                else:
                    self._in_flight.release()

    def stats(self) -> SessionsStats:
        seats = self._seats.values()
        return SessionsStats(
            worker_count=len(seats),
            slot_count=sum(seat.slots for seat in seats),
            held_count=sum(len(seat.held) for seat in seats),
            waiting_count=len(self._waiting),
            in_flight_count=self._in_flight_count,
            late_count=self._late_count,
        )

    @property
    def lease_ms(self) -> int:
        return self._lease_ms

    # What the streams say.

    async def open(self, hello: WorkerHello) -> tuple[Seat, list[Grant]]:
        """Open or reopen a worker's session; gives its seat and all that it still holds.

        Raises SessionRefused, or Unavailable when there has been no leader for OPEN_MS_MAX.
        """
        before = self._seats.pop(hello.session, None)
        if before is not None:
            before.end("the worker has connected anew")
        command = OpenSession(
            session=hello.session,
            node_id=self._replica.node_id,
            name=hello.name,
            skills=hello.skills,
            labels=hello.labels,
            nonce=secrets.randbits(63) | 1,
        )
        [outcome] = await self._insist([Command(open_session=command)], ms_max=OPEN_MS_MAX)
        if outcome.reason != Reason.REASON_UNSPECIFIED:
            raise SessionRefused(outcome.reason, outcome.message)
        seat = Seat(hello=hello, epoch=outcome.epoch, slots=hello.slots)
        grants = await self._still_held(seat, outcome) if outcome.held else []
        self._seats[hello.session] = seat
        self._add(Item(seat, seat.next_claim()))
        return seat, grants

    def close(self, seat: Seat) -> None:
        """The stream has ended: its claims are given back at once."""
        if self._seats.get(seat.session) is seat:
            del self._seats[seat.session]
        seat.end("closed")
        self._add(Item(seat, seat.close_command()))

    def heard(self, seat: Seat, message: FromWorker) -> None:
        """Take a worker's message in."""
        for completion in message.completions:
            key = (completion.subtask_ref, completion.fence)
            self._add(Item(seat, Command(complete=Complete(completion=completion)), key))
        for report in message.failures:
            key = (report.subtask_ref, report.fence)
            self._add(Item(seat, Command(fail=Fail(report=report)), key))
        if message.HasField("offer"):
            seat.slots = message.offer.slots
            self._add(Item(seat, seat.next_claim()))
        for progress in message.progress:
            self._publish(seat, progress)

    async def room(self) -> None:
        """Wait while too much is on its way into the log: the stream is not read meanwhile."""
        await self._room.wait()

    # What the ledger says (the replica's Observer).

    def entry_applied(self, applied: Applied) -> None:
        """Pass on what an entry granted, revoked or withdrew of this node's workers."""
        if not self._seats:
            return
        mine = [ref for ref in applied.grants if self._is_current(ref)]
        if mine:
            elapsed_ms = self._replica.counted_now_ms() - applied.counted_ms
            self._hand_over(mine, elapsed_ms=elapsed_ms)
        for revoke in applied.revokes:
            seat = self._seats.get(revoke.session)
            if seat is not None:
                seat.revoke((revoke.subtask_ref, revoke.fence), revoke.why)
        for session in applied.withdrawn:
            seat = self._seats.get(session)
            if seat is not None and not seat.over:
                self._add(Item(seat, seat.next_claim()))

    def ledger_replaced(self) -> None:
        """A snapshot jumped over entries: offer again, and list what is held after a renewal."""
        for seat in self._seats.values():
            seat.is_late = True
            self._add(Item(seat, seat.next_claim()))

    # Passing on.

    def _is_current(self, ref: GrantRef) -> bool:
        seat = self._seats.get(ref.session)
        return seat is not None and seat.epoch == ref.epoch

    def _left_ms(self, elapsed_ms: int, lease_ms: int | None = None) -> int:
        whole_ms = self._lease_ms if lease_ms is None else lease_ms
        return lease_left_ms(lease_ms=whole_ms, elapsed_ms=elapsed_ms, margin_ms=LEASE_MARGIN_MS)

    def _hand_over(self, refs: Sequence[GrantRef], *, elapsed_ms: int) -> None:
        """Pass grants on with what is left of their lease since `elapsed_ms` ago."""
        sessions = {(ref.subtask_ref, ref.fence): ref.session for ref in refs}
        for grant in self._replica.reader.grants(refs):
            seat = self._seats[sessions[grant.subtask_ref, grant.fence]]
            left_ms = self._left_ms(elapsed_ms, grant.lease_ms_left)
            if left_ms > 0:
                grant.lease_ms_left = left_ms
                seat.hand_over(grant)
            else:
                seat.is_late = True
                self._late_count += 1

    async def _still_held(self, seat: Seat, outcome: Outcome) -> list[Grant]:
        """What a reopened session holds, under a lease that has just been renewed."""
        before_ms = self._monotonic_ms()
        renew = Renew(sessions=[seat.session_epoch])
        await self._insist([Command(renew=renew)], ms_max=OPEN_MS_MAX)
        left_ms = self._left_ms(self._monotonic_ms() - before_ms)
        grants = list(self._replica.reader.grants(self._held_refs(seat)))
        for grant in grants:
            grant.lease_ms_left = max(0, left_ms)
            seat.remember(grant)
        return grants

    def _held_refs(self, seat: Seat) -> list[GrantRef]:
        claims = self._replica.reader.held(seat.session)
        return [GrantRef(seat.session, seat.epoch, c.subtask_ref, c.fence) for c in claims]

    def _publish(self, seat: Seat, report: ProgressReport) -> None:
        note = seat.held.get((report.subtask_ref, report.fence))
        if note is None:
            return
        self._on_progress(
            TaskEvent(
                kind=TaskEvent.PROGRESS,
                task_id=note.task_id,
                subtask=note.subtask,
                attempt=note.attempt,
                fence=report.fence,
                node_id=self._replica.node_id,
                worker=seat.hello.name,
                detail=report.text,
                fraction=report.fraction,
                subtask_ref=report.subtask_ref,
            )
        )

    # Into the log.

    def _add(self, item: Item) -> None:
        item.since_ms = self._monotonic_ms()
        self._waiting.append(item)
        self._some.set()
        if len(self._waiting) >= COMMANDS_WAITING_MAX:
            self._room.clear()

    def _take_batch(self) -> list[Item]:
        batch: list[Item] = []
        size_bytes = 0
        while self._waiting and len(batch) < BATCH_COMMANDS_MAX and size_bytes < BATCH_BYTES_MAX:
            item = self._waiting.popleft()
            batch.append(item)
            size_bytes += item.command.ByteSize()
        if not self._waiting:
            self._some.clear()
        if len(self._waiting) < COMMANDS_WAITING_MAX:
            self._room.set()
        return batch

    async def _settle(self, batch: list[Item]) -> None:
        try:
            backoff_ms = BACKOFF_MS_MIN
            while batch:
                batch = await self._settle_once(batch)
                if batch:
                    await asyncio.sleep(backoff_ms / 1_000)
                    backoff_ms = min(2 * backoff_ms, BACKOFF_MS_MAX)
        finally:
            self._in_flight_count -= 1
            self._in_flight.release()

    async def _settle_once(self, batch: list[Item]) -> list[Item]:
        """Propose a batch and answer its items. Gives back those to send again."""
        try:
            commands = [item.command for item in batch]
            outcomes = await self._replica.propose(commands, timeout_ms=PROPOSE_MS_MAX)
        except (Unavailable, OutcomeUnknown):
            oldest_ms = self._monotonic_ms() - RESEND_MS_MAX
            kept = [item for item in batch if item.since_ms > oldest_ms]
            if len(kept) < len(batch):
                log.warning("no outcome for so long: given up, count=%d", len(batch) - len(kept))
            return kept
        again = []
        for item, outcome in zip(batch, outcomes, strict=True):
            if outcome.reason == Reason.OVERLOADED:
                again.append(item)
            else:
                self._answer(item, outcome)
        return again

    def _answer(self, item: Item, outcome: Outcome) -> None:
        if item.key is None:
            if outcome.reason == Reason.STALE_EPOCH and item.command.HasField("claim"):
                # Another node, or another stream, has the session now; the worker connects anew.
                item.seat.end("the session was opened anew or has ended")
            return
        if outcome.reason in UNFIT and item.command.HasField("complete"):
            self._add(Item(item.seat, _failed_instead(item.key, outcome), item.key))
            return
        item.seat.settle(item.key, outcome.reason, outcome.message)

    async def _insist(self, commands: Sequence[Command], *, ms_max: int) -> list[Outcome]:
        until_ms = self._monotonic_ms() + ms_max
        while True:
            left_ms = max(1, until_ms - self._monotonic_ms())
            try:
                return await self._replica.propose(commands, timeout_ms=left_ms)
            except (Unavailable, OutcomeUnknown) as error:
                if self._monotonic_ms() + BACKOFF_MS_MAX >= until_ms:
                    raise Unavailable(f"no outcome within {ms_max} ms: {error}") from error
                await asyncio.sleep(BACKOFF_MS_MIN / 1_000)

    # Leases.

    async def _renew_often(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ms / 3_000)
            seats = [seat for seat in self._seats.values() if seat.take_busy()]
            if seats:
                await self._renew(seats)

    async def _renew(self, seats: list[Seat]) -> None:
        before_ms = self._monotonic_ms()
        together = Command(renew=Renew(sessions=[seat.session_epoch for seat in seats]))
        timeout_ms = self._lease_ms // 3
        try:
            [outcome] = await self._replica.propose([together], timeout_ms=timeout_ms)
            outcomes = [outcome] * len(seats)
            if (outcome.reason or outcome.message) and len(seats) > 1:
                # Some of them are stale; which ones only their own outcomes tell.
                each = [Command(renew=Renew(sessions=[seat.session_epoch])) for seat in seats]
                outcomes = await self._replica.propose(each, timeout_ms=timeout_ms)
        except (Unavailable, OutcomeUnknown) as error:
            log.info("leases not renewed: %s", error)
            return
        left_ms = self._left_ms(self._monotonic_ms() - before_ms)
        for seat, one in zip(seats, outcomes, strict=True):
            if one.reason == Reason.STALE_EPOCH:
                seat.end("the session was opened anew or has ended")
            elif one.reason == Reason.REASON_UNSPECIFIED and left_ms > 0:
                self._renewed(seat, left_ms, before_ms)

    def _renewed(self, seat: Seat, left_ms: int, before_ms: int) -> None:
        if self._seats.get(seat.session) is not seat:
            return
        seat.outbox.renewed(left_ms)
        if seat.is_late:
            seat.is_late = False
            refs = self._held_refs(seat)
            unknown = [r for r in refs if (r.subtask_ref, r.fence) not in seat.held]
            for key in seat.held.keys() - {(r.subtask_ref, r.fence) for r in refs}:
                seat.revoke(key, "no longer held")
            self._hand_over(unknown, elapsed_ms=self._monotonic_ms() - before_ms)


def _failed_instead(key: Key, outcome: Outcome) -> Command:
    """The completion cannot be taken as it is: the subtask fails with the ledger's reason."""
    code = "VALUE_TOO_LARGE" if outcome.reason == Reason.VALUE_TOO_LARGE else "BAD_OUTPUT"
    failure = Failure(code=code, message=f"the result was refused: {outcome.message}"[:2_048])
    report = FailureReport(subtask_ref=key[0], fence=key[1], failure=failure, final=True)
    return Command(fail=Fail(report=report))

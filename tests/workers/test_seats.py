"""What a node keeps of a worker, and how sessions cope with a ledger that answers badly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from quorumesh.v1.tasks_pb2 import SubtaskSpec
from quorumesh.v1.values_pb2 import Reason, Value
from quorumesh.v1.workers_pb2 import (
    Completion,
    FromWorker,
    Grant,
    SlotOffer,
    Spawn,
    ToWorker,
    WorkerHello,
)
from small_mesh import LEASE_MS, SmallReplica, now_ms

from consensus.ledger import Applied, GrantRef
from node.api.seats import SETTLED_WAITING_MAX, Outbox, Seat, lease_left_ms
from node.api.sessions import Sessions
from node.api.workers import hello_trouble
from node.supervisor import BACKOFF_MS_MAX, BACKOFF_MS_MIN, HEALTHY_MS, next_backoff_ms

HELLO = WorkerHello(session=b"s" * 16, name="w", skills=["echo"], slots=2)


@asynccontextmanager
async def opened(replica: SmallReplica, lease_ms: int = LEASE_MS) -> AsyncIterator[Sessions]:
    sessions = Sessions(
        replica, lease_ms=lease_ms, monotonic_ms=now_ms, on_progress=lambda event: None
    )
    replica.observers.append(sessions)
    running = asyncio.ensure_future(sessions.run())
    try:
        yield sessions
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def told(seat: Seat) -> ToWorker:
    async with asyncio.timeout(10):
        while (message := seat.outbox.take()) is None:
            await seat.outbox.wait()
    return message


def done(grant: Grant, value: bytes = b"1") -> FromWorker:
    completion = Completion(
        subtask_ref=grant.subtask_ref, fence=grant.fence, output=Value(data=value)
    )
    return FromWorker(completions=[completion])


async def test_a_claim_taken_back_before_it_was_written_is_never_seen() -> None:
    outbox = Outbox()
    outbox.grant(Grant(subtask_ref=1, fence=1))
    outbox.grant(Grant(subtask_ref=2, fence=2))
    outbox.revoke((1, 1), "cancelled")

    message = outbox.take()

    assert message is not None
    assert [grant.subtask_ref for grant in message.grants] == [2] and not message.revokes
    assert outbox.take() is None


async def test_large_grants_are_parted_into_messages() -> None:
    outbox = Outbox()
    for ref in range(40):
        outbox.grant(Grant(subtask_ref=ref, fence=ref, input=Value(data=bytes(65_536))))

    sizes = []
    while (message := outbox.take()) is not None:
        sizes.append(message.ByteSize())

    assert len(sizes) > 1 and max(sizes) < 2_000_000


async def test_a_worker_that_reads_no_answers_is_full_at_the_bound() -> None:
    outbox = Outbox()
    for ref in range(SETTLED_WAITING_MAX - 1):
        outbox.settle((ref, 1), Reason.REASON_UNSPECIFIED)
    assert not outbox.is_full

    outbox.settle((0, 2), Reason.REASON_UNSPECIFIED)

    assert outbox.is_full


def test_a_lease_that_has_run_out_leaves_nothing() -> None:
    assert lease_left_ms(lease_ms=3_000, elapsed_ms=-5, margin_ms=200) == 2_800
    assert lease_left_ms(lease_ms=3_000, elapsed_ms=2_800, margin_ms=200) == 0


def test_hellos_out_of_bounds_are_refused() -> None:
    assert hello_trouble(HELLO) == ""
    assert "16 bytes" in hello_trouble(WorkerHello(session=b"s", skills=["a"]))
    assert "skill" in hello_trouble(WorkerHello(session=b"s" * 16))
    assert "slots" in hello_trouble(WorkerHello(session=b"s" * 16, skills=["a"], slots=4_097))


def test_restarts_wait_longer_until_a_worker_was_healthy() -> None:
    first = next_backoff_ms(0, ran_ms=10)
    waits = [first]
    for _ in range(10):
        waits.append(next_backoff_ms(waits[-1], ran_ms=10))

    assert waits[0] == BACKOFF_MS_MIN and waits[-1] == BACKOFF_MS_MAX
    assert next_backoff_ms(BACKOFF_MS_MAX, ran_ms=HEALTHY_MS) == BACKOFF_MS_MIN


async def test_completions_of_one_turn_travel_in_one_proposal() -> None:
    replica = SmallReplica()
    async with opened(replica) as sessions:
        seat, _ = await sessions.open(HELLO)
        works = [replica.submit("echo", n) for n in range(2)]
        message = await told(seat)
        before = replica.proposal_count

        sessions.heard(seat, done(message.grants[0]))
        sessions.heard(seat, done(message.grants[1]))
        answered = await told(seat)

        assert replica.proposal_count == before + 1
        assert [settled.reason for settled in answered.settled] == [0, 0]
        assert all(work.state == "succeeded" for work in works)


async def test_a_completion_the_ledger_cannot_take_fails_its_subtask_for_good() -> None:
    replica = SmallReplica()
    async with opened(replica) as sessions:
        seat, _ = await sessions.open(HELLO)
        work = replica.submit("echo")
        [grant] = (await told(seat)).grants
        message = done(grant)
        message.completions[0].spawn.CopyFrom(Spawn(subtasks=[SubtaskSpec(id="a")], join="b"))

        sessions.heard(seat, message)
        async with asyncio.timeout(10):
            await work.ended.wait()

        assert work.failure is not None and work.failure.code == "BAD_OUTPUT"
        assert "join is unknown" in work.failure.message


async def test_a_late_completion_is_told_that_its_fence_is_stale() -> None:
    replica = SmallReplica()
    async with opened(replica) as sessions:
        seat, _ = await sessions.open(HELLO)
        work = replica.submit("echo")
        [grant] = (await told(seat)).grants
        work.fence += 1  # somebody else has it now

        sessions.heard(seat, done(grant))
        [settled] = (await told(seat)).settled

        assert settled.reason == Reason.STALE_FENCE and work.state == "held"


async def test_withdrawn_offers_are_made_again() -> None:
    replica = SmallReplica()
    async with opened(replica) as sessions:
        seat, _ = await sessions.open(HELLO)
        replica.submit("echo")
        await told(seat)
        replica.sessions[HELLO.session].slots = 0
        replica.applied.withdrawn.append(HELLO.session)
        replica.finish_entry()

        async with asyncio.timeout(10):
            while replica.sessions[HELLO.session].slots == 0:  # noqa: ASYNC110
                await asyncio.sleep(0)

        assert replica.sessions[HELLO.session].slots == 2


async def test_a_worker_that_offers_no_slots_gets_nothing() -> None:
    replica = SmallReplica()
    async with opened(replica) as sessions:
        seat, _ = await sessions.open(HELLO)
        sessions.heard(seat, FromWorker(offer=SlotOffer(slots=0)))
        async with asyncio.timeout(10):
            while replica.sessions[HELLO.session].sequence < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)

        work = replica.submit("echo")

        assert work.state == "ready" and seat.outbox.take() is None


async def test_a_session_opened_anew_lists_what_it_holds_and_ends_the_old_stream() -> None:
    replica = SmallReplica()
    async with opened(replica) as sessions:
        first, _ = await sessions.open(HELLO)
        work = replica.submit("echo")
        await told(first)

        second, grants = await sessions.open(HELLO)

        assert first.over and second.epoch == first.epoch + 1
        assert [(grant.subtask_ref, grant.fence) for grant in grants] == [(work.ref, work.fence)]
        assert grants[0].lease_ms_left > 0
        sessions.close(first)
        assert sessions.stats().worker_count == 1


async def test_a_grant_that_comes_too_late_is_handed_over_after_a_renewal() -> None:
    replica = SmallReplica()
    async with opened(replica, lease_ms=600) as sessions:
        seat, _ = await sessions.open(HELLO)
        await told_nothing(seat)
        observer = replica.observers.pop()
        work = replica.submit("echo")
        replica.observers.append(observer)
        ref = GrantRef(HELLO.session, seat.epoch, work.ref, work.fence)
        observer.entry_applied(Applied(9, now_ms() - 5_000, [], [], [ref], [], []))
        assert seat.outbox.take() is None and sessions.stats().late_count == 1

        message = await told(seat)

        assert message.renewed_lease_ms > 0
        assert [grant.subtask_ref for grant in message.grants] == [work.ref]


async def told_nothing(seat: Seat) -> None:
    for _ in range(5):
        await asyncio.sleep(0)
    assert seat.outbox.take() is None

"""The replica on a real loop: bugs end it, bounds hold, and nobody waits for a node that is over."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Bootstrap
from quorumesh.v1.peer_pb2 import Frame

from consensus.barriers import BARRIER_READERS_MAX
from consensus.core import Ports, ReplicaConfig
from consensus.engine.disk import Disk
from consensus.errors import ChangeRefused, ConsensusError, Refusal, Unavailable
from consensus.ledger import Applied
from consensus.ports import Background, LinkHandler
from consensus.replica import REVISION_WAITERS_MAX, Replica
from tests.consensus.test_cores import submit


class Alone:
    """A link of a node without peers, on the machine's clock, its disk work done on the loop."""

    def bind(self, handler: LinkHandler) -> None: ...

    def set_peers(self, addresses: Mapping[str, str]) -> None: ...

    def send(self, peer: str, frame: Frame) -> bool:
        return False

    def is_up(self, peer: str) -> bool:
        return False

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return 1

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def act() -> None:
            work()
            done(None)

        asyncio.get_running_loop().call_soon(act)


class Paced(Alone):
    """Its clock moves, and its disk works, only when told to."""

    def __init__(self) -> None:
        self.now_ms = 1_000
        self.is_held = False
        self._held: list[Callable[[], None]] = []

    def monotonic_ms(self) -> int:
        return self.now_ms

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        if self.is_held:
            self._held.append(lambda: Alone.run(self, work, done))
        else:
            Alone.run(self, work, done)

    def release(self) -> None:
        self.is_held = False
        held, self._held = self._held, []
        for act in held:
            act()


class Held:
    """Threads that are all busy with what takes long: what they are given waits."""

    def run(
        self, work: Callable[[], None], done: Callable[[BaseException | None], None]
    ) -> None: ...


class BuggyDisk(Disk):
    """A disk whose class, once told to, has a bug in how it opens files."""

    is_buggy = False

    def open_append(self, path: Path) -> int:
        if self.is_buggy:
            raise RuntimeError("a bug")
        return super().open_append(path)


@asynccontextmanager
async def running(
    tmp_path: Path,
    *,
    background: Background | None = None,
    disk: Disk | None = None,
    world: Alone | None = None,
) -> AsyncIterator[tuple[Replica, asyncio.Task[None]]]:
    world = world or Alone()
    founding = Bootstrap(mesh_id="m", node_id="n1", address="n1")
    config = ReplicaConfig(
        node_id="n1", address="n1", root=tmp_path, founding=founding, segment_bytes_max=4_096
    )
    ports = Ports(world, world, background or world, random.Random(1), 7, disk or Disk(), world)
    replica = Replica(config, ports)
    task = asyncio.ensure_future(replica.run())
    try:
        await replica.propose([submit(1)], timeout_ms=5_000)
        yield replica, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_what_is_asked_of_a_replica_that_is_over_is_unavailable_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, task):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(1):
                with pytest.raises(Unavailable):
                    await replica.propose([submit(2)], timeout_ms=60_000)
                with pytest.raises(Unavailable):
                    await replica.wait_revision(10**9, timeout_ms=60_000)
                with pytest.raises(Unavailable):
                    await replica.barrier(timeout_ms=60_000)

    asyncio.run(scenario())


def test_readers_that_gave_up_make_room_for_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, _):
            waits = [
                replica.wait_revision(10**9, timeout_ms=50) for _ in range(REVISION_WAITERS_MAX)
            ]
            results = await asyncio.gather(*waits, return_exceptions=True)
            assert all(isinstance(result, Unavailable) for result in results)

            following = replica.ledger.applied_index + 1
            waiting = asyncio.ensure_future(replica.wait_revision(following, timeout_ms=5_000))
            await replica.propose([submit(2)], timeout_ms=5_000)
            await waiting

    asyncio.run(scenario())


def test_more_readers_than_the_bound_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, _):
            waits = [
                replica.wait_revision(10**9, timeout_ms=2_000)
                for _ in range(REVISION_WAITERS_MAX + 1)
            ]
            results = await asyncio.gather(*waits, return_exceptions=True)
            assert sum("too many" in str(result) for result in results) == 1

    asyncio.run(scenario())


class Faulty:
    """An observer with a bug."""

    def entry_applied(self, applied: Applied) -> None:
        raise AssertionError("a bug")

    def ledger_replaced(self) -> None: ...


def test_a_bug_while_applying_ends_the_replica_loudly(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, task):
            replica.subscribe(Faulty())
            await replica.propose([submit(2)], timeout_ms=60_000)
            with pytest.raises(AssertionError, match="a bug"):
                await task

    asyncio.run(scenario())


def test_a_bug_at_the_end_of_background_work_ends_the_replica_loudly(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, task):

            def done(_: BaseException | None) -> None:
                raise AssertionError("a bug")

            replica.core._ports.background.run(lambda: None, done)
            async with asyncio.timeout(5):
                with pytest.raises(AssertionError, match="a bug"):
                    await task

    asyncio.run(scenario())


def test_changes_of_voters_are_awaited_and_refused_with_their_reason(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, task):
            await replica.add_voter("n1", timeout_ms=5_000)
            for asked, refusal in (
                (replica.remove_voter("n1", timeout_ms=5_000), Refusal.LAST_VOTER),
                (replica.add_voter("n9", timeout_ms=5_000), Refusal.UNKNOWN_NODE),
                (replica.replace_voter("n1", "n9", timeout_ms=5_000), Refusal.UNKNOWN_NODE),
            ):
                with pytest.raises(ChangeRefused) as refused:
                    await asked
                assert refused.value.refusal is refusal
            task.cancel()
            await asyncio.wait({task})
            with pytest.raises(Unavailable):
                await replica.remove_voter("n1", timeout_ms=5_000)

    asyncio.run(scenario())


def test_readers_of_one_turn_share_a_barrier_and_see_what_was_written_before(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, _):
            [outcome] = await replica.propose([submit(2)], timeout_ms=5_000)
            before = replica.ledger.applied_index
            revisions = await asyncio.gather(
                *(replica.barrier(timeout_ms=5_000) for _ in range(50))
            )
            assert set(revisions) == {before + 1} and outcome.revision <= before

    asyncio.run(scenario())


@pytest.mark.parametrize("is_short_first", [True, False])
def test_each_reader_of_a_barrier_waits_as_long_as_it_said(
    tmp_path: Path, is_short_first: bool
) -> None:
    async def scenario() -> None:
        world = Paced()
        async with running(tmp_path, world=world) as (replica, _), asyncio.timeout(20):
            before = replica.ledger.applied_index
            world.is_held = True
            times_ms = [1_000, 60_000] if is_short_first else [60_000, 1_000]
            readers = {
                timeout_ms: asyncio.ensure_future(replica.barrier(timeout_ms=timeout_ms))
                for timeout_ms in times_ms
            }
            await asyncio.sleep(0)

            world.now_ms += 1_001
            with pytest.raises(Unavailable, match="not confirmed"):
                await readers[1_000]
            world.now_ms += 50_000
            late = asyncio.ensure_future(replica.barrier(timeout_ms=0))
            with pytest.raises(ConsensusError):
                await late  # turns have passed by then
            assert not readers[60_000].done()
            world.release()
            assert await readers[60_000] == before + 1

    asyncio.run(scenario())


def test_a_reader_who_waits_for_a_barrier_in_vain_is_told_at_its_own_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        world = Paced()
        async with running(tmp_path, world=world) as (replica, _), asyncio.timeout(20):
            world.is_held = True
            readers = [
                asyncio.ensure_future(replica.barrier(timeout_ms=seconds * 1_000))
                for seconds in (3, 1, 2)
            ]
            ended = []
            for _ in readers:
                await asyncio.sleep(0)
                world.now_ms += 1_001
                waiting = [reader for reader in readers if not reader.done()]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                ended.append([reader.done() for reader in readers])
            for reader in readers:
                with pytest.raises(ConsensusError):
                    await reader

            assert ended == [[False, True, False], [False, True, True], [True, True, True]]
            world.release()

    asyncio.run(scenario())


def test_more_readers_of_barriers_than_the_bound_are_refused_until_some_have_gone(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        world = Paced()
        async with running(tmp_path, world=world) as (replica, _), asyncio.timeout(60):
            before = replica.ledger.applied_index
            world.is_held = True
            readers = [
                asyncio.ensure_future(replica.barrier(timeout_ms=60_000))
                for _ in range(BARRIER_READERS_MAX + 1)
            ]
            with pytest.raises(Unavailable, match="too many"):
                await readers.pop()
            readers.pop().cancel()
            await asyncio.sleep(0)
            readers.append(asyncio.ensure_future(replica.barrier(timeout_ms=60_000)))
            await asyncio.sleep(0)
            world.release()

            assert set(await asyncio.gather(*readers)) <= {before + 1, before + 2}

    asyncio.run(scenario())


def test_a_barrier_that_fails_when_its_readers_are_gone_is_no_unheard_error(
    tmp_path: Path,
) -> None:
    unheard: list[object] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, said: unheard.append(said))
        world = Paced()
        async with running(tmp_path, world=world) as (replica, _):
            world.is_held = True
            reader = asyncio.ensure_future(replica.barrier(timeout_ms=5_000))
            await asyncio.sleep(0)
            reader.cancel()
            await asyncio.wait({reader})
            assert reader.cancelled()
        gc.collect()

    asyncio.run(scenario())

    assert unheard == []


def test_what_is_written_waits_for_no_long_work_in_the_background(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, background=Held()) as (replica, _):
            for number in range(2, 12):
                await replica.propose([submit(number)], timeout_ms=5_000)
            assert replica.reader.counts().task_count == 11

    asyncio.run(scenario())


def test_a_bug_at_the_end_of_a_sync_ends_the_replica(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = BuggyDisk()
        async with running(tmp_path, disk=disk) as (replica, task):
            disk.is_buggy = True
            asks = [
                asyncio.ensure_future(replica.propose([submit(number)], timeout_ms=5_000))
                for number in range(2, 402)
            ]
            async with asyncio.timeout(5):
                with pytest.raises(RuntimeError, match="a bug"):
                    await task
            await asyncio.gather(*asks, return_exceptions=True)

    asyncio.run(scenario())

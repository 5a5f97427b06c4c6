"""Journal and vote are opened anew off the loop: until then a node takes nothing, and then all is as at a start."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Bootstrap
from quorumesh.v1.peer_pb2 import Frame, PreVote

from consensus.core import Core, Ports, ReplicaConfig
from consensus.errors import ConsensusError, Damaged
from consensus.replica import Replica
from node.system import ThreadBackground
from tests.consensus.cluster import Cluster
from tests.consensus.refusing import RefusingDisk
from tests.consensus.test_cores import accepted, holds_all, submit
from tests.consensus.test_full_disk import RETURN_MS_MAX, mesh, other_than
from tests.consensus.test_replica import Alone
from tests.consensus.test_unread import is_out_of_service, spoil_table

SLOW_MS = 1_500  # the look for room takes as long as the opening


def opening_anew(tmp_path: Path) -> tuple[Cluster, Core, RefusingDisk, str]:
    """A node whose disk was full and that reads its journal again now, its disk, and another node."""
    cluster, disks = mesh(tmp_path)
    core = cluster.wait_leader()
    name, other = core.config.node_id, other_than(cluster, core)
    accepted(cluster.propose(name, submit(1)))
    disks[name].is_full = True
    cluster.propose(name, submit(2), ms=1_500)
    accepted(cluster.propose(other, submit(3)))
    cluster.slow_down(name, (SLOW_MS * 1_000, SLOW_MS * 1_000 + 1))
    disks[name].is_full = False
    cluster.world.run(lambda: core._mending.is_under_way, ms_max=RETURN_MS_MAX)
    return cluster, core, disks[name], other


def test_until_its_journal_is_read_a_node_reads_and_writes_nothing(tmp_path: Path) -> None:
    cluster, core, _, other = opening_anew(tmp_path)
    name, began_ms = core.config.node_id, cluster.world.monotonic_ms()

    with pytest.raises(ConsensusError, match="disk is full"):
        cluster.propose(name, submit(4))
    accepted(cluster.propose(other, submit(5)))
    assert core._mending.is_under_way and core.reader.counts().task_count >= 1
    cluster.world.run(lambda: core.view().writable, ms_max=RETURN_MS_MAX)
    assert cluster.world.monotonic_ms() - began_ms >= SLOW_MS

    for number in (2, 4):
        accepted(cluster.propose(name, submit(number)))
    cluster.world.run(lambda: cluster.agree() and holds_all(cluster, 5))


def test_links_that_come_and_go_meanwhile_are_known_afterwards(tmp_path: Path) -> None:
    cluster, core, _, other = opening_anew(tmp_path)
    name = core.config.node_id
    third = next(n for n in cluster.cores if n not in (name, other))
    cluster.wires.cut(name, other)
    cluster.wires.cut(name, third)
    cluster.wires.cuts.discard(frozenset((name, third)))
    cluster.world.after(1_000, cluster.wires.connect_what_may)

    cluster.world.run(lambda: not core._mending.is_under_way)

    assert core.engine.connected == {third}
    cluster.wires.heal()
    cluster.world.run(cluster.agree)


def test_a_node_killed_while_it_reads_its_journal_starts_again(tmp_path: Path) -> None:
    cluster, core, _, _ = opening_anew(tmp_path)
    name = core.config.node_id

    cluster.kill(name)
    cluster.world.run_for(2 * SLOW_MS)
    cluster.start(name)

    accepted(cluster.propose(name, submit(2)))
    cluster.world.run(lambda: cluster.agree() and holds_all(cluster, 3))


def test_a_node_stopped_while_it_reads_its_journal_leaves_nothing_open(tmp_path: Path) -> None:
    cluster, core, disk, _ = opening_anew(tmp_path)

    core.close()
    cluster.world.run(lambda: not core._mending.is_under_way)

    assert disk._names == {}
    cluster.kill(core.config.node_id)


def test_a_disk_that_is_full_again_meanwhile_is_waited_for_again(tmp_path: Path) -> None:
    cluster, core, disk, _ = opening_anew(tmp_path)

    disk.is_full = True
    cluster.world.run(lambda: not core._mending.is_under_way)
    cluster.world.run_for(5_000)
    assert core.view().is_disk_full and not core._mending.is_under_way

    disk.is_full = False
    cluster.world.run(lambda: core.view().writable, ms_max=RETURN_MS_MAX)
    cluster.world.run(cluster.agree)


def test_a_journal_that_is_damaged_by_then_takes_its_node_out_of_service(tmp_path: Path) -> None:
    cluster, core, _, _ = opening_anew(tmp_path)
    first = min((core.config.root / "journal").glob("*.journal"))
    data = bytearray(first.read_bytes())
    data[len(data) // 4] ^= 0xFF
    first.write_bytes(data)

    with pytest.raises(Damaged, match="journal segment"):
        cluster.world.run(lambda: core.view().writable, ms_max=RETURN_MS_MAX)

    assert is_out_of_service(core)


def test_a_vote_that_is_gone_by_then_takes_its_node_out_of_service(tmp_path: Path) -> None:
    cluster, core, _, _ = opening_anew(tmp_path)
    (core.config.root / "vote").unlink()

    with pytest.raises(Damaged, match="the vote was lost"):
        cluster.world.run(lambda: core.view().writable, ms_max=RETURN_MS_MAX)

    assert is_out_of_service(core)


def test_a_node_found_damaged_meanwhile_says_nothing_afterwards(tmp_path: Path) -> None:
    cluster, core, disk, _ = opening_anew(tmp_path)
    spoil_table(core, "departed")
    core.frame_received("n9", Frame(term=1, pre_vote=PreVote()))
    with pytest.raises(Damaged, match="the ledger is damaged"):
        cluster.world.run(lambda: not core._mending.is_under_way)
    before = core.engine

    cluster.world.run(lambda: not core._mending.is_under_way)

    assert core.engine is before and disk._names == {}


class Noting(RefusingDisk):
    """Notes which threads read the journal."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[int] = set()

    def read(self, path: Path) -> bytes:
        if path.suffix == ".journal":
            self.readers.add(threading.get_ident())
        return super().read(path)


class OnThreads(Alone):
    """A node without peers whose blocking work is done in threads."""

    def __init__(self) -> None:
        self.threads = ThreadBackground("mending", threads=1)

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self.threads.run(work, done)


async def test_the_loop_never_reads_the_journal_of_a_node_in_service(tmp_path: Path) -> None:
    world, disk = OnThreads(), Noting()
    founding = Bootstrap(mesh_id="m", node_id="n1", address="n1")
    config = ReplicaConfig("n1", "n1", tmp_path, founding=founding)
    ports = Ports(world, world, world, random.Random(1), 1, disk)  # type: ignore[arg-type]
    replica = Replica(config, ports)
    running = asyncio.ensure_future(replica.run())
    try:
        async with asyncio.timeout(RETURN_MS_MAX / 1_000):
            await replica.propose([submit(1)], timeout_ms=RETURN_MS_MAX)
            disk.is_full = True
            with pytest.raises(ConsensusError):
                await replica.propose([submit(2)], timeout_ms=300)
            disk.readers.clear()
            disk.is_full = False
            while not replica.view().writable:  # noqa: ASYNC110
                await asyncio.sleep(0)
            await replica.propose([submit(2)], timeout_ms=RETURN_MS_MAX)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        world.threads.close()

    assert disk.readers and threading.get_ident() not in disk.readers

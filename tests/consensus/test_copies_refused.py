"""Who refused a copy, and why: one that is sound is neither blamed nor made again for what a receiver lacks."""

from __future__ import annotations

import errno
import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from quorumesh.v1.peer_pb2 import SnapshotChunk

from consensus.directory import LedgerDirectory
from consensus.engine.config import SNAPSHOT_UNREAD_MS
from consensus.engine.disk import Disk
from consensus.errors import Damaged
from consensus.room import is_refusal
from consensus.snapshots import PEER_REFUSALS_MAX, REFUSING_PEERS_MAX
from tests.consensus.cluster import World
from tests.consensus.copies import copies_of
from tests.consensus.test_copies_sent import WRITTEN, made, one_away
from tests.consensus.test_cores import holds_all


class CannotSyncCopies(Disk):
    """Refuses to make a received copy durable, so many times; `tries` tells when."""

    def __init__(self, world: World, times: int) -> None:
        self._world, self.left = world, times
        self.tries: list[int] = []

    def sync_file(self, path: Path) -> None:
        if path.parent.name == "incoming":
            self.tries.append(self._world.monotonic_ms())
            if self.left > 0:
                self.left -= 1
                raise OSError(errno.EIO, "Input/output error")
        super().sync_file(path)


def test_a_copy_that_a_receivers_own_disk_refused_is_sent_again_and_not_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, away, leader = one_away(tmp_path)
    times = PEER_REFUSALS_MAX + 1
    disk = CannotSyncCopies(cluster.world, times)
    cluster.disks[away] = disk

    returned = cluster.start(away)
    cluster.world.run(cluster.agree, ms_max=(times + 2) * SNAPSHOT_UNREAD_MS)

    assert len(disk.tries) == times + 1 and returned.snapshots.installed_count == 1
    assert leader.snapshots.made_count == 1 and "is not sound" not in caplog.text
    between = [later - first for first, later in pairwise(disk.tries)]
    assert min(between) >= SNAPSHOT_UNREAD_MS
    assert holds_all(cluster, WRITTEN)


def test_a_node_started_anew_again_and_again_while_it_checks_blames_no_copy(tmp_path: Path) -> None:
    cluster, away, leader = one_away(tmp_path)
    for _ in range(PEER_REFUSALS_MAX + 1):
        cluster.start(away)
        cluster.slow_down(away, (3_000_000, 3_000_001))
        cluster.world.run(cluster.cores[away].snapshots.is_complete)
        cluster.world.run_for(100)
        cluster.kill(away)

    returned = cluster.start(away)
    cluster.world.run(cluster.agree)

    assert returned.snapshots.installed_count == 1 and leader.snapshots.made_count == 1
    assert leader.snapshots._refusals == {}


def test_two_peers_that_find_a_copy_unsound_are_believed(tmp_path: Path) -> None:
    snapshots, copy = made(tmp_path)

    snapshots.refused(copy, "n2")
    assert snapshots.latest() is copy
    snapshots.refused(copy, "n3")

    assert REFUSING_PEERS_MAX == 2 and snapshots.latest() is None


def test_one_peer_is_believed_in_the_end(tmp_path: Path) -> None:
    snapshots, copy = made(tmp_path)

    for _ in range(PEER_REFUSALS_MAX - 1):
        snapshots.refused(copy, "n2")
    assert snapshots.latest() is copy
    snapshots.refused(copy, "n2")

    assert snapshots.latest() is None


class NeitherTakesNorCuts(Disk):
    """Takes part of a write, and cannot cut that off again, while told so."""

    is_refusing = False

    def write(self, handle: int, data: bytes) -> None:
        if self.is_refusing:
            super().write(handle, data[:1])
            raise OSError(errno.EIO, "Input/output error")
        super().write(handle, data)

    def truncate(self, path: Path, length_bytes: int) -> None:
        if self.is_refusing:
            raise OSError(errno.EIO, "Input/output error")
        super().truncate(path, length_bytes)


def test_what_nobody_knows_the_length_of_is_received_from_the_start(tmp_path: Path) -> None:
    disk = NeitherTakesNorCuts()
    directory = LedgerDirectory(tmp_path, disk)
    path = directory.prepare()
    snapshots = copies_of(path, directory)
    first = SnapshotChunk(index=9, entry_term=1, data=b"1234", total_bytes=8, digest=b"d")
    second = SnapshotChunk(index=9, entry_term=1, data=b"56", offset=4, total_bytes=8, digest=b"d")
    assert snapshots.receive(first) == 4

    disk.is_refusing = True
    assert snapshots.receive(second) == 0
    disk.is_refusing = False

    assert snapshots.receive(first) == 4 and snapshots.receive(second) == 6
    [incoming] = directory.incoming.iterdir()
    assert incoming.read_bytes() == b"123456"


def test_only_the_disk_counts_as_a_disk_that_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "empty.db") as db, pytest.raises(sqlite3.Error) as no_table:
        db.execute("SELECT * FROM ledger")
    db.close()
    with pytest.raises(sqlite3.Error) as no_file:
        sqlite3.connect("file:/nowhere/at/all.db?mode=ro", uri=True)

    assert is_refusal(OSError(errno.EIO, "x")) and is_refusal(no_file.value)
    assert not is_refusal(no_table.value) and not is_refusal(Damaged("x"))

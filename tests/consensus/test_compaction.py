"""Compaction and copies: nobody waits for a reader, memory is bounded, a copy under way stays whole."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from quorumesh.v1.peer_pb2 import AppendReply, Frame, SnapshotChunk, SnapshotReply

from consensus import compaction
from consensus.compaction import checkpoint_at_once
from consensus.core import Core
from consensus.directory import LedgerDirectory
from consensus.engine.config import CHUNK_BYTES_MAX
from consensus.ledger import Ledger
from consensus.pauses import REQUEST_PAUSE_MS
from consensus.snapshots import wal_bytes
from tests.consensus.cluster import Cluster, MemoryEnd, World
from tests.consensus.copies import copies_of
from tests.consensus.test_autopilot import admit, founded
from tests.consensus.test_cores import accepted, submit


def fill(cluster: Cluster, first: int, last: int) -> Core:
    for number in range(first, last + 1):
        accepted(cluster.propose("n1", submit(number)))
    return cluster.cores["n1"]


def test_a_checkpoint_does_not_wait_for_a_reader_in_its_way(tmp_path: Path) -> None:
    core = fill(founded(tmp_path), 1, 5)
    reading = sqlite3.connect(core.ledger_path, isolation_level=None)
    with contextlib.closing(reading):
        reading.execute("BEGIN")
        reading.execute("SELECT applied_index FROM ledger").fetchone()
        began_s = time.monotonic()

        assert not checkpoint_at_once(core.ledger)

        assert time.monotonic() - began_s < 1
    assert checkpoint_at_once(core.ledger)


def test_segments_stay_until_a_checkpoint_met_no_reader(tmp_path: Path) -> None:
    cluster = founded(tmp_path, compact_entries=20, keep_entries=5, segment_bytes_max=4_096)
    core = cluster.cores["n1"]
    reading = sqlite3.connect(core.ledger_path, isolation_level=None)
    with contextlib.closing(reading):
        reading.execute("BEGIN")
        reading.execute("SELECT applied_index FROM ledger").fetchone()
        fill(cluster, 1, 100)
        assert (core.compaction.done_count, core.journal.base_index) == (0, 0)

    fill(cluster, 101, 200)

    assert core.compaction.done_count > 0
    assert 0 < core.journal.base_index < core.applied_index - 5


def test_entries_kept_for_laggards_are_bounded_in_bytes(tmp_path: Path) -> None:
    core = fill(founded(tmp_path, keep_entries=50), 1, 60)
    count = core.compaction.keep_entries(core.applied_index, bytes_max=1_000)
    sizes = [
        len(core.journal.command_at(index))
        for index in range(core.applied_index - count, core.applied_index + 1)
    ]

    assert 0 < count < 50
    assert sum(sizes[1:]) <= 1_000 < sum(sizes)
    assert core.compaction.keep_entries(core.applied_index) == 50
    assert compaction.KEEP_BYTES_MAX <= 64 << 20


def test_a_copy_being_sent_stays_readable_when_a_newer_one_has_replaced_it(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    path = directory.prepare()
    ledger = Ledger.open(str(path))
    snapshots = copies_of(path, directory)
    snapshots.request()
    first = snapshots.latest()
    assert first is not None
    whole, step = first.path.read_bytes(), CHUNK_BYTES_MAX

    ledger.apply_noop(1, 1)
    snapshots.request()

    assert snapshots.latest() is not first
    assert not first.path.exists()
    assert b"".join(first.read(at, step) for at in range(0, len(whole), step)) == whole
    ledger.close()


def test_many_bytes_of_journal_are_compacted_however_few_entries_they_are(tmp_path: Path) -> None:
    cluster = founded(tmp_path, compact_journal_bytes=20_000, keep_entries=5)

    core = fill(cluster, 1, 400)

    assert core.applied_index < core.config.compact_entries
    assert core.compaction.done_count >= 1


def test_a_write_ahead_log_that_a_reader_let_grow_shrinks_again(tmp_path: Path) -> None:
    bound_bytes = 1_000_000
    cluster = founded(tmp_path, compact_wal_bytes=bound_bytes)
    core = cluster.cores["n1"]
    reading = sqlite3.connect(core.ledger_path, isolation_level=None)
    with contextlib.closing(reading):
        reading.execute("BEGIN")
        reading.execute("SELECT applied_index FROM ledger").fetchone()
        fill(cluster, 1, 200)
        grown_bytes = wal_bytes(core.ledger_path)
        reading.execute("ROLLBACK")
    assert core.compaction.done_count == 0

    fill(cluster, 201, 500)

    assert core.compaction.done_count >= 1
    assert wal_bytes(core.ledger_path) < bound_bytes * 2 < grown_bytes / 2


class SlowJoiner:
    """Answers all the time that it has nothing yet, as one does whose copy takes long."""

    def __init__(self, end: MemoryEnd) -> None:
        self.end = end
        self.copies: set[int] = set()

    def link_up(self, peer: str) -> None: ...

    def link_down(self, peer: str) -> None: ...

    def frame_received(self, peer: str, frame: Frame) -> None:
        if frame.HasField("append"):
            reply = AppendReply(next_index=1, reset=True)
            self.end.send(peer, Frame(term=frame.term, append_reply=reply))
        elif frame.HasField("snapshot"):
            self.copies.add(frame.snapshot.index)
            chunk = SnapshotReply(index=frame.snapshot.index, next_offset=0)
            self.end.send(peer, Frame(term=frame.term, snapshot_reply=chunk))


def test_entries_after_a_copy_stay_while_a_peer_is_receiving_it(tmp_path: Path) -> None:
    cluster = founded(tmp_path, compact_entries=20, keep_entries=5, segment_bytes_max=4_096)
    fill(cluster, 1, 100)
    admit(cluster, "n2")
    end = MemoryEnd(cluster.wires, "n2")
    joiner = SlowJoiner(end)
    end.bind(joiner)
    end.set_peers({"n1": "n1"})
    cluster.world.run(lambda: bool(joiner.copies))

    core = fill(cluster, 101, 400)

    [index] = joiner.copies
    assert core.compaction.done_count > 5
    assert core.journal.base_index <= index < core.applied_index - 250
    cluster.wires.disconnect("n1", "n2")
    fill(cluster, 401, 500)
    assert core.journal.base_index > index


class FullDisk:
    """Blocking work that always finds the disk full."""

    def __init__(self) -> None:
        self.count = 0

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self.count += 1
        done(sqlite3.OperationalError("database or disk is full"))


def test_a_copy_that_failed_is_not_tried_again_at_once(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    path, disk, world = directory.prepare(), FullDisk(), World()
    snapshots = copies_of(path, directory, background=disk, clock=world)
    snapshots.request()
    world.run_for(REQUEST_PAUSE_MS - 1)
    for _ in range(500):
        snapshots.request()
    assert disk.count == 1

    world.run_for(1)
    snapshots.request()

    assert disk.count == 2
    assert list(directory.snapshots.iterdir()) == []


def test_copies_of_an_earlier_life_are_removed_at_the_start(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    directory.prepare()
    (directory.snapshots / "snapshot-9-1.db").write_bytes(b"old")

    directory.prepare()

    assert list(directory.snapshots.iterdir()) == []


def test_more_bytes_than_a_copy_has_are_not_taken(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    path = directory.prepare()
    snapshots = copies_of(path, directory)
    chunk = SnapshotChunk(index=9, entry_term=1, data=b"12345", total_bytes=8, digest=b"d")
    assert snapshots.receive(chunk) == 5

    chunk.offset = 5

    assert snapshots.receive(chunk) == 5
    assert not snapshots.is_complete()
    chunk.data = b"678"
    assert snapshots.receive(chunk) == 8
    assert snapshots.is_complete()

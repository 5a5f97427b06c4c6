"""Copies on their way: nothing that rotted is sent, nothing unchecked is installed, nobody waits for it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from quorumesh.v1.peer_pb2 import Frame, SnapshotChunk

from consensus.copying import PARTIAL, SnapshotFile, check_received, digest_of
from consensus.core import Core
from consensus.directory import LedgerDirectory
from consensus.engine.disk import Disk
from consensus.errors import Damaged
from consensus.ledger import Ledger
from consensus.pauses import REQUEST_PAUSE_MS
from consensus.snapshots import PEER_REFUSALS_MAX, Snapshots
from tests.consensus.cluster import AtOnce, Cluster, MemoryEnd, World
from tests.consensus.copies import copies_of
from tests.consensus.test_cores import accepted, holds_all, submit, three

Done = Callable[[BaseException | None], None]
TINY = {"compact_entries": 20, "keep_entries": 5, "segment_bytes_max": 4_096}
WRITTEN = 120


def one_away(tmp_path: Path, **config: int) -> tuple[Cluster, str, Core]:
    """Three nodes, one of them dead and so far behind that it needs a copy; the leader."""
    cluster = three(tmp_path, **{**TINY, **config})
    leader = cluster.wait_leader()
    away = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)
    cluster.kill(away)
    for number in range(1, WRITTEN + 1):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    return cluster, away, leader


def made(tmp_path: Path) -> tuple[Snapshots, SnapshotFile]:
    directory = LedgerDirectory(tmp_path)
    path = directory.prepare()
    Ledger.open(str(path)).close()
    snapshots = copies_of(path, directory)
    snapshots.request()
    copy = snapshots.latest()
    assert copy is not None
    return snapshots, copy


def flip_byte(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def test_a_copy_that_rotted_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    _, copy = made(tmp_path)
    flip_byte(copy.path, 5_000)

    with pytest.raises(Damaged, match="changed on disk"):
        copy.read(0, 4_096)


def test_a_copy_that_rotted_is_never_sent_but_made_anew(tmp_path: Path) -> None:
    cluster, away, leader = one_away(tmp_path)
    leader.snapshots.request()
    cluster.world.run(lambda: leader.snapshots.latest() is not None)
    rotten = leader.snapshots.latest()
    assert rotten is not None
    flip_byte(rotten.path, 5_000)

    returned = cluster.start(away)
    cluster.world.run(cluster.agree)

    assert returned.snapshots.installed_count == 1
    assert leader.snapshots.made_count == 2
    assert holds_all(cluster, WRITTEN)


class Spoiling:
    """Changes a byte of each chunk of the first copies on their way to one node."""

    def __init__(self, core: Core, copies: int) -> None:
        self._core, self._left, self.count = core, copies, 0

    def link_up(self, peer: str) -> None:
        self._core.link_up(peer)

    def link_down(self, peer: str) -> None:
        self._core.link_down(peer)

    def frame_received(self, peer: str, frame: Frame) -> None:
        if frame.HasField("snapshot") and frame.snapshot.data and self.count < self._left:
            data = bytearray(frame.snapshot.data)
            data[-1] ^= 0xFF
            frame.snapshot.data = bytes(data)
            self.count += frame.snapshot.offset + len(data) == frame.snapshot.total_bytes
        self._core.frame_received(peer, frame)


def test_a_copy_that_one_peer_throws_away_again_and_again_is_made_anew(tmp_path: Path) -> None:
    cluster, away, leader = one_away(tmp_path)
    returned = cluster.start(away)
    spoiling = Spoiling(returned, PEER_REFUSALS_MAX)
    cluster.wires.ends[away].bind(spoiling)

    cluster.world.run(cluster.agree)

    assert spoiling.count == PEER_REFUSALS_MAX
    assert leader.snapshots.made_count == 2
    assert returned.snapshots.installed_count == 1
    assert holds_all(cluster, WRITTEN)


def damage_pages(path: Path) -> None:
    """Overwrite the inner pages of a ledger's file, as a bad disk may."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name='subtask_ready'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4_096)
        file.write(b"\xa5" * 4_096)


def test_a_damaged_ledger_is_not_sent_and_its_node_ends_and_another_leads(tmp_path: Path) -> None:
    cluster, away, leader = one_away(tmp_path)
    name = leader.config.node_id
    damage_pages(leader.ledger_path)

    returned = cluster.start(away)
    with pytest.raises(Damaged, match="damaged"):
        cluster.world.run(lambda: False)

    assert leader.diverged and (leader.config.root / "DIVERGED").exists()
    assert leader.snapshots.latest() is None and not leader.view().writable
    cluster.kill(name)
    cluster.world.run(lambda: returned.snapshots.installed_count == 1, ms_max=60_000)
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, WRITTEN)
    with pytest.raises(Damaged, match="out of service"):
        cluster.start(name)


def test_a_copy_that_is_installed_ends_the_damage_of_the_ledger_before_it(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path / "here")
    path = directory.prepare()
    Ledger.open(str(path)).close()
    damage_pages(path)
    installed: list[int] = []
    snapshots = copies_of(path, directory, replace=lambda copy, index: installed.append(index))
    snapshots.request()
    assert snapshots.damage
    (tmp_path / "there").mkdir()
    _, copy = made(tmp_path / "there")
    chunk = SnapshotChunk(
        index=copy.index,
        entry_term=copy.term,
        data=copy.read(0, copy.bytes_total),
        total_bytes=copy.bytes_total,
        digest=copy.digest,
    )

    assert snapshots.receive(chunk) == copy.bytes_total
    snapshots.install(copy.index, copy.term)

    assert installed == [copy.index] and snapshots.damage == ""


class Spoiler(Disk):
    """A disk on which a copy goes bad between being written and being read."""

    is_armed = True

    def sync_file(self, path: Path) -> None:
        super().sync_file(path)
        if self.is_armed and path.name == PARTIAL:
            with path.open("r+b") as file:
                file.seek(4_096)
                file.write(b"\xa5" * 4_096)


def test_a_copy_alone_that_went_bad_is_not_held_against_the_ledger(tmp_path: Path) -> None:
    disk, world = Spoiler(), World()
    directory = LedgerDirectory(tmp_path, disk)
    path = directory.prepare()
    Ledger.open(str(path)).close()
    snapshots = copies_of(path, directory, clock=world)

    snapshots.request()

    assert snapshots.latest() is None and snapshots.damage == ""
    assert list(directory.snapshots.iterdir()) == []
    disk.is_armed = False
    world.run_for(REQUEST_PAUSE_MS)
    snapshots.request()
    assert snapshots.latest() is not None


@pytest.mark.parametrize("is_replaced", [False, True])
def test_only_the_ledger_in_force_is_held_to_be_damaged(tmp_path: Path, is_replaced: bool) -> None:
    directory = LedgerDirectory(tmp_path)
    path = directory.prepare()
    Ledger.open(str(path)).close()
    damage_pages(path)
    in_force = [path]

    class Replacing(AtOnce):
        def run(self, work: Callable[[], None], done: Done) -> None:
            super().run(work, lambda error: self.ended(done, error))

        def ended(self, done: Done, error: BaseException | None) -> None:
            if is_replaced:
                in_force[0] = path.with_name("another.db")
            done(error)

    snapshots = copies_of(
        in_force[0], directory, background=Replacing(), ledger_path=lambda: in_force[0]
    )

    snapshots.request()

    assert snapshots.latest() is None and not snapshots.is_making
    assert bool(snapshots.damage) is not is_replaced


def test_while_a_copy_is_checked_the_leader_is_heard_and_answered(tmp_path: Path) -> None:
    cluster, away, leader = one_away(tmp_path)
    returned = cluster.start(away)
    cluster.slow_down(away, (3_000_000, 3_000_001))
    cluster.world.run(returned.snapshots.is_complete)
    term, since_ms = leader.engine.term, cluster.world.monotonic_ms()
    accepted(cluster.propose(leader.config.node_id, submit(WRITTEN + 1)))

    cluster.world.run(lambda: returned.snapshots.installed_count == 1)

    assert cluster.world.monotonic_ms() - since_ms > 2_500
    assert (leader.engine.term, leader.engine.role) == (term, "leader")
    assert returned.view().leader_age_ms < 200
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, WRITTEN + 1)


def test_a_copy_of_a_leader_that_fell_while_it_was_checked_is_not_installed(
    tmp_path: Path,
) -> None:
    cluster, away, leader = one_away(tmp_path)
    returned = cluster.start(away)
    cluster.slow_down(away, (2_000_000, 2_000_001))
    cluster.world.run(returned.snapshots.is_complete)
    path = returned.ledger_path

    cluster.wires.cut(away, leader.config.node_id)
    cluster.world.run_for(2_500)

    assert returned.snapshots.installed_count == 0 and returned.ledger_path == path
    cluster.world.run(lambda: not list((returned.config.root / "incoming").iterdir()))
    cluster.wires.heal()
    cluster.world.run(cluster.agree, ms_max=60_000)
    assert holds_all(cluster, WRITTEN)


def test_a_node_started_anew_while_it_checked_a_copy_is_sent_it_again(tmp_path: Path) -> None:
    cluster, away, _ = one_away(tmp_path)
    cluster.start(away)
    cluster.slow_down(away, (3_000_000, 3_000_001))
    cluster.world.run(cluster.cores[away].snapshots.is_complete)
    cluster.world.run_for(100)

    cluster.kill(away)
    returned = cluster.start(away)
    cluster.world.run(cluster.agree)

    assert returned.snapshots.installed_count == 1
    assert holds_all(cluster, WRITTEN)


class NoRoom(Disk):
    """Takes part of a write and then says that the disk is full, while told so."""

    is_full = False

    def write(self, handle: int, data: bytes) -> None:
        if self.is_full:
            super().write(handle, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        super().write(handle, data)


def test_a_chunk_that_finds_no_room_is_taken_when_there_is_some(tmp_path: Path) -> None:
    disk = NoRoom()
    directory = LedgerDirectory(tmp_path, disk)
    path = directory.prepare()
    snapshots = copies_of(path, directory)
    first = SnapshotChunk(index=9, entry_term=1, data=b"1234", total_bytes=8, digest=b"d")
    second = SnapshotChunk(index=9, entry_term=1, data=b"56", offset=4, total_bytes=8, digest=b"d")
    snapshots.receive(first)

    disk.is_full = True
    assert snapshots.receive(second) == 4
    disk.is_full = False

    assert snapshots.receive(second) == 6
    [incoming] = directory.incoming.iterdir()
    assert incoming.read_bytes() == b"123456"


def test_a_copy_gives_way_when_the_write_ahead_log_outgrows_its_bound(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    path = directory.prepare()
    ledger = Ledger.open(str(path))
    snapshots = copies_of(path, directory, wal_bytes_max=50_000)
    for index in range(1, 100):
        ledger.apply_noop(index, 1)

    snapshots.request()

    assert snapshots.latest() is None and not snapshots.is_making and not snapshots.damage
    assert list(directory.snapshots.iterdir()) == []
    ledger.close()


def test_an_end_that_is_silent_is_asked_whether_it_still_has_the_copy(tmp_path: Path) -> None:
    cluster, away, leader = one_away(tmp_path)
    end = MemoryEnd(cluster.wires, away)
    asked: list[int] = []

    class Silent:
        def link_up(self, peer: str) -> None: ...

        def link_down(self, peer: str) -> None: ...

        def frame_received(self, peer: str, frame: Frame) -> None:
            if frame.HasField("snapshot"):
                asked.append(len(frame.snapshot.data))
                whole = Frame(term=frame.term)
                whole.snapshot_reply.index = frame.snapshot.index
                whole.snapshot_reply.next_offset = frame.snapshot.offset + len(frame.snapshot.data)
                end.send(peer, whole)
            elif frame.HasField("append"):
                back = Frame(term=frame.term)
                back.append_reply.reset, back.append_reply.next_index = True, 1
                end.send(peer, back)

    end.bind(Silent())
    end.set_peers({leader.config.node_id: leader.config.node_id})

    cluster.world.run(lambda: asked.count(0) >= 2)

    assert leader.engine.role == "leader"


def held_open(name: str) -> int:
    """How many of this process's files are the removed one of that name."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += str(fd.readlink()).endswith(f"{name} (deleted)")
    return found


def test_a_replaced_copy_leaves_the_disk_once_nobody_is_sent_it(tmp_path: Path) -> None:
    snapshots, first = made(tmp_path)
    name = f"{tmp_path.name}/snapshots/{first.path.name}"
    ledger = Ledger.open(str(tmp_path / "ledger-0" / "ledger.db"))
    ledger.apply_noop(1, 1)
    ledger.close()
    snapshots.request()
    snapshots.checked()
    assert held_open(name) == 2

    del first
    snapshots.checked()

    assert held_open(name) == 0


def test_a_received_copy_with_other_definitions_is_thrown_away(tmp_path: Path) -> None:
    path = tmp_path / "received.db"
    Ledger.open(str(path)).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE").fetchone()
        connection.execute("DROP INDEX subtask_ready")
        connection.commit()

    with pytest.raises(Damaged, match="subtask_ready"):
        check_received(path, digest=digest_of(path), copied=(0, 0), disk=Disk())

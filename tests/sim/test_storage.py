"""What the simulated disk and the simulated power loss leave: all that was synced, and only guesses else."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from tests.sim.disk import Crashed, SimDisk
from tests.sim.storage import LedgerFiles


def disk_at(root: Path, seed: int) -> SimDisk:
    return SimDisk(root / f"{seed}", random.Random(seed))


def test_what_was_synced_survives_and_what_was_not_may_go(tmp_path: Path) -> None:
    lengths = set()
    for seed in range(40):
        disk = disk_at(tmp_path, seed)
        path = disk.root / "file"
        handle = disk.open_append(path)
        disk.write(handle, b"s" * 600)
        disk.sync(handle)
        disk.sync_folder(disk.root)
        disk.write(handle, b"u" * 3_000)

        disk.abandon()
        disk.lose_power()

        data = path.read_bytes()
        assert data[:600] == b"s" * 600
        lengths.add(len(data))
    assert min(lengths) < 1_200 and max(lengths) > 2_800


def test_a_name_is_lost_now_and_then_until_its_folder_is_synced(tmp_path: Path) -> None:
    left = []
    for seed in range(40):
        disk = disk_at(tmp_path, seed)
        disk.close(disk.open_append(disk.root / "old"))
        disk.sync_folder(disk.root)
        disk.rename(disk.root / "old", disk.root / "new")

        disk.abandon()
        disk.lose_power()

        left.append(sorted(path.name for path in disk.root.iterdir()))
    assert left.count(["old"]) > 5 and left.count(["new"]) > 5
    assert left.count(["old"]) + left.count(["new"]) == 40


def test_a_failed_sync_drops_what_later_syncs_seem_to_keep(tmp_path: Path) -> None:
    disk = disk_at(tmp_path, 1)
    handle = disk.open_append(disk.root / "file")
    disk.write(handle, b"a" * 600)
    disk.sync_errors = 1
    with pytest.raises(OSError):
        disk.sync(handle)
    disk.write(handle, b"b" * 600)
    disk.sync(handle)
    disk.sync_folder(disk.root)

    disk.abandon()
    disk.lose_power()

    data = (disk.root / "file").read_bytes()
    assert b"a" * 512 not in data and data.endswith(b"b" * 600)


def test_what_was_moved_to_a_folder_that_is_lost_is_where_it_was_before_or_nowhere(
    tmp_path: Path,
) -> None:
    found = set()
    for seed in range(40):
        disk = disk_at(tmp_path / str(seed), seed)
        before, after = disk.root / "incoming" / "copy.db", disk.root / "ledger-1" / "ledger.db"
        disk.make_folder(before.parent)
        handle = disk.open_append(before)
        disk.write(handle, b"rows")
        disk.sync(handle)
        disk.sync_folder(before.parent)
        disk.sync_folder(disk.root)
        disk.make_folder(after.parent)
        disk.rename(before, after)

        disk.abandon()
        disk.lose_power()

        data = {path.read_bytes() for path in (before, after) if path.exists()}
        assert data <= {b"rows"}
        found.add((before.exists(), after.exists()))
    assert {(True, False), (False, True)} <= found


def test_nothing_runs_after_a_crash_in_a_write(tmp_path: Path) -> None:
    disk = disk_at(tmp_path, 2)
    handle = disk.open_append(disk.root / "file")
    disk.crash_in = 1

    with pytest.raises(Crashed):
        disk.write(handle, b"x" * 100)
    with pytest.raises(Crashed):
        disk.sync_folder(disk.root)


def test_a_power_loss_leaves_a_commit_at_or_after_the_checkpoint(tmp_path: Path) -> None:
    found = set()
    for seed in range(30):
        root = tmp_path / f"{seed}"
        (root / "ledger-0").mkdir(parents=True)
        path = root / "ledger-0" / "ledger.db"
        writer = sqlite3.connect(path, isolation_level=None)
        writer.execute("PRAGMA journal_mode=WAL").fetchone()
        writer.execute("PRAGMA wal_autocheckpoint=0").fetchone()
        writer.execute("CREATE TABLE t (n INTEGER)")
        for number in range(1, 11):
            writer.execute("INSERT INTO t VALUES (?)", (number,))
            if number == 4:
                writer.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        reader.execute("SELECT 1 FROM t").fetchall()
        files = LedgerFiles(root, random.Random(seed))
        states = files.states()
        writer.close()
        reader.close()

        files.settle(states, loses_power=True)

        after = sqlite3.connect(path)
        found.add(after.execute("SELECT max(n) FROM t").fetchone()[0])
        assert after.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        after.close()
    assert min(found) >= 4 and max(found) == 10 and len(found) > 3

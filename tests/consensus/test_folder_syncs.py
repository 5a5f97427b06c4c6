"""A folder's sync that failed: what was named before it is promised only once it is surely there."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from consensus.directory import LedgerDirectory
from consensus.engine import Journal
from consensus.engine.disk import RENEWING_NAME, Disk
from tests.consensus.cluster import AtOnce
from tests.sim.disk import Crashed, SimDisk

SEEDS = 30


def nothing() -> None: ...


@pytest.mark.parametrize("is_renewed", [False, True])
def test_the_simulated_disk_lies_after_a_failed_sync_until_a_name_changes(
    tmp_path: Path, is_renewed: bool
) -> None:
    survived_count = 0
    for seed in range(SEEDS):
        disk = SimDisk(tmp_path / f"{seed}", random.Random(seed))
        disk.close(disk.open_append(disk.root / "name"))
        disk.folder_sync_errors = 1
        with pytest.raises(OSError):
            disk.sync_folder(disk.root)
        (disk.renew_folder if is_renewed else disk.sync_folder)(disk.root)

        disk.abandon()
        disk.lose_power()

        survived_count += (disk.root / "name").exists()
        assert not (disk.root / RENEWING_NAME).exists()
    assert (survived_count == SEEDS) is is_renewed and survived_count > 0


def test_a_journal_that_began_anew_where_a_sync_failed_keeps_what_it_promises_later(
    tmp_path: Path,
) -> None:
    for seed in range(SEEDS):
        disk = SimDisk(tmp_path / f"{seed}", random.Random(seed))
        folder = disk.root / "journal"
        disk.make_folder(folder)
        disk.sync_folder(disk.root)
        journal = Journal(folder, background=AtOnce(), disk=disk)
        for index in range(1, 6):
            journal.append(index, 1, bytes([index]))
        journal.sync(nothing)
        disk.folder_sync_errors = 1
        with pytest.raises(OSError):
            journal.reset(10, 1, keep_suffix=False)
        disk.abandon()
        disk.revive()

        again = Journal(folder, background=AtOnce(), disk=disk)
        assert again.failed is None and again.last_index == 10
        again.append(11, 1, b"promised")
        again.sync(nothing)
        assert again.synced_index == 11
        disk.abandon()
        disk.lose_power()
        disk.revive()

        after = Journal(folder, background=AtOnce(), disk=disk)
        assert after.last_index == 11 and after.command_at(11) == b"promised"
        after.close()


def test_a_ledger_that_was_named_where_a_sync_failed_is_in_force_after_any_power_loss(
    tmp_path: Path,
) -> None:
    for seed in range(SEEDS):
        disk = SimDisk(tmp_path / f"{seed}", random.Random(seed))
        directory = LedgerDirectory(disk.root, disk)
        directory.prepare()
        disk.close(disk.open_append(directory.journal / "000000000001.journal"))
        disk.sync_folder(directory.journal)
        staged = directory.stage_ledger(_copy(directory), 7)
        disk.folder_sync_errors = 1
        with pytest.raises(OSError):
            directory.put_in_force(staged)
        disk.abandon()
        disk.revive()

        assert LedgerDirectory(disk.root, disk).prepare() == staged
        disk.abandon()
        disk.lose_power()
        disk.revive()

        assert LedgerDirectory(disk.root, disk).prepare() == staged


def test_a_crash_while_a_ledger_is_put_in_force_leaves_one_that_is_there(tmp_path: Path) -> None:
    found = set()
    for seed in range(SEEDS * 4):
        disk = SimDisk(tmp_path / f"{seed}", random.Random(seed))
        directory = LedgerDirectory(disk.root, disk)
        before = directory.prepare()
        disk.close(disk.open_append(directory.journal / "000000000001.journal"))
        disk.sync_folder(directory.journal)
        copy = _copy(directory)
        disk.crash_in = seed % 24 + 1
        with contextlib.suppress(Crashed):
            directory.put_in_force(directory.stage_ledger(copy, 7))
        disk.abandon()
        disk.lose_power()
        disk.revive()

        after = LedgerDirectory(disk.root, disk).prepare()
        assert after in (before, disk.root / "ledger-7" / "ledger.db")
        assert after.parent.is_dir()
        found.add(after.parent.name)

    assert found == {"ledger-0", "ledger-7"}


def _copy(directory: LedgerDirectory) -> Path:
    path = directory.incoming / "copy.db"
    handle = directory.disk.open_append(path)
    directory.disk.write(handle, b"rows")
    directory.disk.sync(handle)
    directory.disk.close(handle)
    return path


class FailsOnce(Disk):
    """The first sync of one folder fails."""

    def __init__(self, folder: Path) -> None:
        self.failing: Path | None = folder
        self.synced: list[Path] = []

    def sync_folder(self, folder: Path) -> None:
        if folder == self.failing:
            self.failing = None
            raise OSError(5, "Input/output error")
        self.synced.append(folder)
        super().sync_folder(folder)


def test_the_name_of_a_new_folder_is_tried_again_by_the_next_start(tmp_path: Path) -> None:
    disk = FailsOnce(tmp_path)
    with pytest.raises(OSError):
        LedgerDirectory(tmp_path / "state", disk).prepare()

    LedgerDirectory(tmp_path / "state", disk).prepare()

    assert tmp_path in disk.synced
    assert [path.name for path in tmp_path.iterdir()] == ["state"]

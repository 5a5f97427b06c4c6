"""One ledger replaces another by one rename; a lost one is never replaced in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from consensus.directory import LedgerDirectory
from consensus.engine.disk import Disk
from consensus.errors import Damaged


def test_a_new_folder_gets_an_empty_ledger_directory(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path / "state")

    assert directory.prepare() == tmp_path / "state" / "ledger-0" / "ledger.db"
    assert directory.prepare() == tmp_path / "state" / "ledger-0" / "ledger.db"


def test_the_replaced_ledger_is_in_force_and_the_old_one_goes_at_the_next_start(
    tmp_path: Path,
) -> None:
    directory = LedgerDirectory(tmp_path)
    directory.prepare()
    copy = directory.incoming / "copy.db"
    copy.write_bytes(b"new")

    path = directory.stage_ledger(copy, 42)
    directory.put_in_force(path)
    (directory.journal / "000000000001.journal").touch()

    assert path.read_bytes() == b"new"
    assert directory.prepare() == path
    assert not (tmp_path / "ledger-0").exists()


def test_an_install_cut_short_before_the_rename_leaves_the_old_ledger(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    old = directory.prepare()
    (tmp_path / "ledger-42").mkdir()
    (tmp_path / "ledger-42" / "ledger.db").write_bytes(b"half")

    assert directory.prepare() == old
    assert not (tmp_path / "ledger-42").exists()


@pytest.mark.parametrize(
    "content", [b"", b"ledger-9", b"../elsewhere", b"\xff\xfe", b"ledger-0/.."]
)
def test_a_current_that_names_no_ledger_here_refuses_to_start(
    tmp_path: Path, content: bytes
) -> None:
    directory = LedgerDirectory(tmp_path)
    directory.prepare()
    (tmp_path / "CURRENT").write_bytes(content)

    with pytest.raises(Damaged):
        directory.prepare()


def test_a_missing_current_beside_a_journal_refuses_to_start(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    directory.prepare()
    (tmp_path / "CURRENT").unlink()
    (directory.journal / "segment").write_bytes(b"x")

    with pytest.raises(Damaged):
        directory.prepare()


def test_a_node_that_installs_again_and_again_keeps_two_ledgers_at_most(tmp_path: Path) -> None:
    directory = LedgerDirectory(tmp_path)
    path = directory.prepare()
    for index in (10, 20, 30):
        copy = directory.incoming / "copy.db"
        copy.write_bytes(b"new")
        before, path = path, directory.stage_ledger(copy, index)
        directory.put_in_force(path)
        directory.remove_ledgers(directory.other_ledgers(path, before))

    assert sorted(path.name for path in tmp_path.glob("ledger-*")) == ["ledger-20", "ledger-30"]


class WatchedDisk(Disk):
    """Notes which folders were synced."""

    def __init__(self) -> None:
        self.synced: list[Path] = []

    def sync_folder(self, folder: Path) -> None:
        self.synced.append(folder)
        super().sync_folder(folder)


def test_the_name_of_a_new_folder_is_made_durable_once(tmp_path: Path) -> None:
    disk = WatchedDisk()

    LedgerDirectory(tmp_path / "state", disk).prepare()
    assert tmp_path in disk.synced

    disk.synced.clear()
    LedgerDirectory(tmp_path / "state", disk).prepare()
    assert tmp_path not in disk.synced

"""Where a node's state lies on disk, and how one ledger replaces another without a moment of doubt.

    <root>/CURRENT            the name of the ledger directory in force; replaced by an fsynced rename
    <root>/ledger-<index>/    ledger.db with its -wal and -shm
    <root>/snapshots/         finished copies, snapshot-<index>-<term>.db; removed at boot
    <root>/incoming/          a copy being received; removed at boot
    <root>/journal/  vote     the engine's

Each ledger has a directory of its own because a database that is renamed over another would meet
the other's -wal and silently serve old data.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from consensus.errors import Damaged

CURRENT_BYTES_MAX = 128


class LedgerDirectory:
    """The folder of one node's replicated state."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = root / "journal"
        self.vote = root / "vote"
        self.snapshots = root / "snapshots"
        self.incoming = root / "incoming"

    def prepare(self) -> Path:
        """The path of the ledger in force, made if this is a new folder; leftovers are removed.

        Raises Damaged when CURRENT names what is not there: a lost ledger is never replaced by an
        empty one in silence.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.journal.mkdir(exist_ok=True)
        for folder in (self.snapshots, self.incoming):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        current = self.root / "CURRENT"
        if not current.exists():
            if any(self.journal.iterdir()) or self.vote.exists():
                raise Damaged(f"{current} is missing beside a journal: the ledger is lost")
            self._make_ledger("ledger-0")
        name = current.read_bytes()[:CURRENT_BYTES_MAX].decode("ascii", "replace").strip()
        folder = self.root / name
        if not name.startswith("ledger-") or "/" in name or not folder.is_dir():
            raise Damaged(f"{current} names {name!r}, which is not a ledger here")
        if not any(self.journal.iterdir()) and (self.vote.exists() or name != "ledger-0"):
            raise Damaged(
                f"{self.journal} is empty beside a vote or an installed ledger: it is lost"
            )
        for other in self.root.glob("ledger-*"):
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
        return folder / "ledger.db"

    @staticmethod
    def installed_index(path: Path) -> int:
        """The index of the copy that the ledger at this path began as; 0 if it began empty."""
        digits = path.parent.name.removeprefix("ledger-")
        return int(digits) if digits.isdecimal() else 0

    def _make_ledger(self, name: str) -> None:
        (self.root / name).mkdir(exist_ok=True)
        self._point_at(name)

    def replace_ledger(self, copy: Path, index: int) -> Path:
        """Make a verified, synced copy the ledger in force; returns its new path. Survives any crash.

        The ledger that was in force stays until the next time, for those who still read it; older
        ones are removed.
        """
        name = f"ledger-{index}"
        folder = self.root / name
        before = (self.root / "CURRENT").read_bytes().decode("ascii", "replace").strip()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        target = folder / "ledger.db"
        os.replace(copy, target)
        sync_directory(folder)
        self._point_at(name)
        for other in self.root.glob("ledger-*"):
            if other.name not in (name, before):
                shutil.rmtree(other, ignore_errors=True)
        return target

    def _point_at(self, name: str) -> None:
        fresh = self.root / "CURRENT.new"
        with open(fresh, "wb") as file:
            file.write(name.encode("ascii") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self.root / "CURRENT")
        sync_directory(self.root)


def sync_directory(folder: Path) -> None:
    """Make names in the folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

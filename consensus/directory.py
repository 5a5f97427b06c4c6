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

import re
from collections.abc import Sequence
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.errors import Damaged

CURRENT_BYTES_MAX = 128


class LedgerDirectory:
    """The folder of one node's replicated state."""

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = root
        self.disk = disk if disk is not None else Disk()
        self.journal = root / "journal"
        self.vote = root / "vote"
        self.snapshots = root / "snapshots"
        self.incoming = root / "incoming"

    def prepare(self) -> Path:
        """The path of the ledger in force, made if this is a new folder; leftovers are removed.

        Raises Damaged when CURRENT names what is not there: a lost ledger is never replaced by an
        empty one in silence.
        """
        disk = self.disk
        current = self.root / "CURRENT"
        disk.make_folder(self.journal)
        if not disk.exists(current):
            # Before anything is promised in it: its own name must not be lost with the power.
            disk.renew_folder(self.root.parent)
        for folder in (self.snapshots, self.incoming):
            disk.remove_folder(folder)
            disk.make_folder(folder)
        has_journal, has_vote = bool(disk.names(self.journal)), disk.exists(self.vote)
        if not disk.exists(current):
            if has_journal or has_vote:
                raise Damaged(f"{current} is missing beside a journal: the ledger is lost")
            self._make_ledger("ledger-0")
        name = name_in(disk.read(current), current)
        folder = self.root / name
        if not folder.is_dir():
            raise Damaged(f"{current} names {name!r}, which is not a ledger here")
        # A name that was given just before a crash may not be durable yet. Others go after it is.
        # The folders made anew above are a change, so this sync is believed after a failed one too.
        disk.sync_folder(self.root)
        if not has_journal and (has_vote or name != "ledger-0"):
            raise Damaged(
                f"{self.journal} is empty beside a vote or an installed ledger: it is lost"
            )
        for other in self.root.glob("ledger-*"):
            if other != folder:
                disk.remove_folder(other)
        return folder / "ledger.db"

    @staticmethod
    def installed_index(path: Path) -> int:
        """The index of the copy that the ledger at this path began as; 0 if it began empty."""
        digits = path.parent.name.removeprefix("ledger-")
        return int(digits) if digits.isdecimal() else 0

    def _make_ledger(self, name: str) -> None:
        self.disk.make_folder(self.root / name)
        self.disk.sync_folder(self.root)
        self._point_at(name)

    def stage_ledger(self, copy: Path, index: int) -> Path:
        """Give a verified, synced copy a folder of its own, durably; returns its new path there."""
        folder = self.root / f"ledger-{index}"
        self.disk.remove_folder(folder)
        self.disk.make_folder(folder)
        target = folder / "ledger.db"
        self.disk.rename(copy, target)
        self.disk.sync_folder(folder)
        self.disk.sync_folder(self.root)
        return target

    def put_in_force(self, path: Path) -> None:
        """From here on the ledger at this path is the one that a start finds. Survives any crash.

        The one that was in force stays until the next time, for those who still read it.
        """
        self._point_at(path.parent.name)

    def other_ledgers(self, *kept: Path) -> list[Path]:
        """The folders of ledgers but for those of the databases at these paths."""
        names = [path.parent.name for path in kept]
        return [other for other in self.root.glob("ledger-*") if other.name not in names]

    def remove_ledgers(self, folders: Sequence[Path]) -> None:
        """Remove them. Blocks for large ones: for a thread."""
        for folder in folders:
            self.disk.remove_folder(folder)

    def _point_at(self, name: str) -> None:
        # Invariant: the folder's name is durable before the record that names it. Both lie in the root,
        # but of names that were given since the last sync a power loss may keep any (POSIX orders none).
        self.disk.replace(self.root / "CURRENT", name.encode("ascii") + b"\n")


def name_in(data: bytes, path: Path) -> str:
    """The ledger directory that a CURRENT file names. Damaged unless it is byte for byte ours."""
    if not re.fullmatch(rb"ledger-(0|[1-9][0-9]{0,18})\n", data):
        raise Damaged(f"{path} says {data[:CURRENT_BYTES_MAX]!r}, which names no ledger")
    return data.decode("ascii").rstrip("\n")

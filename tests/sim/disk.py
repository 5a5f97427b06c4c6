"""A disk over a real folder that knows what would be left of it if the power went now.

Bytes survive once their file was synced, names once their folder was. What was not synced survives
in part: any prefix or any subset of the name changes, any piece of the bytes, with rubbish in it.
A sync of a folder that failed makes the next ones lie, until one of its names changes.
SQLite's own files are not seen from here; `storage.py` takes care of them.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from consensus.engine.disk import Disk

SECTOR_BYTES = 512
SQLITE_NAME = "ledger.db"
ROOM_BYTES = 1 << 40


# Each raised error is a new one: it keeps the frames that it went through, and so a whole life.


def no_space() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def io_error() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


class Crashed(BaseException):
    """The process ends here: unwinds out of the node, and nothing of it runs any more."""


@dataclass(slots=True, eq=False)
class SimFile:
    """One file, whatever it is called. `path` is where its bytes lie now."""

    path: Path
    synced_bytes: int = 0
    dropped: tuple[int, int] = (0, 0)  # a failed sync dropped these: cached, and never on the disk
    is_folder: bool = False
    is_sqlite: bool = False  # durable when it was handed over; from then on SQLite looks after it


@dataclass(slots=True)
class Change:
    """One change of names in a folder that its sync would make durable."""

    number: int
    gone: str = ""
    made: str = ""
    file: SimFile | None = None


@dataclass(slots=True)
class Folder:
    durable: dict[str, SimFile] = field(default_factory=dict)
    live: dict[str, SimFile] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    failed_at: int | None = None  # the number of the last change when a sync of it failed


class SimDisk(Disk):
    """One node's disk: it outlives the node's processes."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root, self.chance = root, chance
        self._grave = root.with_name(root.name + ".removed")
        self._grave.mkdir(parents=True)
        root.mkdir()  # whoever set the node up has made it, durably
        self._folders: dict[Path, Folder] = {}
        self._handles: dict[int, SimFile] = {}
        self._number = 0
        self.is_dead = False
        self.crash_in: int | None = None  # operations until the process crashes in one
        self.is_full = False
        self.sync_errors = 0  # so many syncs fail from now on
        self.folder_sync_errors = 0  # so many of folders alone
        self.step_count = 0

    # Where a crash, a full disk or a failing one comes in.

    def _step(self) -> None:
        """A point at which the process may die."""
        if self.is_dead:
            raise Crashed
        self.step_count += 1
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in <= 0:
                self.crash_in = None
                self.is_dead = True
                raise Crashed

    def _synced(self, file: SimFile) -> None:
        self._step()
        size_bytes = file.path.stat().st_size
        if self.sync_errors > 0:
            self.sync_errors -= 1
            file.dropped = (file.synced_bytes, size_bytes)
            raise io_error()
        file.synced_bytes = size_bytes
        self._step()

    # Names.

    def _folder(self, path: Path) -> Folder:
        return self._folders.setdefault(path, Folder())

    def _file(self, path: Path) -> SimFile:
        live = self._folder(path.parent).live
        if path.name not in live:
            live[path.name] = SimFile(path)
        return live[path.name]

    def _change(
        self, folder: Path, *, gone: str = "", made: str = "", file: SimFile | None = None
    ) -> None:
        self._number += 1
        found = self._folder(folder)
        found.changes.append(Change(self._number, gone, made, file))
        if gone:
            found.live.pop(gone, None)
        if made and file is not None:
            found.live[made] = file

    def _bury(self, path: Path) -> None:
        """The name goes; the bytes stay, since a power loss may bring the name back."""
        file = self._file(path)
        self._number += 1
        file.path = self._grave / str(self._number)
        os.replace(path, file.path)

    def names(self, folder: Path) -> list[str]:
        self.make_folder(folder)
        return super().names(folder)

    def make_folder(self, folder: Path) -> None:
        if folder.exists():
            return
        for path in (*reversed(folder.parents), folder):
            if not path.exists():
                self._step()
                path.mkdir()
                self._change(path.parent, made=path.name, file=SimFile(path, is_folder=True))

    def remove_folder(self, folder: Path) -> None:
        self._step()
        shutil.rmtree(folder, ignore_errors=True)
        for path in [path for path in self._folders if path == folder or folder in path.parents]:
            del self._folders[path]
        parent = self._folder(folder.parent)
        parent.live.pop(folder.name, None)
        parent.durable.pop(folder.name, None)
        parent.changes = [c for c in parent.changes if folder.name not in (c.made, c.gone)]

    def sync_folder(self, folder: Path) -> None:
        self._step()
        found = self._folder(folder)
        last = max((change.number for change in found.changes), default=0)
        if self.sync_errors > 0 or self.folder_sync_errors > 0:
            self.sync_errors = max(0, self.sync_errors - 1)
            self.folder_sync_errors = max(0, self.folder_sync_errors - 1)
            found.failed_at = last
            raise io_error()
        if found.failed_at is not None and last <= found.failed_at:
            # What could not be written counts as clean until it changes: this sync writes nothing.
            return
        found.failed_at = None
        lost = {file.path: file for file in found.durable.values()}
        for change in found.changes:
            _apply(found.durable, change)
        found.changes.clear()
        kept = {file.path for file in found.durable.values()}
        for path in lost:
            if path not in kept and path.parent == self._grave:
                path.unlink()
        self._step()

    def remove(self, path: Path) -> None:
        if path.exists():
            self._step()
            self._bury(path)
            self._change(path.parent, gone=path.name)

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        file = self._file(source)
        if target.exists():
            self._bury(target)
        os.replace(source, target)
        file.path = target
        file.is_sqlite = target.name == SQLITE_NAME and file.synced_bytes == target.stat().st_size
        if source.parent == target.parent:
            self._change(target.parent, gone=source.name, made=target.name, file=file)
        else:
            self._change(target.parent, made=target.name, file=file)
            self._change(source.parent, gone=source.name)
        self._step()

    # Bytes.

    def open_append(self, path: Path) -> int:
        self._step()
        if not path.exists():
            if self.is_full:
                raise no_space()
            path.touch()
            self._change(path.parent, made=path.name, file=SimFile(path))
        handle = super().open_append(path)
        self._handles[handle] = self._file(path)
        return handle

    def write(self, handle: int, data: bytes) -> None:
        try:
            self._step()
        except Crashed:
            super().write(handle, data[: self.chance.randrange(len(data) + 1)])
            raise
        if self.is_full:
            super().write(handle, data[: self.chance.randrange(len(data))])
            raise no_space()
        super().write(handle, data)
        self._step()

    def sync(self, handle: int) -> None:
        self._synced(self._handles[handle])

    def sync_file(self, path: Path) -> None:
        self._synced(self._file(path))

    def close(self, handle: int) -> None:
        self._handles.pop(handle)
        super().close(handle)

    def truncate(self, path: Path, length_bytes: int) -> None:
        self._step()
        os.truncate(path, length_bytes)
        self._synced(self._file(path))

    def replace(self, path: Path, data: bytes) -> None:
        partial = path.with_name(path.name + ".tmp")
        self.remove(partial)
        handle = self.open_append(partial)
        try:
            self.write(handle, data)
            self.sync(handle)
        finally:
            self.close(handle)
        self.rename(partial, path)
        self.sync_folder(path.parent)

    def free_bytes(self, folder: Path) -> int:
        return 0 if self.is_full else ROOM_BYTES

    # What the world does to it.

    def abandon(self) -> None:
        """The process is gone; its handles with it."""
        self.is_dead, self.crash_in = True, None
        for handle in list(self._handles):
            os.close(handle)
        self._handles.clear()
        if self.chance.random() < 0.5:
            self._evict()

    def _evict(self) -> None:
        """What a failed sync dropped leaves the cache too: from now on it is read as it is."""
        for path in sorted(self._folders):
            for _, file in sorted(self._folders[path].live.items()):
                if file.dropped[1] > 0:
                    data = bytearray(file.path.read_bytes())
                    self._scramble(data, *file.dropped)
                    file.path.write_bytes(data)
                    file.dropped = (0, 0)

    def revive(self) -> None:
        """Another process begins."""
        self.is_dead = False

    def lose_power(self) -> None:
        """Keep what was synced, and of the rest whatever chance keeps."""
        survives = self._survival()
        kept: list[tuple[Path, dict[str, SimFile], dict[str, bytes | None]]] = []
        # All is read before anything goes: a file may be kept under its old name in one folder only,
        # and lie under its new one in another that is lost.
        for path in sorted(self._folders):
            folder = self._folders[path]
            names = dict(folder.durable)
            for change in folder.changes:
                if survives(change.number):
                    _apply(names, change)
            kept.append((path, names, self._what_is_left(path, names)))
        for path, names, left in kept:
            self._lay_out(path, names, left)
        self._drop_unreachable()

    def _survival(self) -> Callable[[int], bool]:
        if self.chance.random() < 0.5:
            numbers = [c.number for folder in self._folders.values() for c in folder.changes]
            last = self.chance.choice([0, *numbers])
            return lambda number: number <= last
        share = self.chance.random()
        return lambda number: self.chance.random() < share

    def _what_is_left(self, path: Path, names: dict[str, SimFile]) -> dict[str, bytes | None]:
        """The bytes of each name in the folder; None: what lies there, untouched."""
        left = {name: self._left_of(file) for name, file in sorted(names.items())}
        for name, file in names.items():
            if left[name] is None and not file.is_folder and file.path != path / name:
                left[name] = file.path.read_bytes()
        return left

    def _lay_out(
        self, path: Path, names: dict[str, SimFile], left: dict[str, bytes | None]
    ) -> None:
        """Make the folder hold these names, each file cut to what is left of it."""
        folder, live = self._folders[path], dict[str, SimFile]()
        for name, file in [*folder.live.items(), *folder.durable.items()]:
            if names.get(name) is not file and file.is_folder:
                shutil.rmtree(file.path, ignore_errors=True)
            elif names.get(name) is not file and file.path == path / name:
                file.path.unlink(missing_ok=True)
        for name, data in left.items():
            target, file = path / name, names[name]
            if data is None:
                live[name] = file
                continue
            target.write_bytes(data)
            live[name] = SimFile(target, len(data), is_sqlite=file.is_sqlite)
        self._folders[path] = Folder(durable=dict(live), live=live)

    def _left_of(self, file: SimFile) -> bytes | None:
        """The bytes that remain; None: all of them, untouched."""
        if file.is_folder or file.is_sqlite:
            return None
        data = bytearray(file.path.read_bytes())
        self._scramble(data, *file.dropped)
        synced = min(file.synced_bytes, len(data))
        if synced == len(data):
            return bytes(data) if file.dropped[1] else None
        kept = self.chance.randint(synced, len(data))
        del data[kept:]
        if self.chance.random() < 0.5:
            self._scramble(data, synced, kept, share=0.4)
        return bytes(data)

    def _scramble(self, data: bytearray, start: int, end: int, *, share: float = 1.0) -> None:
        """Sectors that never reached the disk: zeros, or what lay there before."""
        end = min(end, len(data))
        for at in range(start, end, SECTOR_BYTES):
            if self.chance.random() < share:
                till = min(at + SECTOR_BYTES, end)
                data[at:till] = self.chance.choice(
                    (bytes(till - at), self.chance.randbytes(till - at))
                )

    def _drop_unreachable(self) -> None:
        """Folders below one that was lost are lost with it."""
        for path in [path for path in self._folders if not path.is_dir()]:
            del self._folders[path]
        for path in self._grave.iterdir():
            path.unlink()


def _apply(names: dict[str, SimFile], change: Change) -> None:
    if change.gone:
        names.pop(change.gone, None)
    if change.made and change.file is not None:
        names[change.made] = change.file

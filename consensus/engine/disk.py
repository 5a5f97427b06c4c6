"""Every change that a node makes to its files, but for SQLite's own, in one small class that can be stood in for.

A name that was made, renamed or removed survives a power loss once its folder was synced, bytes once
their file was. After a sync of a folder that failed the next one may lie, in this process or another:
only one that follows a change of the folder is believed, because a change writes a small folder anew.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

RENEWING_NAME = "folder.tmp"  # is in a folder for a moment, or after a crash; means nothing


class Disk:
    """The real disk. All methods raise OSError when the world refuses."""

    def names(self, folder: Path) -> list[str]:
        """Names in a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        return sorted(os.listdir(folder))

    def exists(self, path: Path) -> bool:
        return path.exists()

    def read(self, path: Path) -> bytes:
        return path.read_bytes()

    def open_append(self, path: Path) -> int:
        """A handle that writes at the end of the file, which is made if it is not there."""
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, handle: int, data: bytes) -> None:
        """Write all of it, or raise."""
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]

    def sync(self, handle: int) -> None:
        os.fdatasync(handle)

    def close(self, handle: int) -> None:
        os.close(handle)

    def sync_folder(self, folder: Path) -> None:
        """Make the names in a folder durable that was just changed, or see `renew_folder`."""
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def renew_folder(self, folder: Path) -> None:
        """Make the names in a folder durable also when nothing changed since a sync of it that failed.

        A name of its own comes and goes, so there must be room for one.
        """
        path = folder / RENEWING_NAME
        self.close(self.open_append(path))
        self.remove(path)
        self.sync_folder(folder)

    def truncate(self, path: Path, length_bytes: int) -> None:
        """Cut the file, durably."""
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(handle, length_bytes)
            os.fsync(handle)
        finally:
            os.close(handle)

    def replace(self, path: Path, data: bytes) -> None:
        """Make this the content of the file, durably: the old one or the new, never a mixture."""
        partial = path.with_name(path.name + ".tmp")
        # Never one that is left of an attempt whose sync failed: its next sync may lie.
        partial.unlink(missing_ok=True)
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self.write(handle, data)
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(partial, path)
        self.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file another name, in place of what had it. Durable once the folders are synced."""
        os.replace(source, target)

    def make_folder(self, folder: Path) -> None:
        """Make the folder and those above it, if they are not there."""
        folder.mkdir(parents=True, exist_ok=True)

    def remove_folder(self, folder: Path) -> None:
        """Remove the folder with all that is in it, if it is there."""
        shutil.rmtree(folder, ignore_errors=True)

    def sync_file(self, path: Path) -> None:
        """Make what is in the file durable."""
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def free_bytes(self, folder: Path) -> int:
        """How much more the disk below this folder may take."""
        state = os.statvfs(folder)
        return state.f_bavail * state.f_frsize

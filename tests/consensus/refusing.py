"""A real disk that refuses on demand, and remembers what was written and synced."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from consensus.engine.disk import Disk


class RefusingDisk(Disk):
    """Full while `is_full`; its syncs fail while `sync_errno` is set. `touched` names the files."""

    is_refusing = False

    def __init__(self) -> None:
        self.is_full = False
        self.full_names = ""  # files with this in their name find no room
        self.sync_errno = 0
        self.touched: list[str] = []
        self._names: dict[int, str] = {}

    def open_append(self, path: Path) -> int:
        self._refuse_if_full()
        handle = super().open_append(path)
        self._names[handle] = path.name
        return handle

    def write(self, handle: int, data: bytes) -> None:
        self._touch(handle)
        if self.is_full:
            # A part of it still fits, as on a real disk.
            os.write(handle, data[: len(data) // 2])
        self._refuse_if_full()
        super().write(handle, data)

    def sync(self, handle: int) -> None:
        self._touch(handle)
        if self.sync_errno:
            raise OSError(self.sync_errno, os.strerror(self.sync_errno))
        super().sync(handle)

    def close(self, handle: int) -> None:
        self._names.pop(handle, None)
        super().close(handle)

    def replace(self, path: Path, data: bytes) -> None:
        self.touched.append(path.name)
        self._refuse_if_full()
        if self.full_names and self.full_names in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self.sync_errno:
            raise OSError(self.sync_errno, os.strerror(self.sync_errno))
        super().replace(path, data)

    def free_bytes(self, folder: Path) -> int:
        return 0 if self.is_full else super().free_bytes(folder)

    def _touch(self, handle: int) -> None:
        if handle in self._names:
            self.touched.append(self._names[handle])

    def _refuse_if_full(self) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

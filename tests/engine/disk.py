"""A disk in memory that forgets what was not synced, torn anywhere, when power is lost."""

from __future__ import annotations

import random
from pathlib import Path


class SimDisk:
    """Stands in for the engine's disk. `power_loss` keeps a random part of each unsynced tail."""

    def __init__(self) -> None:
        self._files: dict[Path, bytearray] = {}
        self._synced: dict[Path, int] = {}
        self._named: set[Path] = set()  # names that survive a power loss
        self._handles: dict[int, Path] = {}
        self._next = 1
        self.fails_writes = False

    def names(self, folder: Path) -> list[str]:
        return sorted(path.name for path in self._files if path.parent == folder)

    def exists(self, path: Path) -> bool:
        return path in self._files

    def read(self, path: Path) -> bytes:
        return bytes(self._files[path])

    def open_append(self, path: Path) -> int:
        if path not in self._files:
            self._files[path], self._synced[path] = bytearray(), 0
        self._handles[self._next] = path
        self._next += 1
        return self._next - 1

    def write(self, handle: int, data: bytes) -> None:
        if self.fails_writes:
            raise OSError(28, "No space left on device")
        self._files[self._handles[handle]] += data

    def sync(self, handle: int) -> None:
        path = self._handles[handle]
        if path in self._files:
            self._synced[path] = len(self._files[path])

    def close(self, handle: int) -> None:
        del self._handles[handle]

    def sync_folder(self, folder: Path) -> None:
        self._named = {path for path in self._named if path.parent != folder}
        self._named |= {path for path in self._files if path.parent == folder}

    def renew_folder(self, folder: Path) -> None:
        self.sync_folder(folder)

    def truncate(self, path: Path, length_bytes: int) -> None:
        del self._files[path][length_bytes:]
        self._synced[path] = length_bytes

    def replace(self, path: Path, data: bytes) -> None:
        if self.fails_writes:
            raise OSError(28, "No space left on device")
        self._files[path], self._synced[path] = bytearray(data), len(data)
        self.sync_folder(path.parent)

    def remove(self, path: Path) -> None:
        self._files.pop(path, None)
        self._synced.pop(path, None)

    def power_loss(self, rng: random.Random) -> None:
        """Forget open handles, files with unsynced names, and part of what was not synced."""
        self._handles.clear()
        for path in sorted(self._files):
            if path not in self._named:
                del self._files[path], self._synced[path]
                continue
            synced, data = self._synced[path], self._files[path]
            kept = rng.randint(synced, len(data))
            del data[kept:]
            if kept > synced and rng.random() < 0.5:
                data[rng.randrange(synced, kept)] ^= 0xFF
            self._synced[path] = len(data)

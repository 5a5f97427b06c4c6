"""Whether there is room on the disk again: asked with patience, and off the loop."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.ports import Background, Clock

ROOM_BYTES_MIN = 4 << 20  # free beside what is written at once, or the disk would be full again
PROBE_BYTES = 64 << 10
PROBE_NAME = "room.probe"
LOOK_MS_MIN, LOOK_MS_MAX = 250, 2_000
FOUND_MS_MAX = 1_000  # so old a finding still counts: others fill the same disk
CALM_MS = 30_000  # in service for so long: the next look is an early one again

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


_REFUSAL_CODES = frozenset(
    {
        *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
        *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
    }
)


def is_full(error: BaseException | None) -> bool:
    """Whether this failure, or what it came from, is that of a disk without room."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_ERRNOS:
            return True
        if isinstance(error, sqlite3.Error):
            return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL
        error = error.__cause__
    return False


def is_refusal(error: BaseException) -> bool:
    """Whether the disk, and not what is on it, is why something could not be read or written."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _REFUSAL_CODES
    return isinstance(error, OSError)


def may_pass(error: BaseException | None) -> bool:
    """Whether this failure may be gone once there is room: SQLite does not always say why."""
    causes = []
    while error is not None:
        causes.append(error)
        error = error.__cause__
    return is_full(causes[0] if causes else None) or any(
        isinstance(cause, sqlite3.OperationalError) for cause in causes
    )


class Room:
    """Looks for room on the disk: at once, then ever less often, off the loop."""

    def __init__(self, folder: Path, disk: Disk, *, clock: Clock, background: Background) -> None:
        self._folder, self._disk = folder, disk
        self._clock, self._background = clock, background
        self._wait_ms = LOOK_MS_MIN
        self._next_ms = 0
        self._is_looking = False
        self._found_bytes = -1  # more than this was not found
        self._found_ms = 0
        self.is_full = False  # the last look was refused for want of room

    def lost(self) -> None:
        """A write was refused: whatever was found before says nothing any more."""
        now_ms = self._clock.monotonic_ms()
        if now_ms - self._next_ms > CALM_MS:
            self._wait_ms = LOOK_MS_MIN
        self._found_bytes = -1
        self._next_ms = now_ms + self._wait_ms

    def is_back(self, bytes_needed: int) -> bool:
        """Whether a look has just found room for so many bytes; starts one when it is time to.

        A finding counts once, and for FOUND_MS_MAX.
        """
        now_ms = self._clock.monotonic_ms()
        is_enough = bytes_needed <= self._found_bytes
        is_fresh = now_ms - self._found_ms <= FOUND_MS_MAX
        if is_enough and is_fresh:
            self._found_bytes = -1
            return True
        if self._is_looking or now_ms < self._next_ms:
            return False
        self._is_looking = True
        self._wait_ms = min(2 * self._wait_ms, LOOK_MS_MAX)
        self._background.run(
            lambda: self._look(bytes_needed), lambda error: self._looked(bytes_needed, error)
        )
        return False

    def _look(self, bytes_needed: int) -> None:
        if self._disk.free_bytes(self._folder) < bytes_needed + ROOM_BYTES_MIN:
            raise OSError(errno.ENOSPC, "less room than is needed to go on")
        path = self._folder / PROBE_NAME
        # What a look that was refused has left behind is not written after.
        self._disk.remove(path)
        handle = self._disk.open_append(path)
        try:
            self._disk.write(handle, bytes(PROBE_BYTES))
            self._disk.sync(handle)
        finally:
            self._disk.close(handle)
            self._disk.remove(path)

    def _looked(self, bytes_needed: int, error: BaseException | None) -> None:
        self._is_looking = False
        self._found_bytes = bytes_needed if error is None else -1
        self._found_ms = self._clock.monotonic_ms()
        self.is_full = is_full(error)
        self._next_ms = self._found_ms + self._wait_ms

"""Faults of one process (or of those that share its files), set while it runs.

    faults = Faults(folder, near=somewhere_else, logs=True)
    process = subprocess.Popen(command, env={**os.environ, **faults.environment()})
    faults.sync_errno = errno.EIO          # every sync below the folder fails from now on
    faults.jump_wall(hours=1); faults.drift(ppm=200_000)
    faults.heal()                          # all storage faults off, true rate, no jump

What the library sees and what it does not is told in faultlib.h.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from enum import Flag
from pathlib import Path
from typing import Literal

from tests.faultlib.build import library

MAGIC = 0x3154554146464D51
NO_BOUND = -1
RATE_PPM_MAX = 900_000
# A new rate holds from a little later on: all threads have read it by then.
TURN_AHEAD_NS = 2_000_000
CrashWhen = Literal["before", "partial", "after"]
CRASH_CODE = 137
_WHEN: dict[CrashWhen, int] = {"before": 1, "partial": 2, "after": 3}


class Lies(Flag):
    """What a disk lies about when it is told to sync it."""

    NONE = 0
    FILES = 1
    FOLDERS = 2


class _Control(ctypes.Structure):
    """`struct control` of faultlib.h."""

    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("write_errno", ctypes.c_int64),
        ("sync_errno", ctypes.c_int64),
        ("lying_syncs", ctypes.c_uint64),
        ("room_bytes", ctypes.c_int64),
        ("refused_count", ctypes.c_int64),
        ("call_count", ctypes.c_uint64),
        ("crash_at_call", ctypes.c_uint64),
        ("crash_when", ctypes.c_uint64),
        ("ticket", ctypes.c_uint64),
        ("clock_changes", ctypes.c_uint64),
        ("wall_jump_ns", ctypes.c_int64),
        ("turn_true_ns", ctypes.c_int64),
        ("turn_shown_ns", ctypes.c_int64),
        ("rate_before_ppm", ctypes.c_int64),
        ("rate_ppm", ctypes.c_int64),
    ]


class Faults:
    """Switches for one folder. They outlive the process: a restarted one meets the same faults.

    Clocks: a process started while the rate differs from 0 sees its monotonic clock run on from
    where the others see it. `near` is a folder, not below `folder`, for the control file and log.
    """

    def __init__(self, folder: Path, *, near: Path, logs: bool = False) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        near.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        near = near.resolve()
        assert not near.is_relative_to(self.folder), "the log would log itself"
        self.path = near / f"{folder.name}.faults"
        self.log = near / f"{folder.name}.oplog" if logs else None
        self.path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with self.path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._control = _Control.from_buffer(self._map)
        self._control.room_bytes = NO_BOUND
        self._control.ticket = 1
        self._control.magic = MAGIC

    def environment(self) -> dict[str, str]:
        """What a process must find in its environment to be under these faults."""
        found = {
            "LD_PRELOAD": str(library()),
            "FAULTLIB_CONTROL": str(self.path),
            "FAULTLIB_FOLDER": str(self.folder),
        }
        if self.log is not None:
            found["FAULTLIB_LOG"] = str(self.log)
        return found

    # Storage.

    @property
    def write_errno(self) -> int:
        """The error number of every write below the folder; 0: they succeed."""
        return int(self._control.write_errno)

    @write_errno.setter
    def write_errno(self, number: int) -> None:
        self._control.write_errno = number

    @property
    def sync_errno(self) -> int:
        """The error number of every sync below the folder; 0: they succeed.

        What a failed sync should have made durable is lost with the power, whatever later ones say.
        """
        return int(self._control.sync_errno)

    @sync_errno.setter
    def sync_errno(self, number: int) -> None:
        self._control.sync_errno = number

    @property
    def lies(self) -> Lies:
        """Syncs of these say that all is well, and nothing becomes durable."""
        return Lies(self._control.lying_syncs)

    @lies.setter
    def lies(self, lies: Lies) -> None:
        self._control.lying_syncs = lies.value

    @property
    def room_bytes(self) -> int | None:
        """By how much the files may still grow before ENOSPC; None: without bound.

        What is removed gives no room back: set it anew.
        """
        room = int(self._control.room_bytes)
        return None if room == NO_BOUND else room

    @room_bytes.setter
    def room_bytes(self, count: int | None) -> None:
        self._control.room_bytes = NO_BOUND if count is None else count

    @property
    def refused_count(self) -> int:
        """Calls that were made to fail so far."""
        return int(self._control.refused_count)

    # Crashes.

    @property
    def call_count(self) -> int:
        """Mutating calls (syncs included) below the folder so far."""
        return int(self._control.call_count)

    def crash_at(self, call: int, when: CrashWhen = "before") -> None:
        """End the process at this mutating call, counted from 1 since `Faults` was made.

        "partial" ends it in the middle of a write; at other calls it means "after".
        """
        self._control.crash_when = _WHEN[when]
        self._control.crash_at_call = call

    def never_crash(self) -> None:
        self._control.crash_at_call = 0

    # Clocks.

    @property
    def rate_ppm(self) -> int:
        return int(self._control.rate_ppm)

    @property
    def wall_jump_ns(self) -> int:
        return int(self._control.wall_jump_ns)

    def drift(self, ppm: int) -> None:
        """From now on the clocks run so much faster than true time; 0: at its rate.

        What was gained or lost stays: monotonic time is continuous and never goes back.
        """
        assert abs(ppm) <= RATE_PPM_MAX
        control, now_ns = self._control, time.monotonic_ns()
        if control.clock_changes == 0:
            control.turn_true_ns = control.turn_shown_ns = now_ns
        turn_ns = max(now_ns, control.turn_true_ns) + TURN_AHEAD_NS
        since_ns = turn_ns - control.turn_true_ns
        turn_shown_ns = control.turn_shown_ns + since_ns + since_ns * control.rate_ppm // 1_000_000
        self._change(
            turn_true_ns=turn_ns,
            turn_shown_ns=turn_shown_ns,
            rate_before_ppm=int(control.rate_ppm),
            rate_ppm=ppm,
        )

    def jump_wall(self, *, ns: int = 0, hours: float = 0) -> None:
        """Set wall time off by so much against what drift alone would make of it. Not additive."""
        if self._control.clock_changes == 0:
            self.drift(0)
        self._change(wall_jump_ns=ns + int(hours * 3_600) * 1_000_000_000)

    def _change(self, **fields: int) -> None:
        self._control.clock_changes += 1  # odd: readers wait
        for name, value in fields.items():
            setattr(self._control, name, value)
        self._control.clock_changes += 1

    def heal(self) -> None:
        """Storage works, nothing crashes, wall time has no jump and clocks run at the true rate."""
        self.write_errno = self.sync_errno = 0
        self.room_bytes = None
        self.lies = Lies.NONE
        self.never_crash()
        if self._control.clock_changes:
            self.drift(0)
            self.jump_wall(ns=0)

    def close(self) -> None:
        """Let go of the control file; processes go on with what was last set."""
        del self._control
        self._map.close()
        os.unlink(self.path)


def count_from_here(call: int, when: CrashWhen, *, lies: Lies = Lies.NONE) -> int:
    """Inside a process under faults: count calls from here on, and crash at this one (0: at none).

    Returns the ticket that the next record of the log gets.
    """
    with open(os.environ["FAULTLIB_CONTROL"], "r+b") as file:
        control = _Control.from_buffer(mmap.mmap(file.fileno(), 0))
    control.call_count = 0
    control.crash_when = _WHEN[when]
    control.crash_at_call = call
    control.lying_syncs = lies.value
    return int(control.ticket)

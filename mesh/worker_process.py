"""What ties a worker process to its machine: its parent's death, and a loop that stands still."""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time

EXIT_RESTART = 75  # an agent is stuck: start this worker anew
EXIT_NODE_GONE = 69
STALL_MS_MAX = 30_000  # an agent that blocks the loop for so long ends the worker
WATCH_MS = 1_000
PR_SET_PDEATHSIG = 1

log = logging.getLogger("mesh.worker")


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent dies (Linux), so that no worker outlives its node."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        log.warning("prctl failed: errno=%d", ctypes.get_errno())
    if os.getppid() != parent_pid:
        # It died before the line above: the signal will never come.
        leave(EXIT_NODE_GONE)


def leave(code: int) -> None:
    """End the process now, threads of stuck agents included."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Watchdog:
    """Ends the process when its loop has not beaten for STALL_MS_MAX.

    A coroutine that blocks the loop holds all its neighbours' claims; the node takes them back as
    soon as the process is gone.
    """

    def __init__(self, stall_ms_max: int = STALL_MS_MAX) -> None:
        self._stall_ms_max = stall_ms_max
        self._beat_ms = _now_ms()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        self._beat_ms = _now_ms()

    def _watch(self) -> None:
        while True:
            before_ms = _now_ms()
            time.sleep(WATCH_MS / 1_000)
            now_ms = _now_ms()
            if now_ms - before_ms > 3 * WATCH_MS:
                self._beat_ms = now_ms  # the whole process was stopped, not just its loop
            elif now_ms - self._beat_ms > self._stall_ms_max:
                log.error("the loop has stood still for %d ms; leaving", now_ms - self._beat_ms)
                faulthandler.dump_traceback(file=sys.stderr)
                leave(EXIT_RESTART)


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000

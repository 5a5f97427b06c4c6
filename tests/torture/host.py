"""What this host is, for the head of a report, and what runs that were killed have left on it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import platform
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.mesh_process import ROOT

PREFIX = "qt-"
LOCK = ".running"
PARENT = "QUORUMESH_TORTURE_PARENT"
SYNC_COUNT = 60
SYNC_BYTES = 4_096
# What a result depends on. Who writes down results meanwhile changes none of it.
JUDGED = (
    *("consensus", "mesh", "node", "proto", "pyproject.toml", "scripts/torture"),
    *("tests/torture", "tests/faultlib", "tests/lincheck", "tests/e2e/mesh_process.py"),
)
_PR_SET_PDEATHSIG = 1


def describe(folder: Path) -> dict[str, object]:
    """The machine as it is now; `folder` is on the disk that nodes write to."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sync_ms": sync_ms(folder),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "load": round(os.getloadavg()[0], 1),
    }


def sync_ms(folder: Path) -> float:
    """The median time of appending a page to a file and syncing it."""
    took_ms = []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        for _ in range(SYNC_COUNT):
            began_s = time.perf_counter()
            file.write(bytes(SYNC_BYTES))
            os.fdatasync(file.fileno())
            took_ms.append((time.perf_counter() - began_s) * 1e3)
    return round(statistics.median(took_ms), 2)


def commit() -> str:
    """The last commit of what a result depends on, `-dirty` if that was changed since."""
    last = _git("log", "-1", "--format=%h", "--abbrev=10", "--", *JUDGED)
    changed = _git("status", "--porcelain", "--", *JUDGED)
    return (last + ("-dirty" if changed else "")) or "unknown"


@contextlib.contextmanager
def folder_of_a_run(folder_of_runs: Path | None = None) -> Iterator[Path]:
    """A folder that is known to be left over as soon as this process is gone."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=folder_of_runs) as name:
        folder = Path(name)
        with (folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder


def sweep(folder_of_runs: Path | None = None) -> list[str]:
    """End and remove what killed runs have left: their nodes and folders. What was found.

    Networks and mounts went with the namespaces of those runs. A run that goes on is left alone.
    """
    found = []
    runs = folder_of_runs or Path(tempfile.gettempdir())
    for folder in sorted(runs.glob(f"{PREFIX}*")):
        try:
            lock = (folder / LOCK).open("r+")
        except OSError:
            continue  # not ours to judge: another's, or just being made
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(f"another run goes on in {folder}: figures of both will suffer")
                continue
            ended = _end_processes(folder)
            shutil.rmtree(folder, ignore_errors=True)
            found.append(f"removed {folder} of a killed run, and {ended} processes")
    return found


def end_with_parent() -> None:
    """Let this process be killed when the one that runs many of it is, whatever kills that one."""
    parent = os.environ.pop(PARENT, "")
    if parent:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if str(os.getppid()) != parent:  # it was gone before
            os.kill(os.getpid(), signal.SIGKILL)


def _end_processes(folder: Path) -> int:
    """Those whose command line names something in the folder: nodes on plain loopback."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if f"{folder}/" in path.read_text(errors="replace"):
                os.kill(int(path.parent.name), signal.SIGKILL)
                count += 1
    return count


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
    return done.stdout.strip()

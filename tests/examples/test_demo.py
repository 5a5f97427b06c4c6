"""The demo as a person runs it: real processes, a real kill. Its own promises are the assertions."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.nodes import ROOT, environment

DEMO_S_MAX = 110


def started_in(folder: Path) -> list[int]:
    """The processes, and theirs, that were started with this folder for temporary files."""
    mark, found = f"TMPDIR={folder}".encode(), []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone, or another user's
            if mark in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def end_all_in(folder: Path) -> None:
    for pid in started_in(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A place for one demo. Whatever of it is left when its test ends, is ended."""
    yield tmp_path
    end_all_in(tmp_path)


def test_what_a_failed_demo_left_behind_is_ended_and_nothing_else(tmp_path: Path) -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True).wait()"
    mine, other = (tmp_path / "mine", tmp_path / "mine-too")
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(folder)})
        for folder in (mine, other)
    ]
    try:
        while len(started_in(mine)) < 2 or len(started_in(other)) < 2:
            assert processes[0].poll() is None and processes[1].poll() is None

        end_all_in(mine)

        assert processes[0].wait(timeout=30) == -signal.SIGKILL
        assert processes[1].poll() is None and len(started_in(other)) == 2
    finally:
        end_all_in(mine)
        end_all_in(other)
        for process in processes:
            process.wait(timeout=30)


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "examples.demo", "--no-color", *arguments],
        cwd=ROOT,
        env={**environment(folder / "nobody"), "TMPDIR": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_every_promise_of_the_demo_holds(folder: Path) -> None:
    summary = folder / "summary.json"
    demo = start(["--json", str(summary)], folder)

    output, _ = demo.communicate(timeout=DEMO_S_MAX)

    assert demo.returncode == 0, output
    found = json.loads(summary.read_text())
    assert found["ok"] and len(found["promises"]) == 7
    assert found["batch"]["takeovers"] >= 1 and found["batch"]["stale_refused"] >= 1
    assert "(killed) → fence" in output and "STALE_FENCE" in output
    assert found["total_s"] <= 60


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_behind(folder: Path) -> None:
    demo = start(["--ask", "What is a raw string?", "--keep"], folder)
    assert demo.stdout is not None
    pids = []
    for line in demo.stdout:
        words = line.split()
        if "pid" in words:
            pids.append(int(words[words.index("pid") + 1]))
        if len(pids) == 3:
            break

    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=DEMO_S_MAX)

    assert demo.returncode in (0, 130)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

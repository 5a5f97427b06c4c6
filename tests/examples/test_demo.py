"""The demo as a person runs it: real processes, a real kill. Its own promises are the assertions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.nodes import ROOT, environment

DEMO_S_MAX = 110


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
def test_every_promise_of_the_demo_holds(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    demo = start(["--json", str(summary)], tmp_path)

    output, _ = demo.communicate(timeout=DEMO_S_MAX)

    assert demo.returncode == 0, output
    found = json.loads(summary.read_text())
    assert found["ok"] and len(found["promises"]) == 7
    assert found["batch"]["takeovers"] >= 1 and found["batch"]["stale_refused"] >= 1
    assert "(killed) → fence" in output and "STALE_FENCE" in output
    assert found["total_s"] <= 60


@pytest.mark.slow
def test_an_interrupted_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = start(["--ask", "What is a raw string?", "--keep"], tmp_path)
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

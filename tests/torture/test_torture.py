"""Faults on five real nodes for half a minute each: every promise holds, and the run counts.

More kinds and longer: `scripts/torture --all`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh_process import ROOT
from tests.torture.bars import EQUAL_S_MAX, FAULTS_MIN, LEADER_GAP_S_MAX, RATE_MIN_PER_S
from tests.torture.kinds import KINDS

SECONDS = 30
# Others may use the machine too: promises hold all the same, and times are measured elsewhere.
SLACK = 3.0
NEEDS_NETWORK, INSTEAD = "partition-leader", "kill-all"


def run(*arguments: str, without_namespaces: bool = False) -> subprocess.CompletedProcess[str]:
    command = ["env", "QUORUMESH_LAB=switched off"] if without_namespaces else []
    return subprocess.run(
        [*command, "scripts/torture", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )


@cache
def has_namespaces() -> bool:
    """Whether this host lets the harness have a network of its own, as the harness sees it."""
    return run("--place").stdout.startswith("namespaces")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["kill-leader", "pause-leader", NEEDS_NETWORK, "power-loss-all"])
def test_every_promise_holds_while_real_nodes_meet(kind: str, tmp_path: Path) -> None:
    if kind == NEEDS_NETWORK and not has_namespaces():
        kind = INSTEAD
    history = tmp_path / "history.jsonl"

    done = run(
        *("--fault", kind, "--seed", "1", "--seconds", str(SECONDS)),
        *("--slack", str(SLACK), "--history", str(history), "--json"),
    )

    assert done.returncode == 0, done.stdout[-6_000:] + done.stderr[-2_000:]
    report: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    assert report["kind"] == kind and report["violations"] == [] and report["uncounted"] == ""
    assert report["lost"] == 0 and report["double_effects"] == 0
    assert report["fault_count"] >= FAULTS_MIN
    assert report["rate_min_per_s"] >= RATE_MIN_PER_S
    assert report["digests_equal_s"] <= EQUAL_S_MAX * SLACK
    assert report["linearizable"].startswith("linearizable")
    assert report["operation_count"] == len(history.read_text().splitlines()) > 500
    assert report["submitted_count"] > 100
    if KINDS[kind].is_on_leader:
        assert report["write_gap_max_s"] <= LEADER_GAP_S_MAX * SLACK


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_mesh_that_forgot_what_it_acknowledged_is_called_broken(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"

    done = run(
        *("--fault", "rolled-back", "--seed", "2", "--seconds", "15"),
        *("--history", str(history), "--json"),
    )

    assert done.returncode == 1, done.stdout[-6_000:] + done.stderr[-2_000:]
    report: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    assert report["lost"] > 0
    assert report["linearizable"].startswith("NOT linearizable")
    assert any("was acknowledged and is not there" in one for one in report["violations"])


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_run_that_is_interrupted_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="qi-") as name:  # short: sockets lie below it
        running = subprocess.Popen(
            [
                *("scripts/torture", "--fault", "pause-leader", "--nodes", "3"),
                *("--history", str(tmp_path / "history.jsonl")),
            ],
            cwd=ROOT,
            env={**os.environ, "TMPDIR": name},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert running.stdout is not None
        first = next(iter(running.stdout))
        during = [one for one in command_lines() if name in one]

        os.killpg(running.pid, signal.SIGINT)
        running.communicate(timeout=60)

        assert "operations/s before" in first
        assert len(during) >= 3
        assert running.returncode == 130
        assert os.listdir(name) == []
        assert [one for one in command_lines() if name in one] == []


def command_lines() -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text(errors="replace"))
    return found


def test_a_kind_that_needs_a_network_is_refused_without_one(tmp_path: Path) -> None:
    done = run(
        *("--fault", NEEDS_NETWORK, "--history", str(tmp_path / "history.jsonl")),
        without_namespaces=True,
    )

    assert done.returncode == 2
    assert "needs network namespaces: switched off" in done.stderr

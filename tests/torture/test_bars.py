"""The bars themselves: what meets one, what misses it, and that no missed one is told as held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.mesh_process import ROOT
from tests.torture import bars, host
from tests.torture.history import fewest_in_window
from tests.torture.kinds import KINDS, MIXED
from tests.torture.report import holds, read, run_all, summary, to_json

FAULT = {
    **{"victims": "node-1", "at_s": 2.0, "rate_before_per_s": 80.0, "write_gap_s": 0.5},
    **{"loss_gap_s": 0.1, "writable_after_s": 1.0},
}
MACHINE = {
    **{"cores": 2, "memory_gib": 24.0, "kernel": "6.1", "python": "3.11", "sync_ms": 0.2},
    **{"date": "2026-01-01 00:00 UTC", "load": 0.5},
}


def run_of(kind: str, seed: int = 1, **other: Any) -> dict[str, Any]:
    """A run that holds every bar, but for what is given."""
    return {
        **{"kind": kind, "seed": seed, "commit": "abc", "place": "namespaces", "exit_code": 0},
        **{
            "seconds_asked": 60.0,
            "slack": 1.0,
            "machine": MACHINE,
            "faults": [FAULT] * 10,
            "lost": 0,
        },
        **{"submitted_count": 800, "operation_count": 3_000, "double_effects": 0},
        **{"late_refused_count": 200, "digests_equal_s": 2.5, "violations": [], "uncounted": ""},
        **{"linearizable": "linearizable: 3000 operations", "longest_gap_s": 0.6},
        **{"fewest_writes_in_window": 40},
        **other,
    }


def missed(found: list[bars.Bar]) -> list[str]:
    return [bar.name for bar in found if not bar.is_held]


def whole() -> list[dict[str, Any]]:
    return [run_of(kind, seed) for kind in bars.kinds_in_order() for seed in (1, 2, 3)]


def write(folder: Path, runs: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(one) + "\n" for one in runs)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")


def test_a_run_that_does_all_that_is_asked_misses_no_bar() -> None:
    for kind in bars.kinds_in_order():
        assert missed(bars.of_run(run_of(kind))) == []


@pytest.mark.parametrize(
    ("kind", "other", "bar"),
    [
        ("ring", {"faults": [FAULT] * 4}, "faults a run"),
        ("ring", {"faults": [{**FAULT, "rate_before_per_s": 49.0}] * 9},
         "acknowledged before a fault"),
        ("ring", {"lost": 1}, "submits lost"),
        ("ring", {"submitted_count": 0}, "submits lost"),
        ("ring", {"double_effects": 1}, "double effects"),
        ("ring", {"linearizable": "UNKNOWN: 3000 operations"}, "histories not shown linearizable"),
        ("ring", {"linearizable": "NOT linearizable"}, "histories not shown linearizable"),
        ("ring", {"digests_equal_s": 10.1}, "full digests equal after heal"),
        ("ring", {"digests_equal_s": None}, "full digests equal after heal"),
        ("ring", {"violations": ["node-1 ended by itself"]}, "nothing else broken"),
        ("kill-leader", {"faults": [{**FAULT, "write_gap_s": 1.6}] * 9},
         "write gap, leader: median"),
        ("pause-leader", {"faults": [FAULT] * 9 + [{**FAULT, "write_gap_s": 5.1}]},
         "write gap, leader: most"),
        ("kill-one", {"faults": [FAULT] * 9 + [{**FAULT, "loss_gap_s": 0.31}]},
         "write gap, follower lost: most"),
        ("one-way", {"fewest_writes_in_window": 0}, "a write in every 10 s"),
        ("bridge", {"longest_gap_s": 10.2}, "a write in every 10 s"),
        ("loss-delay", {"fewest_writes_in_window": None}, "a write in every 10 s"),
    ],
)  # fmt: skip
def test_a_run_is_told_which_bar_it_missed(kind: str, other: dict[str, Any], bar: str) -> None:
    assert bar in missed(bars.of_run(run_of(kind, **other)))


def test_slack_makes_bars_of_time_longer_and_no_other_and_counts_for_no_minute() -> None:
    slow = [{**FAULT, "write_gap_s": 6.0, "rate_before_per_s": 49.0}] * 4
    slow += [{**FAULT, "write_gap_s": 1.4, "rate_before_per_s": 49.0}] * 5
    run = run_of("kill-leader", faults=slow, digests_equal_s=25.0, lost=1)

    assert missed(bars.of_run({**run, "slack": 3.0})) == [
        "acknowledged before a fault",
        "submits lost",
    ]
    assert len(missed(bars.of_run(run))) == 4
    always = run_of("kill-leader", faults=[{**FAULT, "write_gap_s": 1.6}] * 9, slack=3.0)
    assert missed(bars.of_run(always)) == ["write gap, leader: median"]
    easy = [{**one, "slack": 3.0} for one in whole()]
    assert missed(bars.of_all(easy)) == ["kinds x 3 seeds x 60 s"]


def test_all_runs_together_hold_all_bars_and_say_of_how_many() -> None:
    found = {bar.name: bar for bar in bars.of_all(whole())}

    assert missed(list(found.values())) == []
    assert found["write gap, leader, all: median"].n == 90
    assert found["forced hand-overs"].measured == "600"
    assert found["power losses of all"].measured == "30"


@pytest.mark.parametrize(
    ("changed", "bar"),
    [
        (run_of("hand-over", late_refused_count=99), "forced hand-overs"),
        (run_of("power-loss-all", faults=[FAULT] * 9), "power losses of all"),
        (run_of("power-loss-all", lost=1), "lost by them"),
        (run_of("damage", exit_code=1), "runs not held"),
        (run_of("damage", exit_code=1, lost=1, uncounted="2 faults"), "submits lost"),
        (run_of("kill-all", commit="abd"), "commits"),
        (run_of("kill-leader", faults=[{**FAULT, "write_gap_s": 5.2}] * 5),
         "write gap, leader, all: most"),
    ],
)  # fmt: skip
def test_one_run_can_miss_a_bar_for_all(changed: dict[str, Any], bar: str) -> None:
    others = [one for one in whole() if (one["kind"], one["seed"]) != (changed["kind"], 1)]

    assert bar in missed(bars.of_all([*others, changed]))


def test_what_has_not_run_is_not_held() -> None:
    assert missed(bars.of_all([])) == [bar.name for bar in bars.of_all([])]

    without = [one for one in whole() if one["kind"] not in ("bridge", "hand-over")]

    assert missed(bars.of_all(without)) == [
        "a write in every 10 s, bridge",
        "forced hand-overs",
        "effects under an old fence",
    ]


def test_five_faults_a_run_at_least_and_more_where_a_bar_is_over_all() -> None:
    assert bars.faults_min(KINDS["ring"], seconds=60) == 5
    assert bars.faults_min(KINDS["kill-leader"], seconds=30) == 5
    assert 3 * bars.faults_min(KINDS["kill-leader"], seconds=60) == bars.LEADER_FAULTS_MIN
    assert 3 * bars.faults_min(KINDS["power-loss-all"], seconds=60) == bars.POWER_LOSSES_MIN
    assert set(MIXED) <= set(KINDS)


def test_the_emptiest_window_is_found_wherever_it_lies() -> None:
    assert fewest_in_window([1, 2, 3, 30, 31], since_ns=0, until_ns=40, window_ns=10) == 0
    assert fewest_in_window([5, 12, 19, 26, 33], since_ns=0, until_ns=40, window_ns=10) == 1
    assert fewest_in_window([1, 2, 11, 12], since_ns=0, until_ns=19, window_ns=10) == 2
    assert fewest_in_window([1], since_ns=0, until_ns=9, window_ns=10) is None


def test_the_report_shows_every_run_every_bar_and_where_it_ran(tmp_path: Path) -> None:
    write(tmp_path, whole())

    text = summary(tmp_path)

    assert holds(tmp_path) and text.endswith("all bars held")
    assert len([line for line in text.splitlines() if line.startswith("ring ")]) == 4
    for bar in bars.of_all(whole()):
        assert any(line.lstrip().startswith(bar.name) for line in text.splitlines())
    assert "commit abc" in text and "2 cores, 24.0 GiB" in text and "0.2 to 0.2 ms" in text


def test_a_broken_run_is_not_hidden_and_the_report_fails(tmp_path: Path) -> None:
    broken = run_of("ring", exit_code=1, lost=2, violations=["gone"], digests_equal_s=None)
    crashed = {"kind": "bridge", "seed": 2, "exit_code": 1, "uncounted": "no report, exit 1"}
    others = [
        one for one in whole() if (one["kind"], one["seed"]) not in (("ring", 1), ("bridge", 2))
    ]
    write(tmp_path, [*others, broken, crashed])

    done = subprocess.run(
        ["scripts/torture", "--report", str(tmp_path), "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    assert said["holds"] is False and len(said["runs"]) == len(others) + 2
    assert "ring seed 1: BROKEN gone" in summary(tmp_path)
    assert "bridge seed 2: BROKEN no report, exit 1" in summary(tmp_path)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    worthless = run_of("ring", 2, exit_code=2, uncounted="3 faults")
    write(tmp_path, [run_of("ring", 1), worthless, run_of("ring", 2)])
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"kind": "bridge", "se')

    assert [(one["kind"], one["seed"]) for one in read(tmp_path)] == [("ring", 1), ("ring", 2)]
    assert to_json(tmp_path)["holds"] is False
    assert run_all(["ring"], [1, 2], seconds=60, out=tmp_path) == 0, "nothing is left to run"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_what_a_killed_run_left_is_ended_and_removed(short_folder: Path) -> None:
    left = short_folder / f"{host.PREFIX}left"
    left.mkdir()
    (left / host.LOCK).touch()
    other = short_folder / f"{host.PREFIX}other"
    other.mkdir()
    code = "import signal; print('runs', flush=True); signal.pause()"
    command = [sys.executable, "-c", code, f"{left}/node-1"]
    node = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    try:
        assert node.stdout is not None
        assert node.stdout.readline() == "runs\n"  # before, its command line may still be empty

        said = host.sweep(short_folder)

        assert node.wait(timeout=30) < 0
        assert said == [f"removed {left} of a killed run, and 1 processes"]
        assert os.listdir(short_folder) == [other.name]
    finally:
        node.kill()
        node.communicate()


def test_a_run_that_goes_on_is_left_alone(short_folder: Path) -> None:
    with host.folder_of_a_run(short_folder) as folder:
        said = host.sweep(short_folder)

        assert said == [f"another run goes on in {folder}: figures of both will suffer"]
        assert (folder / host.LOCK).exists()

    assert not folder.exists()


def test_a_run_ends_with_the_one_that_started_it() -> None:
    """However that one ends: here it is gone before the run has begun to look."""
    code = "from tests.torture import host; host.end_with_parent(); print('goes on')"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proto", host.PARENT: "1"}

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=60
    )

    assert done.returncode < 0 and b"goes on" not in done.stdout
    environment[host.PARENT] = str(os.getpid())
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and b"goes on" in done.stdout


def test_the_commit_and_the_machine_of_a_run_are_told(tmp_path: Path) -> None:
    told = host.describe(tmp_path)

    assert told["cores"] == os.cpu_count() and told["kernel"] == os.uname().release
    assert isinstance(told["sync_ms"], float) and told["sync_ms"] > 0
    assert len(host.commit().removesuffix("-dirty")) >= 7

"""What runs came to, as text; and many runs one after the other, kept as JSON lines."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tests.e2e.mesh_process import ROOT
from tests.torture.run import Report

RESULTS = "results.jsonl"
RUN_S_MAX = 600.0
CLEAN_UP_S = 60.0


def show(report: Report) -> str:
    """A run for people."""
    said = report.to_json()
    equal_s = "never" if report.digests_equal_s is None else f"{report.digests_equal_s:.1f} s"
    lines = [
        f"{report.kind}, seed {report.seed}, commit {report.commit}, {report.place}:",
        f"  {len(report.faults)} faults in {report.seconds:.0f} s; acknowledged before each:"
        f" median {said['rate_median_per_s']}/s, least {said['rate_min_per_s']}/s",
        f"  {report.submitted_count} submits acknowledged, lost {report.lost}; double effects"
        f" {report.double_effects}; {report.hand_over_count} hand-overs,"
        f" {report.stale_refused_count} stale completions refused, {report.late_refused_count} of"
        " them after three leases",
        f"  {report.linearizable} ({report.unknown_count} of unknown outcome)",
        f"  full digests equal {equal_s} after the last mending",
        f"  without an acknowledged write: median {said['write_gap_median_s']} s,"
        f" at most {said['write_gap_max_s']} s",
    ]
    lines += [f"  VIOLATION: {one}" for one in report.violations]
    if report.uncounted:
        lines.append(f"  DOES NOT COUNT: {report.uncounted}")
    lines.append({0: "held", 1: "BROKEN", 2: "not counted"}[report.exit_code])
    return "\n".join(lines)


def run_all(kinds: Sequence[str], seeds: Sequence[int], *, seconds: float, out: Path) -> int:
    """Run what is not yet in `out`, each as a process of its own. The worst exit code."""
    out.mkdir(parents=True, exist_ok=True)
    done = {(one["kind"], one["seed"]) for one in read(out) if one["exit_code"] != 2}
    worst = 0
    for seed in seeds:
        for kind in kinds:
            if (kind, seed) in done:
                continue
            found = _run_one(kind, seed, seconds=seconds, out=out)
            with (out / RESULTS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
            worst = max(worst, int(found["exit_code"]))
            print(_row(found), flush=True)
    return worst


def read(out: Path) -> list[dict[str, Any]]:
    path = out / RESULTS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def summary(out: Path) -> str:
    """A table of all runs: one line per kind."""
    runs = read(out)
    lines = [HEAD]
    for kind in dict.fromkeys(one["kind"] for one in runs):
        mine = [one for one in runs if one["kind"] == kind]
        lines.append(_sum(kind, [one for one in mine if "faults" in one], len(mine)))
    return "\n".join(lines)


HEAD = (
    f"{'kind':<18}{'runs':>5}{'held':>5}{'faults':>7}{'ops/s':>7}{'least':>6}{'lost':>5}"
    f"{'double':>7}{'forced':>7}{'equal s':>8}{'gap med':>8}{'gap max':>8}"
)


def _sum(kind: str, runs: Sequence[Mapping[str, Any]], run_count: int) -> str:
    faults = [fault for one in runs for fault in one["faults"]]
    gaps = [fault["write_gap_s"] for fault in faults] or [0.0]
    rates = [fault["rate_before_per_s"] for fault in faults] or [0.0]
    equal = [one["digests_equal_s"] for one in runs if one["digests_equal_s"] is not None]
    held = sum(one["exit_code"] == 0 for one in runs)
    return (
        f"{kind:<18}{run_count:>5}{held:>5}{len(faults):>7}{statistics.median(rates):>7.0f}"
        f"{min(rates):>6.0f}{sum(one['lost'] for one in runs):>5}"
        f"{sum(one['double_effects'] for one in runs):>7}"
        f"{sum(one['late_refused_count'] for one in runs):>7}"
        f"{max(equal, default=0.0):>8.1f}{statistics.median(gaps):>8.2f}{max(gaps):>8.2f}"
    )


def _row(found: Mapping[str, Any]) -> str:
    word = {0: "held", 1: "BROKEN", 2: "not counted"}[found["exit_code"]]
    why = "; ".join(found.get("violations", []))[:200] or found.get("uncounted", "")
    return f"{found['kind']} seed {found['seed']}: {word} {why}"


def _run_one(kind: str, seed: int, *, seconds: float, out: Path) -> dict[str, Any]:
    name = f"{kind}-{seed}"
    command = [sys.executable, "-m", "tests.torture", "--fault", kind, "--seed", str(seed)]
    command += ["--seconds", str(seconds), "--history", str(out / f"{name}.jsonl"), "--json"]
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        code, said = _watched(command, log, seconds_max=RUN_S_MAX + 4 * seconds)
        log.write(said)
    last = said.strip().rpartition("\n")[2]
    try:
        found: dict[str, Any] = json.loads(last)
    except ValueError:
        words = f"no report, exit {code}: see {name}.log"
        shown = code if code == 2 else 1
        found = {"kind": kind, "seed": seed, "exit_code": shown, "uncounted": words}
    return found


def _watched(command: Sequence[str], log: TextIO, *, seconds_max: float) -> tuple[int, str]:
    """Run to the end: its exit code and output. When this is stopped, it is, and cleans up first.

    A run is a session of its own: what ends it reaches all of it, through its namespaces too.
    """
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
    )
    try:
        said, _ = running.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGTERM)
        running.communicate(timeout=CLEAN_UP_S)
        return 1, f"took longer than {seconds_max:.0f} s"
    except KeyboardInterrupt:
        os.killpg(running.pid, signal.SIGTERM)
        running.communicate(timeout=CLEAN_UP_S)
        raise
    return running.returncode, said

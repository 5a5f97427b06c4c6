"""What runs came to, as text; and many runs one after the other, kept as JSON lines."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from tests.e2e.mesh_process import ROOT
from tests.torture import bars, host
from tests.torture.kinds import KINDS
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
    lines += _table(report.held_to())
    lines += [f"  VIOLATION: {one}" for one in report.violations]
    if report.uncounted:
        lines.append(f"  DOES NOT COUNT: {report.uncounted}")
    lines.append(WORDS[report.exit_code])
    return "\n".join(lines)


def run_all(kinds: Sequence[str], seeds: Sequence[int], *, seconds: float, out: Path) -> int:
    """Run what is not yet in `out`, each as a process of its own. The worst exit code.

    All seeds of a kind before the next kind. What did not count, or was cut short, is run anew.
    """
    out.mkdir(parents=True, exist_ok=True)
    done = {(one["kind"], one["seed"]) for one in read(out) if one["exit_code"] != NOT_COUNTED}
    wanted = [(kind, seed) for kind in kinds for seed in seeds if (kind, seed) not in done]
    worst = 0
    for number, (kind, seed) in enumerate(wanted, 1):
        found = _run_one(kind, seed, seconds=seconds, out=out)
        with (out / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        worst = max(worst, int(found["exit_code"]))
        print(f"{number} of {len(wanted)}: {_row(found)}", flush=True)
    return worst


def read(out: Path) -> list[dict[str, Any]]:
    """The last report of each kind and seed, in the order of kinds.

    Only what did not count is ever followed by another of its kind and seed.
    """
    path = out / RESULTS
    if not path.exists():
        return []
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            one = json.loads(line)
        except ValueError:
            continue  # the end of a line that was being written when its writer was killed
        found[(one["kind"], one["seed"])] = one
    order = list(KINDS)
    return sorted(found.values(), key=lambda one: (order.index(one["kind"]), one["seed"]))


def summary(out: Path) -> str:
    """A line per run, a line per kind, every bar, and where it ran."""
    runs = read(out)
    lines = [HEAD, *(_line(f"{one['kind']} {one['seed']}", [one]) for one in runs), "", HEAD]
    for kind in dict.fromkeys(one["kind"] for one in runs):
        lines.append(_line(kind, [one for one in runs if one["kind"] == kind]))
    lines += ["", *_table(bars.of_all(runs)), "", *_places(runs)]
    broken = [_row(one) for one in runs if one["exit_code"] != 0]
    return "\n".join([*lines, *broken, "all bars held" if holds(out) else "NOT ALL BARS HELD"])


def holds(out: Path) -> bool:
    """Whether every bar over all runs is held; what has not run is not."""
    return all(bar.is_held for bar in bars.of_all(read(out)))


def to_json(out: Path) -> dict[str, object]:
    """What `summary` says, for programs."""
    runs = read(out)
    return {
        "runs": runs,
        "bars": [asdict(bar) for bar in bars.of_all(runs)],
        "holds": holds(out),
    }


NOT_COUNTED = 2
WORDS = {0: "held", 1: "BROKEN", 2: "not counted"}
HEAD = (
    f"{'run':<20}{'held':>6}{'faults':>7}{'ops/s':>7}{'least':>6}{'submits':>8}{'lost':>5}"
    f"{'double':>7}{'forced':>7}{'linear.':>8}{'equal s':>8}{'gap med':>8}{'gap max':>8}"
    f"{'loss max':>9}{'in 10 s':>8}{'load':>6}"
)


def _line(name: str, all_runs: Sequence[Mapping[str, Any]]) -> str:
    runs = [one for one in all_runs if "faults" in one]
    faults = [fault for one in runs for fault in one["faults"]]
    gaps = [fault["write_gap_s"] for fault in faults] or [0.0]
    losses = [fault["loss_gap_s"] for fault in faults] or [0.0]
    rates = [fault["rate_before_per_s"] for fault in faults] or [0.0]
    equal = [one["digests_equal_s"] for one in runs]
    slowest = "never" if None in equal else f"{max(equal, default=0.0):.1f}"
    windows = [one["fewest_writes_in_window"] for one in runs]
    fewest = "-" if None in windows or not windows else str(min(windows))
    held = sum(one["exit_code"] == 0 for one in all_runs)
    good = sum(one["linearizable"].startswith("linearizable") for one in runs)
    load = max((one["machine"]["load"] for one in runs), default=0.0)
    return (
        f"{name:<20}{f'{held}/{len(all_runs)}':>6}{len(faults):>7}{statistics.median(rates):>7.0f}"
        f"{min(rates):>6.0f}{sum(one['submitted_count'] for one in runs):>8}"
        f"{sum(one['lost'] for one in runs):>5}{sum(one['double_effects'] for one in runs):>7}"
        f"{sum(one['late_refused_count'] for one in runs):>7}{f'{good}/{len(all_runs)}':>8}"
        f"{slowest:>8}{statistics.median(gaps):>8.2f}{max(gaps):>8.2f}{max(losses):>9.2f}"
        f"{fewest:>8}{load:>6.1f}"
    )


def _table(held_to: Sequence[bars.Bar]) -> list[str]:
    """Bar, what was asked, what was measured, of how many, verdict."""
    rows = [("bar", "wanted", "measured", "n", "verdict")]
    for bar in held_to:
        verdict = "held" if bar.is_held else "MISSED"
        rows.append((bar.name, bar.wanted, bar.measured, str(bar.n), verdict))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _places(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Commits, machine and dates of runs; of what varies, from where to where."""
    told = [one for one in runs if one.get("machine")]
    if not told:
        return ["nothing ran"]
    machines = [one["machine"] for one in told]
    syncs = [each["sync_ms"] for each in machines]
    dates = sorted(each["date"] for each in machines)
    fixed = {
        f"{each['cores']} cores, {each['memory_gib']} GiB, kernel {each['kernel']}, Python"
        f" {each['python']}"
        for each in machines
    }
    return [
        "commit " + ", ".join(sorted({one["commit"] for one in told})),
        f"{'; '.join(sorted(fixed))}; fdatasync {min(syncs)} to {max(syncs)} ms;"
        f" {', '.join(sorted({one['place'] for one in told}))}",
        f"{dates[0]} to {dates[-1]}; seconds asked"
        f" {min(one['seconds_asked'] for one in told):g} or more",
    ]


def _row(found: Mapping[str, Any]) -> str:
    word = WORDS[found["exit_code"]]
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
        command,
        cwd=ROOT,
        env={**os.environ, host.PARENT: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
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

"""Run seeds of the simulator: `python -m tests.engine --seeds A..B [--mode M]`."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))

from tests.engine.faults import MODES, run_faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.engine")
    parser.add_argument("--seeds", "--seed", default="0..19", help="A or A..B, both included")
    parser.add_argument("--mode", choices=MODES, help="all modes if absent")
    options = parser.parse_args()
    first, _, last = options.seeds.partition("..")
    seeds = range(int(first), int(last or first) + 1)
    failed_count = 0
    for mode in (options.mode,) if options.mode else MODES:
        began, acknowledged_count, leader_count = time.perf_counter(), 0, 0
        for seed in seeds:
            world = run_faults(mode, seed)
            acknowledged_count += len(world.acknowledged)
            leader_count += len(world.leaders)
            if world.violations:
                failed_count += 1
                print(
                    f"FAILED --mode {mode} --seeds {seed} at {commit()}",
                    *world.violations[:5],
                    sep="\n  ",
                )
        spent_s = time.perf_counter() - began
        print(
            f"{mode:<11} {len(seeds)} seeds, {leader_count} leaders, "
            f"{acknowledged_count} acknowledged, {spent_s:.1f} s"
        )
    return 1 if failed_count else 0


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    raise SystemExit(main())

"""Crashes at every mutating call of each activity, and prints what came of it.

    scripts/crash                              every call, power kept and lost: some minutes
    scripts/crash --each 10 --seed 3           every tenth call, which ones is up to the seed
    scripts/crash --twice 600                  crashes again while coming back from a crash
    scripts/crash --activity install --call 57 --when partial --seed 3    one run again

The seed chooses what the disk forgets. `--names any` lets names reach it in any order.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.crash.activities import ACTIVITIES, BY_NAME, Activity
from tests.crash.enumeration import Crash, Enumeration, Tally, fast_folder
from tests.faultlib.control import CrashWhen
from tests.faultlib.powerloss import Names


def crashes_of(
    activity: str, call: int, when: CrashWhen, *, seed: int, names: Names
) -> list[Crash]:
    """What is looked at for one crash: the power kept, and lost."""
    return [Crash(activity, call, when, loss, names) for loss in (None, seed)]


def enumerate_activity(
    activity: Activity, folder: Path, *, each: int, seed: int, names: Names
) -> Tally:
    """Every `each`-th call of it, a write also in its middle."""
    enumeration = Enumeration(activity, folder)
    with enumeration.actor() as actor:
        calls = enumeration.prepare(actor)
        first = random.Random(seed).randrange(each) + 1
        for call in range(first, calls + 1, each):
            kinds: tuple[CrashWhen, ...] = ("before",)
            if call in enumeration.writes:
                kinds = ("before", "partial")
            for when in kinds:
                enumeration.crash(
                    actor, crashes_of(activity.name, call, when, seed=seed, names=names)
                )
    return enumeration.tally


def run_one(activity: Activity, folder: Path, crashes: list[Crash]) -> Tally:
    enumeration = Enumeration(activity, folder)
    with enumeration.actor() as actor:
        enumeration.prepare(actor)
        enumeration.crash(actor, crashes)
    return enumeration.tally


def enumerate_twice(folder: Path, *, count: int, seed: int, names: Names) -> Tally:
    """Random crashes of every activity, each followed by one while the nodes come back."""
    total = Tally("twice")
    rng = random.Random(seed)
    for activity in ACTIVITIES:
        enumeration = Enumeration(activity, folder / activity.name)
        with enumeration.actor() as actor:
            calls = enumeration.prepare(actor)
            for _ in range(count // len(ACTIVITIES)):
                ends: list[CrashWhen] = ["before", "partial"]
                first, second = (
                    Crash(
                        kind, rng.randint(1, most), rng.choice(ends), rng.randrange(1 << 30), names
                    )
                    for kind, most in ((activity.name, calls), ("open", OPEN_CALLS_MAX))
                )
                enumeration.crash_twice(actor, first, second)
        total = total.plus(enumeration.tally)
    return total


def row(tally: Tally, seconds: float) -> str:
    share = 100 * tally.restarts / max(1, tally.runs)
    return (
        f"{tally.activity:<11}{tally.calls:>6}{tally.runs:>7}{tally.promises:>11}"
        f"{tally.lost:>6}{share:>10.1f} %{len(tally.problems):>10}{seconds:>9.0f}"
    )


OPEN_CALLS_MAX = 150  # of three nodes that come back, about
HEAD = "activity    calls   runs   promises  lost   restarts   problems  seconds"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/crash", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--activity", choices=sorted(BY_NAME), action="append")
    parser.add_argument("--each", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--names", choices=[n.value for n in Names], default="ordered")
    parser.add_argument("--twice", type=int, default=0, help="only so many double crashes")
    parser.add_argument("--call", type=int, help="only this call")
    parser.add_argument("--when", choices=["before", "partial", "after"], default="before")
    options = parser.parse_args()
    names = Names(options.names)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    print(f"commit {commit.stdout.strip()}, seed {options.seed}, names {names.value}")
    print(HEAD)
    problems: list[str] = []
    if options.twice:
        began = time.monotonic()
        with fast_folder() as folder:
            tally = enumerate_twice(folder, count=options.twice, seed=options.seed, names=names)
        print(row(tally, time.monotonic() - began), flush=True)
        problems += tally.problems
    for activity in ACTIVITIES if not options.twice else ():
        if options.activity and activity.name not in options.activity:
            continue
        began = time.monotonic()
        with fast_folder() as folder:
            if options.call is None:
                tally = enumerate_activity(
                    activity, folder, each=options.each, seed=options.seed, names=names
                )
            else:
                crashes = crashes_of(
                    activity.name, options.call, options.when, seed=options.seed, names=names
                )
                tally = run_one(activity, folder, crashes)
        print(row(tally, time.monotonic() - began), flush=True)
        problems += tally.problems
    for problem in problems[:50]:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

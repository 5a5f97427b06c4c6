"""scripts/damage-ledger: flips bits and cuts off ends in one voter's files, and counts what came of it."""

from __future__ import annotations

import argparse
import logging
import platform
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.damage_ledger.campaign import AT_OPEN, EQUAL, IN_SERVICE, KINDS, THROUGH, Campaign, Case

ENDS = (AT_OPEN, IN_SERVICE, EQUAL, THROUGH)
HEAD = f"{'file':8} {'cases':>5} {'found at open':>14} {'in service':>11} {'nothing lost':>13}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/damage-ledger", description=__doc__)
    parser.add_argument("--flips", type=int, default=200, help="bits, in each kind of file")
    parser.add_argument("--cuts", type=int, default=50, help="cut ends, in each kind of file")
    parser.add_argument("--kind", choices=KINDS, action="append", help="default: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", action="store_true", help="print every case")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"commit {commit}, seed {given.seed}, {platform.system()} {platform.machine()}, ", end="")
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}")
    print(f"{HEAD} {'got through':>12} {'doctor alone':>13}")
    through: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="quorumesh-damage-") as folder:
        campaign = Campaign(Path(folder), seed=given.seed)
        for kind in given.kind or KINDS:
            cases = list(campaign.cases(kind, flips=given.flips, cuts=given.cuts))
            if given.each:
                print(*(f"  {case.end:12} {case.damage} {case.why}" for case in cases), sep="\n")
            through += [case for case in cases if case.end == THROUGH]
            print(row(kind, cases), flush=True)
        campaign.assert_others_are_well()
    print("the other two voters agree, hold all rows, and were sent nothing by the damaged one")
    print(*(f"GOT THROUGH: {case.damage}: {case.why}" for case in through), sep="\n")
    return 1 if through else 0


def row(kind: str, cases: list[Case]) -> str:
    """One line of the table. `doctor alone`: what the files give away without any peer."""
    ends = Counter(case.end for case in cases)
    counts = [f"{ends[end]:>{width}}" for end, width in zip(ENDS, (14, 11, 13, 12), strict=True)]
    seen = sum(case.doctor for case in cases)
    return f"{kind:8} {len(cases):>5} {' '.join(counts)} {seen:>13}"


if __name__ == "__main__":
    sys.exit(main())

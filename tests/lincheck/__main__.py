"""Judge histories: `python -m tests.lincheck FILE…`. Exit 0: linearizable, 1: not, 2: unknown."""

from __future__ import annotations

import argparse
import sys

from tests.lincheck.checking import SECONDS_MAX, Malformed, check_history


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/lincheck")
    parser.add_argument("files", nargs="+", metavar="FILE", help="a history, as JSON lines")
    parser.add_argument("--seconds-max", type=float, default=SECONDS_MAX, help="for each file")
    options = parser.parse_args()
    worst = 0
    for name in options.files:
        try:
            verdict = check_history(name, seconds_max=options.seconds_max)
        except (Malformed, OSError) as error:
            print(f"{name}: UNKNOWN: {error}", file=sys.stderr)
            worst = max(worst, 2)
            continue
        print(f"{name}: {verdict}")
        worst = max(worst, {True: 0, False: 1, None: 2}[verdict.ok])
    return worst


if __name__ == "__main__":
    raise SystemExit(main())

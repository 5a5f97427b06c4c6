"""Faults on real node processes under load, judged by what clients and workers saw.

Exit 0: every promise held. 1: one was broken. 2: the run does not count: too little load or too
few faults, or this host does not allow this kind.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.torture import host, lab
from tests.torture.bars import kinds_in_order
from tests.torture.kinds import KINDS
from tests.torture.report import holds, run_all, show, summary, to_json
from tests.torture.run import Order, torture

NODES_MAX = 7


def main() -> int:
    options = _options()
    for one in (signal.SIGINT, signal.SIGTERM):  # a shell starts what is in the background deaf
        signal.signal(one, signal.default_int_handler)
    if options.place:
        lab.enter(sys.argv[1:])
        print("namespaces" if lab.is_inside() else f"loopback: {lab.why_not_inside()}")
        return 0
    if options.report:
        said = json.dumps(to_json(options.report)) if options.json else summary(options.report)
        print(said)
        return 0 if holds(options.report) else 1
    if not lab.is_entered():
        host.end_with_parent()
        for found in host.sweep():
            print(found, file=sys.stderr)
    try:
        return _all(options) if options.all else _one(options)
    except lab.NoLab as error:
        print(f"not run: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _all(options: argparse.Namespace) -> int:
    kinds = options.kinds.split(",") if options.kinds else kinds_in_order()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    return run_all(kinds, seeds, seconds=options.seconds, out=options.out)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/torture", description=__doc__)
    parser.add_argument("--fault", choices=sorted(KINDS), metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="at least so long, and 5 faults"
    )
    parser.add_argument("--history", type=Path, default=Path("history.jsonl"), metavar="FILE")
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--slack", type=float, default=1.0, help="bars of time times this")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the nodes' folders there")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("--all", action="store_true", help="every kind and seed not yet in --out")
    parser.add_argument("--kinds", default="", help="with --all: only these, with commas between")
    parser.add_argument("--seeds", default="1,2,3", help="with --all")
    parser.add_argument("--out", type=Path, default=Path("torture"), metavar="DIR")
    parser.add_argument("--place", action="store_true", help="say where it would run")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="every bar of what --all wrote; exit 1: missed"
    )
    options = parser.parse_args()
    if not (options.fault or options.all or options.report or options.place):
        parser.error("give --fault KIND, --all or --report DIR")
    if not 3 <= options.nodes <= NODES_MAX:
        parser.error(f"--nodes: 3 to {NODES_MAX}")
    return options


def _one(options: argparse.Namespace) -> int:
    lab.enter(sys.argv[1:])
    order = Order(
        kind=KINDS[options.fault],
        seed=options.seed,
        seconds=options.seconds,
        history=options.history,
        node_count=options.nodes,
        slack=options.slack,
        keep=options.keep,
    )
    report = torture(order)
    print(json.dumps(report.to_json()) if options.json else show(report))
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())

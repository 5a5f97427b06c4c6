"""Feed hostile inputs: `python -m tests.hostile --inputs 1000000 [--kind K]… [--jobs N]`."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.hostile.kinds import KINDS
from tests.hostile.running import Broken, run_kind


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/hostile")
    parser.add_argument("--inputs", type=int, default=10_000, help="of each kind")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="all if absent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="kinds at a time, a process each")
    parser.add_argument("--round", type=int, help="only this round, to see a failure again")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    if len(kinds) > 1:
        return _run_each(kinds, options)
    logging.disable()  # what is refused is often worth a line; here it is the rule
    kind = KINDS[kinds[0]]
    first = options.round or 0
    inputs = options.inputs if options.round is None else kind.round_inputs
    try:
        tally = run_kind(kind, inputs=inputs, seed=options.seed, first_round=first, told=_tell)
    except Broken as broken:
        print(f"BROKEN {broken}", flush=True)
        if options.round is not None:
            raise
        return 1
    print(tally, flush=True)
    return 0


def _run_each(kinds: list[str], options: argparse.Namespace) -> int:
    """A process for each kind, so that the memory of one says nothing of another."""

    def run(kind: str) -> int:
        command = [sys.executable, "-m", "tests.hostile", "--kind", kind]
        command += ["--inputs", str(options.inputs), "--seed", str(options.seed)]
        return subprocess.run(command, check=False).returncode

    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(run, kinds))
    failed = [kind for kind, code in zip(kinds, codes, strict=True) if code]
    print(f"seed {options.seed}: {len(kinds) - len(failed)} of {len(kinds)} kinds held")
    return 1 if failed else 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())

"""Feed hostile inputs: `python -m tests.hostile --inputs 1000000 [--kind K]… [--jobs N] [--out DIR]`.

Each kind has a bar of its own, which --report shows: 1,000,000 inputs for all but a few that feed
the bytes of another kind to a whole node.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.hostile.kinds import KINDS
from tests.hostile.results import Result, commit_here, load, missing, report
from tests.hostile.running import BAR_INPUTS, Broken, Tally, run_kind


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/hostile", epilog=_lower_bars())
    parser.add_argument(
        "--inputs", type=int, default=10_000, help="of each kind, but no more than its bar"
    )
    parser.add_argument("--kind", action="append", choices=sorted(KINDS), help="all if absent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="kinds at a time, a process each")
    parser.add_argument("--round", type=int, help="only this round, to see a failure again")
    parser.add_argument("--out", type=Path, help="keep what was found here, and go on from it")
    parser.add_argument(
        "--report",
        type=Path,
        help="only show what was found there, with the bar of each kind",
    )
    options = parser.parse_args()
    if options.report is not None:
        return _report(options.report)
    kinds = options.kind or list(KINDS)
    if len(kinds) > 1:
        return _run_each(kinds, options)
    logging.disable()  # what is refused is often worth a line; here it is the rule
    if options.round is not None:
        return _run_round(kinds[0], options.seed, options.round)
    return _run_one(kinds[0], options)


def _lower_bars() -> str:
    """Which kinds are to have fewer inputs than others, in words."""
    lower = [kind for kind in KINDS.values() if kind.bar_inputs < BAR_INPUTS]
    told = ", ".join(f"{kind.name} {kind.bar_inputs:,}" for kind in lower)
    return (
        f"The bar is {BAR_INPUTS:,} inputs of each kind. Of kinds that start a whole node on bytes "
        f"of which another kind has as many as that, it is lower: {told}."
    )


def _has_held(kind: str, options: argparse.Namespace) -> bool:
    """Whether what is kept says that this kind has had its inputs."""
    found = load(options.out, kind) if options.out is not None else None
    return found is not None and found.has_held(
        inputs=_wanted_inputs(kind, options), seed=options.seed
    )


def _wanted_inputs(kind: str, options: argparse.Namespace) -> int:
    return min(options.inputs, KINDS[kind].bar_inputs)


def _run_one(kind: str, options: argparse.Namespace) -> int:
    if _has_held(kind, options):
        return 0
    wanted = _wanted_inputs(kind, options)
    found = load(options.out, kind) if options.out is not None else None
    is_same = found is not None and found.seed == options.seed and not found.broken
    start = found.tally if found is not None and is_same else Tally(kind)
    before = found.commits if found is not None and is_same else ()
    commits = tuple(dict.fromkeys((*before, commit_here())))
    result = Result(start, wanted, options.seed, commits)

    def keep(tally: Tally, broken: str = "") -> None:
        nonlocal result
        result = replace(result, tally=tally, broken=broken)
        if options.out is not None:
            result.save(options.out)

    def told(tally: Tally) -> None:
        keep(tally)
        print(f"{kind}: {tally.inputs:,} of {wanted:,}", file=sys.stderr, flush=True)

    try:
        tally = run_kind(KINDS[kind], inputs=wanted, seed=options.seed, after=start, told=told)
    except Broken as broken:
        print(f"BROKEN {broken}", flush=True)
        keep(result.tally, str(broken))
        return 1
    keep(tally)
    print(tally, flush=True)
    return 0


def _run_round(kind: str, seed: int, number: int) -> int:
    """One round, so that a failure is seen again, with where it comes from."""
    round_inputs = KINDS[kind].round_inputs
    print(
        run_kind(KINDS[kind], inputs=round_inputs, seed=seed, after=Tally(kind, round_count=number))
    )
    return 0


def _run_each(kinds: list[str], options: argparse.Namespace) -> int:
    """A process for each kind, so that the memory of one says nothing of another."""

    def run(kind: str) -> int:
        command = [sys.executable, "-m", "tests.hostile", "--kind", kind]
        command += ["--inputs", str(options.inputs), "--seed", str(options.seed)]
        if options.out is not None:
            command += ["--out", str(options.out)]
        return subprocess.run(command, check=False).returncode

    left = [kind for kind in kinds if not _has_held(kind, options)]
    with ThreadPoolExecutor(options.jobs) as pool:
        codes = list(pool.map(run, left))
    failed = [kind for kind, code in zip(left, codes, strict=True) if code]
    print(f"seed {options.seed}: {len(kinds) - len(failed)} of {len(kinds)} kinds held")
    return 1 if failed else 0


def _report(folder: Path) -> int:
    """Shows what is there. 1 unless every kind has had its inputs, and none of them did harm."""
    results = [found for kind in KINDS if (found := load(folder, kind)) is not None]
    bars = {name: kind.bar_inputs for name, kind in KINDS.items()}
    print("\n".join(report(results, bars)))
    lacking = missing(results, bars)
    if lacking:
        print(f"MISSED the bar of {len(lacking)} kinds: {', '.join(lacking)}")
    return 1 if lacking or any(result.broken for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())

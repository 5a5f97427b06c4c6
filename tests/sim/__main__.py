"""Run lives of whole nodes: `python -m tests.sim --seeds A..B`, or one with `--seed N --trace`."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))

from tests.sim import planted
from tests.sim.faults import Fault, faults_of
from tests.sim.mesh import Result, run_seed
from tests.sim.shrink import shrink

ROOT = Path(__file__).resolve().parents[2]
SHRUNK_MAX = 3  # failing seeds that one call shrinks


def main() -> int:
    options = parsed()
    if not options.trace:
        logging.disable(logging.CRITICAL)
    folder = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    root = Path(tempfile.mkdtemp(prefix="quorumesh-sim-", dir=folder))
    signal.signal(signal.SIGTERM, lambda *_: stopped(root))
    gc.freeze()
    gc.disable()  # a life is short and small: what it leaves is collected before the next
    try:
        if options.jobs > 1 and not options.worker:
            return run_jobs(options)
        with planted.switched_on(options.planted):
            return run_here(options, root)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def stopped(root: Path) -> None:
    """Told to end: at once, whatever code this meets, but without leaving the folder behind."""
    shutil.rmtree(root, ignore_errors=True)
    os._exit(143)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/sim", description=__doc__)
    parser.add_argument("--seeds", "--seed", default="0..19", help="A or A..B, both included")
    parser.add_argument("--minutes", type=float, default=2.0, help="simulated, for each seed")
    parser.add_argument("--jobs", type=int, default=1, help="so many processes at once")
    parser.add_argument("--trace", action="store_true", help="print all that happens")
    parser.add_argument("--faults", help="only these of the seed's faults, by number: 3,17,20")
    parser.add_argument("--weights", default="", help="of kinds of fault: rot=5,kill=0")
    parser.add_argument("--planted", choices=planted.names(), help="with this bug switched on")
    parser.add_argument("--first", action="store_true", help="stop at the first failing seed")
    parser.add_argument("--no-shrink", action="store_true", help="leave failing seeds as they are")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each seed")
    parser.add_argument("--worker", metavar="K/N", help=argparse.SUPPRESS)
    return parser.parse_args()


def seeds_of(options: argparse.Namespace) -> list[int]:
    first, _, last = options.seeds.partition("..")
    seeds = list(range(int(first), int(last or first) + 1))
    if options.worker:
        at, _, count = options.worker.partition("/")
        return seeds[int(at) :: int(count)]
    return seeds


class Summary:
    """What all seeds together came to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.seed_count = options, len(seeds_of(options))
        self.began_s = time.monotonic()
        self.done_count = self.simulated_ms = 0
        self.cpu_s = 0.0
        self.failed: list[int] = []
        self.counts: Counter[str] = Counter()

    def add(self, row: dict[str, Any]) -> None:
        self.done_count += 1
        self.simulated_ms += row["simulated_ms"]
        self.cpu_s += row["cpu_s"]
        self.counts.update(row["counts"])
        if self.options.json:
            print(json.dumps(row), flush=True)
        if row["violation"]:
            self.failed.append(row["seed"])
            if not self.options.json:
                print(f"\nFAILED seed {row['seed']} at {commit()}: {row['violation']}", flush=True)
        elif sys.stderr.isatty():
            print(f"\r{self.line()}", end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        minutes = self.simulated_ms / 60_000
        return (
            f"{self.done_count}/{self.seed_count} seeds, {minutes:.1f} simulated minutes, "
            f"{len(self.failed)} violations, {self.cpu_s / 60:.2f} CPU minutes "
            f"({self.cpu_s / max(minutes, 0.001):.2f} s each)"
        )

    def tell(self) -> None:
        print(f"{self.line()}, {time.monotonic() - self.began_s:.0f} s, commit {commit()}")
        print("  " + ", ".join(f"{name} {count}" for name, count in self.counts.items()))


def run_here(options: argparse.Namespace, root: Path) -> int:
    summary = Summary(options)
    for seed in seeds_of(options):
        began_s = time.process_time()
        result = run_one(options, root, seed)
        summary.add(asdict(result) | {"cpu_s": time.process_time() - began_s})
        if result.violation and not options.no_shrink and len(summary.failed) <= SHRUNK_MAX:
            shrink_one(options, root, result)
        if result.violation and options.first:
            break
    if not options.json:
        summary.tell()
    return 1 if summary.failed else 0


def run_one(options: argparse.Namespace, root: Path, seed: int) -> Result:
    tell = print if options.trace else None
    faults = planned(options, seed)
    if options.faults is not None:
        chosen = [int(number) for number in options.faults.split(",") if number]
        faults = [faults[number] for number in chosen]
    return run_seed(seed, root, minutes=options.minutes, faults=faults, tell=tell)


def planned(options: argparse.Namespace, seed: int) -> list[Fault]:
    others = dict(pair.split("=") for pair in options.weights.split(",") if pair)
    weights = planted.weights_of(options.planted) | {
        kind: int(weight) for kind, weight in others.items()
    }
    return faults_of(seed, int(options.minutes * 60_000), others=weights)


def shrink_one(options: argparse.Namespace, root: Path, failed: Result) -> None:
    """Print the fewest faults of this seed that still break something."""
    faults = planned(options, failed.seed)
    last: list[Result] = [failed]

    def fails(chosen: list[int]) -> bool:
        picked = [faults[number] for number in chosen]
        result = run_seed(failed.seed, root, minutes=options.minutes, faults=picked)
        if result.violation:
            last[0] = result
        return bool(result.violation)

    met = [n for n, fault in enumerate(faults) if fault.at_ms <= failed.simulated_ms]
    fewest = shrink(met, fails)
    numbers = ",".join(str(number) for number in fewest)
    bug = f" --planted {options.planted}" if options.planted else ""
    bug += f" --weights {options.weights}" if options.weights else ""
    where = sys.stderr if options.json else sys.stdout
    print(f"  with {len(fewest)} of {len(faults)} faults: {last[0].violation}", file=where)
    for number in fewest:
        print(f"    {number:3} {faults[number]}", file=where)
    print(
        f"  scripts/sim --seed {failed.seed} --minutes {options.minutes} --faults {numbers}{bug} "
        "--trace",
        file=where,
        flush=True,
    )


def run_jobs(options: argparse.Namespace) -> int:
    """Share the seeds out among processes, and put what they say together."""
    own = [*sys.argv[1:], "--no-shrink", "--json"]
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sim", *own, "--worker", f"{at}/{options.jobs}"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        for at in range(options.jobs)
    ]
    summary = Summary(options)
    try:
        for line in lines_of([worker.stdout for worker in workers if worker.stdout]):
            summary.add(json.loads(line))
            if summary.failed and options.first:
                break
        else:
            if any(worker.wait() not in (0, 1) for worker in workers):
                print("a worker ended in a way it should not", file=sys.stderr)
                return 2
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    if not options.json:
        summary.tell()
    for seed in sorted(summary.failed)[:SHRUNK_MAX] if not options.no_shrink else ():
        subprocess.run(
            [sys.executable, "-m", "tests.sim", *sys.argv[1:], "--seeds", str(seed), "--jobs", "1"],
            cwd=ROOT,
            check=False,
        )
    return 1 if summary.failed else 0


def lines_of(streams: list[IO[bytes]]) -> Any:
    """Lines of all streams as they come."""
    with selectors.DefaultSelector() as selector:
        for stream in streams:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                line = key.fileobj.readline()  # type: ignore[union-attr]  # they are pipes
                if line:
                    yield line
                else:
                    selector.unregister(key.fileobj)


def commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "an unknown commit"


if __name__ == "__main__":
    raise SystemExit(main())

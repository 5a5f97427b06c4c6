"""What runs have found, a file for each kind, so that a long run can be stopped and goes on later."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tests.hostile.running import Tally

SAID_CHARS_MAX = 4_000
PROGRAM = ("consensus", "mesh", "node", "proto", "tests/hostile")


@dataclass(frozen=True, slots=True)
class Result:
    """A kind's run so far, or how it ended. `commits` are the program's, each time it went on."""

    tally: Tally
    inputs_wanted: int
    seed: int
    commits: tuple[str, ...]
    broken: str = ""  # what an input did that none may

    @property
    def is_over(self) -> bool:
        return self.tally.inputs >= self.inputs_wanted

    def has_held(self, *, inputs: int, seed: int) -> bool:
        """Whether so many inputs have done nothing that none may."""
        return self.seed == seed and self.tally.inputs >= inputs and not self.broken

    def save(self, folder: Path) -> None:
        told = {**asdict(self.tally), "inputs_wanted": self.inputs_wanted, "seed": self.seed}
        told |= {"commits": self.commits, "uncaught": int(bool(self.broken))}
        told["broken"] = self.broken[:SAID_CHARS_MAX]
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{self.tally.kind}.json.tmp"
        partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        partial.replace(folder / f"{self.tally.kind}.json")


def load(folder: Path, kind: str) -> Result | None:
    """What is known of a kind there."""
    path = folder / f"{kind}.json"
    if not path.exists():
        return None
    told = json.loads(path.read_text(encoding="utf-8"))
    tally = Tally(**{field.name: told[field.name] for field in fields(Tally)})
    # Until there were several, a file named the last one only.
    commits = tuple(told.get("commits") or [f"?..{told['commit']}"])
    return Result(tally, told["inputs_wanted"], told["seed"], commits, told["broken"])


def commit_here() -> str:
    """The commit of the program that is fed, with a plus when its files are others by now."""

    def git(*words: str) -> str:
        return subprocess.run(("git", *words), capture_output=True, text=True, check=True).stdout

    name = git("rev-parse", "--short=12", "HEAD").strip()
    return name + ("+" if git("status", "--porcelain", "--", *PROGRAM).strip() else "")


def missing(results: list[Result], bars: Mapping[str, int]) -> list[str]:
    """The kinds that have not had as many inputs yet as their bar says."""
    had = {result.tally.kind: result.tally.inputs for result in results}
    return [kind for kind, bar_inputs in bars.items() if had.get(kind, 0) < bar_inputs]


def report(results: list[Result], bars: Mapping[str, int]) -> list[str]:
    """A table, a line for each kind with its bar, and the sum."""
    lines = [
        f"{'kind':<24} {'inputs':>10} {'bar':>9} {'seed':>4} {'commits':<27} {'CPU s':>7} {'µs':>6} "
        f"{'accepted':>9} {'refused':>9} {'MiB':>5} uncaught"
    ]
    for result in results:
        tally = result.tally
        each_us = tally.cpu_seconds / max(1, tally.inputs) * 1e6
        state = str(int(bool(result.broken))) + (
            "" if result.is_over or result.broken else " so far"
        )
        lines.append(
            f"{tally.kind:<24} {tally.inputs:>10,} {bars[tally.kind]:>9,} {result.seed:>4} "
            f"{' '.join(result.commits):<27} "
            f"{tally.cpu_seconds:>7,.0f} {each_us:>6,.0f} {tally.accepted:>9,} "
            f"{tally.refused:>9,} {tally.rss_growth_bytes / (1 << 20):>5.1f} {state}"
        )
    over_count = sum(result.is_over and not result.broken for result in results)
    lines.append(
        f"{over_count} kinds are through, {sum(r.tally.inputs for r in results):,} inputs in "
        f"{sum(r.tally.cpu_seconds for r in results):,.0f} s of a processor, "
        f"{sum(bool(r.broken) for r in results)} uncaught errors"
    )
    return lines

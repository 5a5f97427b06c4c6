"""Many lives of whole meshes over virtual time. SIM_SEEDS=2000 makes it an evening's work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.life import keeps_majority
from tests.sim.shrink import shrink

ROOT = Path(__file__).resolve().parents[2]
SEEDS = int(os.environ.get("SIM_SEEDS", "200"))
FIRST = int(os.environ.get("SIM_FIRST", "0"))
MINUTES = 2.0
CPU_MINUTES_MAX = 10.0 * SEEDS / 200  # the bar, on a quiet machine
# Processor time grows with what runs beside: the same lives cost up to a half more in the same hour.
SLACK = 1.5


def rows_of(*arguments: str, hash_seed: str = "0") -> list[dict[str, object]]:
    """What the simulator says of each seed."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.sim", "--json", "--no-shrink", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


@pytest.mark.timeout(1_500)
def test_whatever_happens_to_a_mesh_its_promises_hold() -> None:
    last = FIRST + SEEDS - 1

    rows = rows_of("--seeds", f"{FIRST}..{last}", "--minutes", str(MINUTES), "--jobs", "2")

    cpu_minutes = sum(float(str(row["cpu_s"])) for row in rows) / 60
    print(f"{len(rows)} seeds x {MINUTES} simulated minutes: {cpu_minutes:.1f} CPU minutes")
    assert [(row["seed"], row["violation"]) for row in rows if row["violation"]] == []
    assert len(rows) == SEEDS
    assert cpu_minutes <= CPU_MINUTES_MAX * SLACK


@pytest.mark.timeout(900)
def test_one_seed_is_one_trace_bit_for_bit() -> None:
    first = rows_of("--seeds", "3..5", "--minutes", "0.5", hash_seed="1")
    again = rows_of("--seeds", "3..5", "--minutes", "0.5", hash_seed="2")

    assert [row["trace"] for row in first] == [row["trace"] for row in again]
    assert len({str(row["trace"]) for row in first}) == 3


def test_shrinking_finds_the_two_faults_that_matter() -> None:
    fewest = shrink(list(range(40)), lambda chosen: {7, 31} <= set(chosen))

    assert fewest == [7, 31]


@pytest.mark.parametrize(
    ("voter_count", "harmed_count", "leaving_count", "expected"),
    [
        (5, 2, 0, True),
        (5, 3, 0, False),
        (5, 2, 1, False),  # a removal under way: two of four
        (5, 1, 2, True),
        (3, 1, 1, False),
        (4, 1, 1, True),
    ],
)
def test_no_more_is_damaged_than_voters_can_lose_while_some_are_leaving(
    voter_count: int, harmed_count: int, leaving_count: int, expected: bool
) -> None:
    assert keeps_majority(voter_count, harmed_count, leaving_count) is expected

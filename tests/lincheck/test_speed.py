"""A hundred thousand operations are judged within a minute, also where one key has many."""

from __future__ import annotations

import json
from random import Random

import pytest

from tests.lincheck.checking import check_history
from tests.lincheck.generate import history_lines

OPERATION_COUNT = 100_000
SECONDS_MAX = 60.0


@pytest.mark.parametrize(
    ("per_key", "overlap"), [(20, 6), (1_000, 20)], ids=["many keys", "heavy keys"]
)
def test_a_hundred_thousand_operations_are_judged_within_a_minute(
    per_key: int, overlap: int
) -> None:
    lines = history_lines(
        Random(7), operation_count=OPERATION_COUNT, per_key=per_key, overlap=overlap
    )

    verdict = check_history(lines, seconds_max=SECONDS_MAX)

    assert (verdict.ok, verdict.operations) == (True, OPERATION_COUNT)
    assert verdict.keys == OPERATION_COUNT // per_key
    assert verdict.seconds < SECONDS_MAX


def test_one_lie_late_in_a_long_history_is_found_and_cut_out() -> None:
    lines = history_lines(Random(3), operation_count=20_000, per_key=1_000, overlap=20)
    last = max(
        (row for row in map(json.loads, lines) if row["key"] == "task:t0" and row["return_ns"]),
        key=lambda row: row["call_ns"],
    )
    lie = {"op": "get", "args": {}, "result": "ok", "value": {"state": "absent", "output": None}}
    later = {"call_ns": last["return_ns"] + 1, "return_ns": last["return_ns"] + 2}
    lines.append(json.dumps(last | {"process": -1} | lie | later))

    verdict = check_history(lines)

    assert (verdict.ok, verdict.key) == (False, "task:t0")
    assert "line 20001" in verdict.counterexample.splitlines()[1]
    assert len(verdict.counterexample.splitlines()) < 70


def test_the_generator_leaves_unknown_outcomes_refusals_and_overlaps() -> None:
    rows = [json.loads(line) for line in history_lines(Random(1), operation_count=4_000)]
    of_op = {(row["op"], row["result"]) for row in rows}

    assert {("submit", "unknown"), ("cancel", "unknown"), ("complete", "unknown")} <= of_op
    assert {("submit", "refused"), ("cancel", "refused"), ("complete", "refused")} <= of_op
    assert {("submit", "ok"), ("cancel", "ok"), ("complete", "ok"), ("grant", "ok")} <= of_op
    assert {row["value"].get("state") for row in rows if row["op"] == "get"} >= {
        *("absent", "running", "succeeded", "failed", "cancelled")
    }

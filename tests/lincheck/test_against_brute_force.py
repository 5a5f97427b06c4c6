"""The quick checker and the one that tries everything agree, on good histories and on spoilt ones."""

from __future__ import annotations

import json
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lincheck.brute import Row, is_linearizable
from tests.lincheck.checking import check_history
from tests.lincheck.generate import history_lines
from tests.lincheck.writing import cancel, complete, get, grant, lines_of, submit

OPERATIONS_MAX = 6
EXAMPLES_MAX = 1_500
SPOILT_COUNT = 2_000

times = st.tuples(st.integers(1, 12), st.one_of(st.none(), st.integers(0, 6))).map(
    lambda pair: (pair[0], None if pair[1] is None else pair[0] + pair[1])
)
specs = st.sampled_from(["a", "b"])
outputs = st.sampled_from(["x", "y"])
fences = st.integers(1, 4)


def refusals(*reasons: str) -> st.SearchStrategy[str]:
    return st.sampled_from(reasons)


task_rows = st.one_of(
    st.builds(submit, specs, times),
    st.builds(lambda spec, at: submit(spec, at, reason="ALREADY_EXISTS"), specs, times),
    st.builds(get, st.sampled_from(["absent", "running", "cancelled"]), times),
    st.builds(
        lambda state, at, output: get(state, at, output=output),
        st.sampled_from(["succeeded", "failed"]),
        times,
        outputs,
    ),
    st.builds(cancel, times),
    st.builds(lambda at, why: cancel(at, reason=why), times, refusals("FINISHED", "NOT_FOUND")),
)
claim_rows = st.one_of(
    st.builds(grant, fences, times),
    st.builds(lambda fence, at, output: complete(fence, at, output=output), fences, times, outputs),
    st.builds(
        lambda fence, at, why: complete(fence, at, reason=why),
        fences,
        times,
        refusals("STALE_FENCE", "FINISHED"),
    ),
)


def agree(rows: list[Row]) -> bool:
    """Both give the same verdict; which one."""
    verdict = check_history(lines_of(*rows))

    assert verdict.ok is is_linearizable(rows), verdict.counterexample
    return bool(verdict.ok)


@settings(max_examples=EXAMPLES_MAX, deadline=None)
@given(st.lists(task_rows, min_size=1, max_size=OPERATIONS_MAX))
def test_any_history_of_a_task_is_judged_alike(rows: list[Row]) -> None:
    agree(rows)


@settings(max_examples=EXAMPLES_MAX, deadline=None)
@given(st.lists(claim_rows, min_size=1, max_size=OPERATIONS_MAX))
def test_any_history_of_a_claim_is_judged_alike(rows: list[Row]) -> None:
    agree(rows)


def test_good_histories_spoilt_by_one_change_are_judged_alike_and_often_found_out() -> None:
    """Swapped answers, moved times, dropped operations: many a change makes an impossible story."""
    bad_counts = {"swap": 0, "move": 0, "drop": 0}
    for seed in range(SPOILT_COUNT):
        rng = Random(seed)
        lines = history_lines(rng, operation_count=14, per_key=7, overlap=4)
        rows = [json.loads(line) | {"process": n} for n, line in enumerate(lines)]
        prefix = rng.choice(("task:", "claim:"))
        rows = [row for row in rows if row["key"].startswith(prefix)]
        assert agree(rows), f"seed {seed} was good"
        change = rng.choice(sorted(bad_counts))
        bad_counts[change] += not agree(_spoil(rng, rows, change))

    assert all(count >= 50 for count in bad_counts.values()), bad_counts


def _spoil(rng: Random, rows: list[Row], change: str) -> list[Row]:
    rows = [dict(row) for row in rows]
    one = rng.choice(rows)
    match change:
        case "drop":
            if len(rows) > 1:
                rows.remove(one)
        case "move" if one["return_ns"] is not None:
            shift_ns = rng.choice((-8, 8)) * 1_000_000
            one["call_ns"] += shift_ns
            one["return_ns"] += shift_ns
        case "swap":
            alike = [row for row in rows if row["op"] == one["op"] and row["return_ns"]]
            if one["return_ns"] and len(alike) > 1:
                other = rng.choice([row for row in alike if row is not one])
                for name in ("result", "value"):
                    one[name], other[name] = other[name], one[name]
    return rows

"""What cannot be read or cannot be decided in time is told as such, and never passes for good."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lincheck.checking import Malformed, check_history
from tests.lincheck.history import read_operations
from tests.lincheck.search import Answer, find_order
from tests.lincheck.writing import cancel, complete, get, grant, lines_of, submit

ROOT = Path(__file__).resolve().parents[2]
FINE = json.loads(lines_of(submit("a", (1, 2)))[0])
MALFORMED = {
    "not JSON": ("{", "not JSON"),
    "no object": ("[1]", "not an object"),
    "a deep nest": ("[" * 60_000, "not JSON"),
    "a field is missing": ({**FINE, "node": ...}, "not an object with exactly"),
    "a field too many": ({**FINE, "more": 1}, "not an object with exactly"),
    "a key of no kind": ({**FINE, "key": "kv:x"}, "no operation 'submit' is known of key"),
    "an operation of the other kind": ({**FINE, "op": "grant"}, "no operation 'grant' is known"),
    "an unknown result": ({**FINE, "result": "timeout"}, "no result 'timeout'"),
    "ok but never returned": ({**FINE, "return_ns": None}, "return_ns is null exactly if"),
    "unknown but returned": ({**FINE, "result": "unknown"}, "return_ns is null exactly if"),
    "returned before its call": ({**FINE, "return_ns": 0}, "returned before"),
    "time as a float": ({**FINE, "call_ns": 1.5}, "call_ns is no whole number"),
    "a process of yes": ({**FINE, "process": True}, "process is no whole number"),
    "no spec": ({**FINE, "args": {}}, "spec is missing"),
    "refused for no reason": ({**FINE, "result": "refused"}, "cannot be refused for None"),
    "refused though it may be done": (
        {**FINE, "result": "refused", "value": {"reason": "DEADLINE_EXCEEDED"}},
        "its result is unknown",
    ),
    "a state of no name": (
        {**FINE, "op": "get", "value": {"state": "odd"}},
        "no state 'odd'",
    ),
    "a grant of no fence": (
        {**FINE, "key": "claim:t/s", "op": "grant", "args": {"session": "w"}, "value": {}},
        "fence is missing",
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_line_is_an_error_that_names_it(name: str) -> None:
    row, problem = MALFORMED[name]
    if isinstance(row, dict):
        row = json.dumps({key: value for key, value in row.items() if value is not ...})
    lines = [json.dumps(FINE), "\n", str(row)]

    with pytest.raises(Malformed, match=f"line 3: .*{problem}"):
        check_history(lines)


def test_a_client_that_asks_again_before_its_answer_is_malformed() -> None:
    lines = lines_of(submit("a", (1, 5), process=7), get("running", (4, 6), process=7))

    with pytest.raises(Malformed, match="line 2: process 7 had not yet returned"):
        check_history(lines)


def test_a_client_that_goes_on_after_an_unknown_outcome_is_malformed() -> None:
    lines = lines_of(submit("a", (1, None), process=7), get("running", (4, 6), process=7))

    with pytest.raises(Malformed, match="line 2: process 7 had an operation of unknown outcome"):
        check_history(lines)


# Each of these may have been the first, and none of them explains the last.
PUZZLE = [*[submit(f"{n}", (1, None)) for n in range(500)], get("cancelled", (5, 6))]


def test_out_of_time_is_unknown() -> None:
    verdict = check_history(lines_of(*PUZZLE), seconds_max=0.0)

    assert verdict.ok is None
    assert verdict.counterexample == "task:t: the time ran out, 501 operations"


def test_with_time_the_same_is_decided() -> None:
    assert check_history(lines_of(*PUZZLE)).ok is False


def test_one_configuration_too_many_ends_the_search() -> None:
    operations = read_operations(lines_of(*PUZZLE))
    optional = [each.is_unknown for each in operations]

    enough, too_few = (
        find_order(operations, optional, until_s=float("inf"), configurations_max=most)
        for most in (500, 499)
    )

    assert (enough.answer, enough.configuration_count) == (Answer.NONE, 500)
    assert too_few.answer is Answer.TOO_MANY


def test_a_bad_key_counts_even_where_another_is_unknown() -> None:
    bad = [row | {"key": "task:bad"} for row in (submit("a", (1, 2)), get("absent", (3, 4)))]

    verdict = check_history(lines_of(*PUZZLE, *bad), seconds_max=0.0)

    assert (verdict.ok, verdict.key) == (False, "task:bad")


def test_unknown_operations_that_change_nothing_cost_nothing() -> None:
    rows = [submit("a", (1, None)) for _ in range(200)] + [cancel((2, None)) for _ in range(200)]
    rows += [get("running", (5 + n, 900)) for n in range(300)]
    rows += [get("cancelled", (910 + n, 2_000)) for n in range(300)]
    operations = read_operations(lines_of(*rows))

    found = find_order(operations, [each.is_unknown for each in operations], until_s=float("inf"))

    assert found.answer is Answer.FOUND
    assert found.configuration_count < 10


def test_orders_that_meet_again_are_followed_once() -> None:
    """Each lease may have lapsed before its successor's grant or by it: 2^30 orders, all in vain."""
    rows = []
    for fence in range(1, 31):
        rows.append(grant(fence, (10 * fence, 10 * fence + 1)))
        rows.append(complete(fence, (10 * fence + 2, 9_000), reason="STALE_FENCE"))
    rows.append(complete(1, (9_500, 9_501)))
    operations = read_operations(lines_of(*rows))

    found = find_order(operations, [False] * len(operations), until_s=float("inf"))

    assert found.answer is Answer.NONE
    assert found.configuration_count < 5 * len(rows)


def test_the_command_tells_good_from_bad_from_unknown(tmp_path: Path) -> None:
    histories = {
        0: [submit("a", (1, 2)), get("running", (3, 4))],
        1: [submit("a", (1, 2)), get("absent", (3, 4))],
        2: [submit("a", (1, 2), result="odd")],
    }
    for code, rows in histories.items():
        file = tmp_path / f"{code}.jsonl"
        file.write_text("\n".join(lines_of(*rows)) + "\n", encoding="utf-8")

        ran = subprocess.run(
            ["scripts/lincheck", str(file)],
            cwd=ROOT,
            env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )

        assert ran.returncode == code, ran.stderr

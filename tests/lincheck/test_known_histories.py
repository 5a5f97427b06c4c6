"""Histories whose verdict a reader can see, good and bad; each bad one for its own reason."""

from __future__ import annotations

import pytest

from tests.lincheck.checking import check_history
from tests.lincheck.writing import (
    Row,
    cancel,
    complete,
    get,
    grant,
    lines_of,
    submit,
)

GOOD: dict[str, list[Row]] = {
    "nothing at all": [],
    "submitted, seen, done": [
        submit("a", (1, 2)),
        get("running", (3, 4)),
        get("succeeded", (5, 6), output="d"),
        get("succeeded", (7, 8), output="d"),
    ],
    "the same submit sent again": [submit("a", (1, 2)), submit("a", (3, 4))],
    "another task under the name": [
        submit("a", (1, 2)),
        submit("b", (3, 4), reason="ALREADY_EXISTS"),
    ],
    "two that race for the name": [
        submit("a", (1, 9), reason="ALREADY_EXISTS"),
        submit("b", (2, 8)),
    ],
    "a read beside the submit sees neither or both": [
        submit("a", (1, 9)),
        get("running", (2, 3)),
        get("running", (4, 5)),
    ],
    "an unknown submit never took effect": [submit("a", (1, None)), get("absent", (90, 91))],
    "an unknown submit took effect very late": [
        submit("a", (1, None)),
        get("absent", (50, 51)),
        get("running", (60, 61)),
    ],
    "an unknown submit wins the name late": [
        submit("a", (1, None)),
        get("absent", (5, 6)),
        submit("b", (7, 9), reason="ALREADY_EXISTS"),
    ],
    "an unknown cancel took effect after a read": [
        submit("a", (1, 2)),
        cancel((3, None)),
        get("running", (4, 5)),
        get("cancelled", (6, 7)),
    ],
    "cancelled twice": [submit("a", (1, 2)), cancel((3, 4)), cancel((5, 6))],
    "cancelled too late, how it ended is read later": [
        submit("a", (1, 2)),
        cancel((3, 4), reason="FINISHED"),
        get("failed", (5, 6)),
    ],
    "refused for want of room, then taken": [
        submit("a", (1, 2), reason="RESOURCE_EXHAUSTED"),
        get("absent", (3, 4)),
        submit("a", (5, 6)),
    ],
    "times that touch may overlap": [submit("a", (1, 2)), get("absent", (2, 3))],
    "granted, completed, repeated": [
        grant(3, (1, 2)),
        complete(3, (3, 4)),
        complete(3, (5, 6)),
    ],
    "handed over, the late one refused": [
        grant(3, (1, 2), session="w1"),
        grant(7, (3, 4), session="w2"),
        complete(3, (5, 6), reason="STALE_FENCE"),
        complete(7, (7, 8)),
    ],
    "a late completion overtakes the next grant": [
        grant(3, (1, 2)),
        grant(7, (3, 9)),
        complete(3, (4, 5), reason="STALE_FENCE"),
        complete(7, (10, 11)),
    ],
    "lapsed to a grant that nobody heard of": [
        grant(3, (1, 2)),
        complete(3, (3, 4), reason="STALE_FENCE"),
        grant(9, (5, 6)),
        complete(9, (7, 8)),
    ],
    "an unknown completion had the effect": [
        grant(3, (1, 2)),
        complete(3, (3, None)),
        complete(3, (4, 5)),
        complete(3, (6, 7), output="y", reason="FINISHED"),
    ],
    "an unknown completion came too late": [
        grant(3, (1, 2)),
        complete(3, (3, None)),
        grant(4, (5, 6)),
        complete(4, (7, 8)),
    ],
    "closed by a cancel of its task": [
        grant(3, (1, 2)),
        complete(3, (3, 4), reason="FINISHED"),
        complete(3, (5, 6), reason="FINISHED"),
    ],
    "an offer stood since before the last lapse": [
        grant(3, (1, 5)),
        grant(4, (1, 9)),
        complete(4, (10, 12)),
    ],
    "a refusal that says nothing of the state": [
        grant(3, (1, 2)),
        complete(3, (3, 4), reason="UNAVAILABLE"),
        complete(3, (5, 6)),
    ],
}

BAD: dict[str, tuple[list[Row], str]] = {
    "a lost submit": (
        [submit("a", (1, 2)), get("absent", (3, 4))],
        "task:t: the task is lost",
    ),
    "a submit lost after it was seen": (
        [submit("a", (1, None)), get("running", (3, 4)), get("absent", (5, 6))],
        "task:t: the task is lost",
    ),
    "a stale read": (
        [
            submit("a", (1, 2)),
            get("succeeded", (3, 4), output="d"),
            get("running", (5, 6)),
        ],
        "task:t: stale read: running, but the task was succeeded",
    ),
    "a read of what nobody wrote": (
        [get("running", (1, 2))],
        "task:t: read of what nobody wrote: running",
    ),
    "cancelled though nobody asked": (
        [submit("a", (1, 2)), get("cancelled", (3, 4))],
        "task:t: read of what nobody wrote: cancelled",
    ),
    "a cancel after success accepted": (
        [submit("a", (1, 2)), get("succeeded", (3, 4), output="d"), cancel((5, 6))],
        "task:t: accepted, but the task was succeeded",
    ),
    "a cancel accepted after one was refused": (
        [submit("a", (1, 2)), cancel((3, 4), reason="FINISHED"), cancel((5, 6))],
        "task:t: accepted, but the task was ended",
    ),
    "a task resurrected after its cancel": (
        [submit("a", (1, 2)), cancel((3, 4)), get("running", (5, 6))],
        "task:t: stale read: running, but the task was cancelled",
    ),
    "a cancel that was acknowledged and undone": (
        [submit("a", (1, 2)), cancel((3, 4)), get("succeeded", (5, 6), output="d")],
        "task:t: a final state changed: succeeded, but the task was cancelled",
    ),
    "an output that changed": (
        [
            submit("a", (1, 2)),
            get("succeeded", (3, 4), output="d"),
            get("succeeded", (5, 6), output="e"),
        ],
        "task:t: a final result changed: output e, but it was d",
    ),
    "failed after it had succeeded": (
        [submit("a", (1, 2)), get("succeeded", (3, 4), output="d"), get("failed", (5, 6))],
        "task:t: a final state changed: failed, but the task was succeeded",
    ),
    "two tasks under one name": (
        [submit("a", (1, 2)), submit("b", (3, 4))],
        "task:t: accepted, but the name is taken by another task",
    ),
    "refused for a name that was free": (
        [submit("a", (1, 2), reason="ALREADY_EXISTS")],
        "task:t: refused as taken, but nothing has this name",
    ),
    "refused as taken by itself": (
        [submit("a", (1, 2)), submit("a", (3, 4), reason="ALREADY_EXISTS")],
        "task:t: refused as taken, but it is the same task",
    ),
    "not found by a cancel": (
        [submit("a", (1, 2)), cancel((3, 4), reason="NOT_FOUND")],
        "task:t: refused as NOT_FOUND, but the task was running",
    ),
    "two reads beside one submit, in the wrong order": (
        [submit("a", (1, 9)), get("running", (2, 3)), get("absent", (4, 5))],
        "task:t: the task is lost",
    ),
    "a refused submit took effect": (
        [submit("a", (1, 2), reason="RESOURCE_EXHAUSTED"), get("running", (3, 4))],
        "task:t: read of what nobody wrote",
    ),
    "two effects under two fences": (
        [
            grant(3, (1, 2)),
            complete(3, (3, 4)),
            complete(3, (5, 6), output="y"),
        ],
        "claim:t/s: two effects: fence 3 completed after fence 3 had",
    ),
    "two effects of racing holders": (
        [grant(3, (1, 2)), grant(4, (1, 9)), complete(4, (5, 11)), complete(3, (3, 10))],
        "claim:t/s: two effects: fence 3 completed after fence 4 had",
    ),
    "a completion by a stale fence": (
        [grant(3, (1, 2)), grant(4, (3, 4)), complete(3, (5, 6))],
        "claim:t/s: completed under a stale fence: 3, but held, greatest fence 4",
    ),
    "a stale fence accepted once its lease had lapsed": (
        [grant(3, (1, 2)), complete(3, (3, 4), reason="STALE_FENCE"), complete(3, (5, 6))],
        "claim:t/s: completed under a stale fence: 3, but free, greatest fence 3",
    ),
    "an unknown stale completion had the effect": (
        [
            grant(3, (1, 2)),
            grant(4, (3, 4)),
            complete(3, (5, None)),
            complete(4, (6, 7), reason="FINISHED"),
            complete(3, (8, 9)),
        ],
        "claim:t/s: an effect after the end: fence 3",
    ),
    "a fence used again": (
        [grant(3, (1, 2), session="w1"), grant(3, (3, 4), session="w2")],
        "claim:t/s: a fence was used again: 3",
    ),
    "a fence used again on another claim": (
        [grant(3, (1, 2)), grant(3, (3, 4), key="claim:t/other")],
        "claim:t/other: a fence was used again: 3, also granted on claim:t/s",
    ),
    "fences going back": (
        [grant(8, (1, 2)), grant(5, (3, 4))],
        "claim:t/s: fences went back: 5 after 8",
    ),
    "granted again after the effect": (
        [grant(3, (1, 2)), complete(3, (3, 4)), grant(9, (5, 6))],
        "claim:t/s: granted after the end: fence 9, but the subtask was done",
    ),
    "granted again after the end": (
        [grant(3, (1, 2)), complete(3, (3, 4), reason="FINISHED"), grant(9, (5, 6))],
        "claim:t/s: granted after the end: fence 9, but the subtask was closed",
    ),
    "a completion under a fence of nobody": (
        [grant(3, (1, 2)), complete(6, (3, 4))],
        "claim:t/s: completed under a fence that nobody was granted: 6",
    ),
    "an acknowledged effect lost": (
        [grant(3, (1, 2)), complete(3, (3, 4)), complete(3, (5, 6), reason="STALE_FENCE")],
        "claim:t/s: the effect is lost: fence 3 had completed, then STALE_FENCE",
    ),
    "an effect told as somebody else's": (
        [grant(3, (1, 2)), complete(3, (3, 4)), complete(3, (5, 6), reason="FINISHED")],
        "claim:t/s: the effect is lost: fence 3 had completed, then FINISHED",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_linearizable(name: str) -> None:
    verdict = check_history(lines_of(*GOOD[name]))

    assert verdict.ok is True, verdict.counterexample
    assert verdict.operations == len(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_told_with_its_reason(name: str) -> None:
    rows, reason = BAD[name]

    verdict = check_history(lines_of(*rows))

    assert verdict.ok is False
    assert verdict.counterexample.startswith(reason)
    assert verdict.key == verdict.counterexample.split(": ")[0]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_good_without_its_last_operation(name: str) -> None:
    """So each of them has just one fault, and the one that it is named for."""
    rows, _ = BAD[name]

    assert check_history(lines_of(*rows[:-1])).ok is True


def test_a_counterexample_shows_the_shortest_beginning_with_times_and_the_culprit() -> None:
    later = [get("succeeded", (100 + n, 100 + n), output="d") for n in range(10)]
    rows = [submit("a", (1, 2)), get("running", (2.5, 4)), get("absent", (3, 5)), *later]

    told = check_history(lines_of(*rows)).counterexample.splitlines()

    assert len(told) == 3 + 3
    assert told[2].endswith("running. Times in ms from the first call:")
    assert "2.000 –        4.000  get absent -> ok  (line 3 p2@n1)  <== here" in told[5]


def test_one_bad_key_among_good_ones_is_found() -> None:
    good = [row | {"key": f"task:{n}"} for n in range(40) for row in GOOD["submitted, seen, done"]]
    bad = [row | {"key": "task:bad"} for row in BAD["a lost submit"][0]]
    rows = [*good[:60], *bad, *good[60:]]
    lines = lines_of(*rows)

    verdict = check_history(lines)

    assert (verdict.ok, verdict.key, verdict.keys) == (False, "task:bad", 41)

"""The measuring parts of the harness: what they count, and what they do not let pass."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from quorumesh.v1.tasks_pb2 import TaskEvent, TaskInfo
from quorumesh.v1.values_pb2 import TASK_CANCELLED, TASK_FAILED, TASK_RUNNING, TASK_SUCCEEDED, Value

from tests.lincheck.checking import check_history
from tests.torture.clients import make_task
from tests.torture.history import History, Operation, longest_gap_ns
from tests.torture.lab import Loopback, NoLab
from tests.torture.verdict import double_effects, undone, wrong_results
from tests.torture.worker import Effects


def test_the_gap_reaches_from_the_last_write_before_to_the_first_after() -> None:
    assert longest_gap_ns([10, 20, 90, 95], since_ns=30, until_ns=96) == 70


def test_a_gap_that_is_still_open_counts_to_the_end() -> None:
    assert longest_gap_ns([10, 20], since_ns=15, until_ns=100) == 80


def test_what_was_before_a_dark_time_does_not_make_its_gap(tmp_path: Path) -> None:
    with History(tmp_path / "h.jsonl") as history:
        for at_ns in (10, 90):
            history.note(Operation(1, "n", "submit", "task:a", {"spec": "x"}, "ok", {}, 1, at_ns))

        assert history.write_gap_s(60, 100) == 80 / 1e9
        assert history.write_gap_s(60, 100, knows_before=False) == 30 / 1e9


def test_a_task_depends_on_its_seed_alone() -> None:
    tasks = [make_task(random.Random(7)) for _ in range(2)]

    assert tasks[0].task_id == tasks[1].task_id
    assert tasks[0].spec == tasks[1].spec


def test_a_recorded_history_is_one_that_the_checker_reads(tmp_path: Path) -> None:
    with History(tmp_path / "h.jsonl") as history:
        one, other = history.new_process(), history.new_process()
        history.note(Operation(one, "n", "submit", "task:a", {"spec": "x"}, "ok", {}, 1, 5))
        absent = {"state": "absent", "output": None}
        history.note(Operation(other, "n", "get", "task:a", {}, "ok", absent, 7, 9))

    verdict = check_history(tmp_path / "h.jsonl")

    assert verdict.ok is False and verdict.key == "task:a"


def test_only_acknowledged_operations_make_the_rate(tmp_path: Path) -> None:
    with History(tmp_path / "h.jsonl") as history:
        refused = {"reason": "FINISHED"}
        history.note(Operation(1, "n", "cancel", "task:a", {}, "refused", refused, 1, 2))
        history.note(Operation(2, "n", "cancel", "task:a", {}, "unknown", {}, 1, None))

        assert history.rate_per_s(1e6) == 0
        assert history.unknown_count == 1


def test_a_task_that_runs_or_failed_or_was_cancelled_in_vain_is_undone() -> None:
    running, failed = TaskInfo(state=TASK_RUNNING), TaskInfo(state=TASK_FAILED)
    done = TaskInfo(state=TASK_SUCCEEDED)

    assert undone("t", running, was_cancelled=False) == ["t has not ended"]
    assert undone("t", failed, was_cancelled=False) == ["t failed:  "]
    assert undone("t", done, was_cancelled=True) == ["t was cancelled and is not"]
    assert undone("t", done, was_cancelled=False) == []
    assert undone("t", TaskInfo(state=TASK_CANCELLED), was_cancelled=True) == []


def test_a_result_that_nobody_was_told_of_is_wrong() -> None:
    info = TaskInfo(state=TASK_SUCCEEDED, output=Value(data=b"1"))
    effects = Effects(accepted={"t/only": {(3, "something else")}})

    assert wrong_results("t", info, b"2", Effects()) == ["t: the result is not the result"]
    assert wrong_results("t", info, None, effects) == [
        "t: the result is not the one that was accepted"
    ]
    assert wrong_results("t", info, b"1", Effects()) == []


def test_two_successes_in_a_story_are_a_double_effect() -> None:
    success = TaskEvent(kind=TaskEvent.SUBTASK_SUCCEEDED, subtask="only")
    end = TaskEvent(kind=TaskEvent.TASK_SUCCEEDED)

    assert double_effects("t", [success, success, end]) == ["t/only succeeded 2 times"]
    assert double_effects("t", [success, end, end]) == ["t ended 2 times"]
    assert double_effects("t", [success, end]) == []


def test_loopback_does_not_pretend_to_cut() -> None:
    with pytest.raises(NoLab, match="namespaces"):
        Loopback().cut([(1, 2)])

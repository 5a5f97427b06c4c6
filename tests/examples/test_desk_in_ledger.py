"""The desk's spawns, ballots and joins in a real ledger, and what the reports make of them."""

from __future__ import annotations

import io

from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.values_pb2 import Reason, SubtaskState, TaskState
from rich.console import Console

from examples.demo import show
from examples.demo.nodes import ROOT
from examples.demo.proof import Bar, Killed, bars, takeovers_of
from examples.support_desk.facts import accuracy, answers, output_of, part_rows, read_story
from examples.support_desk.questions import load_questions
from examples.support_desk.report import batch_lines, batch_table, compound_tree, score_table
from mesh import parse_spec
from tests.examples.desk_world import NODES, DeskWorld

COMPOUND = "What is a raw string, and when does the finally clause run?"


def rendered(*things: object) -> str:
    console = Console(file=io.StringIO(), width=120, no_color=True)
    for thing in things:
        console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_compound_question_is_answered_part_by_part_and_put_together() -> None:
    world = DeskWorld()
    task_id = world.submit("desk.split", {"question": COMPOUND})

    world.run()

    task = world.task(task_id)
    assert task.state == TaskState.TASK_SUCCEEDED, task.failure
    rows = part_rows(task, NODES)
    assert [row.question for row in rows] == [
        "What is a raw string?",
        "When does the finally clause run?",
    ]
    assert [row.topic for row in rows] == ["strings", "try"]
    ids = {subtask.id for subtask in task.subtasks}
    assert {"ask/part1/bm25", "ask/part2/write", "ask/compose"} <= ids
    tree = rendered(compound_tree(COMPOUND, rows))
    assert "ballot decided strings" in tree and "node-" in tree and "help('" in tree


def test_an_early_decision_calls_the_straggler_off() -> None:
    world = DeskWorld()
    task_id = world.submit("desk.split", {"question": "What is a raw string?"})

    world.run()

    rows = part_rows(world.task(task_id), NODES)
    (row,) = rows
    assert [ballot.cancelled for ballot in row.ballots].count(True) == 1
    assert row.tallies == {"strings": 2}
    story = read_story(world.story(task_id), NODES)
    assert story.revoked_count == 1
    assert "called off" in rendered(compound_tree("What is a raw string?", rows))


def test_a_batch_hears_every_voter_and_scores_each_agent() -> None:
    world = DeskWorld(slots=8)
    questions = load_questions()
    texts = [question.text for question in questions]
    task_id = world.submit("desk.batch", {"questions": texts}, name="batch")

    world.run()

    task = world.task(task_id)
    assert task.state == TaskState.TASK_SUCCEEDED, task.failure
    rows = answers(task, {f"batch/{q.id}": q.text for q in questions}, NODES)
    assert len(rows) == len(questions)
    assert all(len(row.ballots) == 3 and not any(b.cancelled for b in row.ballots) for row in rows)
    right = accuracy(rows, questions)
    assert right["vote"] >= len(rows) // 2
    collected = next(output_of(one) for one in task.subtasks if one.id == "batch/collect")
    assert collected["answered"] == len(questions)
    assert len(task.subtasks) == 2 + 5 * len(questions)
    story = read_story(world.story(task_id), NODES)
    assert not story.doubled and len(story.completions) == len(task.subtasks)
    table = rendered(batch_table(rows, questions), score_table(rows, questions))
    assert f"q{len(questions)}" in table and "The vote answers" in table
    assert rendered(batch_lines(rows, questions)).count("writer") == len(questions)


def test_a_killed_node_s_claims_are_taken_over_and_its_late_result_is_refused() -> None:
    world = DeskWorld(slots=2)
    questions = load_questions()[:4]
    texts = [question.text for question in questions]
    task_id = world.submit("desk.batch", {"questions": texts}, name="batch")
    held = world.run(until=lambda grant: grant.subtask.endswith("/tfidf"))
    assert held is not None
    node_id = next(s.node_id for s in world.task(task_id).subtasks if s.id == held.subtask)
    killed_wall_ms = world.story(task_id)[-1].wall_ms

    world.lose(node_id)
    late = world.do(world.result_of(held))
    world.run()

    assert late.reason == Reason.STALE_FENCE
    story = read_story(world.story(task_id), NODES)
    killed = Killed(node=NODES[node_id], wall_ms=killed_wall_ms, failover_s=0.5, lease_s=3)
    (taken,) = [t for t in takeovers_of(story, killed) if t.subtask == held.subtask]
    assert taken.lost_fence == held.fence < taken.fence
    assert taken.node != NODES[node_id]
    assert [event.kind for event in story.stale] == [TaskEvent.STALE_REFUSED]
    found = bars(
        story=story,
        subtask_count=22,
        answered=4,
        asked=4,
        killed=killed,
        digests={"node-1": "a", "node-2": "a", "node-3": "a"},
    )
    assert all(bar.holds for bar in found), found
    console = Console(file=io.StringIO(), width=120, no_color=True)
    show.proof(console, story, killed)
    show.bars(console, found)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert f"fence {held.fence}" in text and "(killed)" in text and "STALE_FENCE" in text


def test_a_bar_that_is_not_met_is_shown_as_such() -> None:
    world = DeskWorld()
    task_id = world.submit("desk.split", {"question": COMPOUND})
    world.run()
    story = read_story(world.story(task_id), NODES)
    killed = Killed(node="node-1", wall_ms=0, failover_s=0.5, lease_s=3)

    found = bars(
        story=story,
        subtask_count=999,
        answered=1,
        asked=2,
        killed=killed,
        digests={"node-1": "a", "node-2": "b", "node-3": "a"},
    )

    assert not any(bar.holds for bar in found)
    console = Console(file=io.StringIO(), width=120, no_color=True)
    show.bars(console, [*found, Bar("last", "", "", True)])
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().count("NOT MET") == len(found)


def test_the_question_file_is_a_task_that_the_desk_answers() -> None:
    world = DeskWorld()
    text = (ROOT / "examples" / "support_desk" / "question.yaml").read_text("utf-8")
    task_id = world.submit_spec(parse_spec(text))

    world.run()

    task = world.task(task_id)
    assert task.state == TaskState.TASK_SUCCEEDED, task.failure
    assert b'"topic":"try"' in task.output.data


def test_bad_questions_fail_their_task_with_the_reason() -> None:
    for given in ({"question": ""}, {"question": "x" * 2_001}, {"nothing": 1}):
        world = DeskWorld()
        task_id = world.submit("desk.split", given)

        world.run()

        task = world.task(task_id)
        assert task.state == TaskState.TASK_FAILED
        assert task.failure.code == "BAD_INPUT"
        assert task.subtasks[0].state == SubtaskState.FAILED

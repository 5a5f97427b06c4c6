"""What happened to a task, worked out from the ledger's own record: its state and its story.

Pure: takes a `TaskInfo` and its `TaskEvent`s as any node returns them, asks nobody.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quorumesh.v1.tasks_pb2 import BallotInfo, SubtaskInfo, TaskEvent, TaskInfo
from quorumesh.v1.values_pb2 import SubtaskState

from examples.support_desk.questions import Question

VOTERS = ("bm25", "tfidf", "names")


@dataclass(frozen=True, slots=True)
class Ballot:
    """One voter's part in one question."""

    voter: str
    topic: str  # empty: it did not vote
    node: str
    fence: int
    work_ms: int
    cancelled: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """One question, who voted for what, and what was written."""

    id: str
    question: str
    topic: str  # what the ballot decided; empty while undecided
    ballots: tuple[Ballot, ...]
    tallies: Mapping[str, int]
    writer_node: str
    quote: str
    source: str
    took_ms: int


@dataclass(frozen=True, slots=True)
class Takeover:
    """A claim that was lost and given to another worker under a later fence."""

    subtask: str
    lost_fence: int
    lost_node: str
    fence: int
    node: str
    claimed_wall_ms: int


@dataclass(frozen=True, slots=True)
class Story:
    """A task's events, sorted by what they prove."""

    completions: Mapping[str, int]  # SUBTASK_SUCCEEDED per subtask
    claim_count: int
    takeovers: tuple[Takeover, ...]
    stale: tuple[TaskEvent, ...]  # late results that the ledger refused
    revoked_count: int  # stragglers that a decided ballot called off

    @property
    def doubled(self) -> tuple[str, ...]:
        """Subtasks that took effect more than once: there must be none."""
        return tuple(name for name, count in sorted(self.completions.items()) if count != 1)


@dataclass(slots=True)
class _Claims:
    fence: int = 0
    node: str = ""
    lost: list[tuple[int, str]] = field(default_factory=list)


def read_story(events: Iterable[TaskEvent], node_names: Mapping[str, str]) -> Story:
    """Sort out a story. `node_names`: node id to what people call it."""
    claims: dict[str, _Claims] = {}
    completions: Counter[str] = Counter()
    takeovers: list[Takeover] = []
    stale: list[TaskEvent] = []
    claim_count = revoked_count = 0
    for event in events:
        held = claims.setdefault(event.subtask, _Claims())
        match event.kind:
            case TaskEvent.CLAIMED:
                claim_count += 1
                node = _name(event.node_id, node_names)
                takeovers.extend(
                    Takeover(event.subtask, lost, lost_node, event.fence, node, event.wall_ms)
                    for lost, lost_node in held.lost[-1:]
                )
                held.lost.clear()
                held.fence, held.node = event.fence, node
            case TaskEvent.ATTEMPT_LOST:
                held.lost.append((held.fence, held.node))
            case TaskEvent.SUBTASK_SUCCEEDED:
                completions[event.subtask] += 1
            case TaskEvent.SUBTASK_CANCELLED:
                revoked_count += 1
            case TaskEvent.STALE_REFUSED:
                stale.append(event)
    return Story(dict(completions), claim_count, tuple(takeovers), tuple(stale), revoked_count)


def answers(
    task: TaskInfo, questions: Mapping[str, str], node_names: Mapping[str, str]
) -> tuple[Answered, ...]:
    """One row per question. `questions`: path of its `desk.answer` to its text, "" if unknown."""
    subtasks = {subtask.id: subtask for subtask in task.subtasks}
    ballots = {ballot.id: ballot for ballot in task.ballots}
    return tuple(
        _answered(path, text, subtasks, ballots, node_names)
        for path, text in questions.items()
        if path in subtasks
    )


def part_rows(task: TaskInfo, node_names: Mapping[str, str]) -> tuple[Answered, ...]:
    """The parts of a compound question, in order; the writers say what each was asked."""
    parts = sorted(one.id for one in task.subtasks if one.skill == "desk.answer" and one.parent)
    return answers(task, dict.fromkeys(parts, ""), node_names)


def accuracy(rows: Sequence[Answered], questions: Sequence[Question]) -> dict[str, int]:
    """How many questions each agent got right alone, and how many the vote did."""
    expected = {question.id: question.topics for question in questions}
    right = dict.fromkeys((*VOTERS, "vote"), 0)
    for row in rows:
        wanted = expected[row.id]
        right["vote"] += row.topic in wanted
        for ballot in row.ballots:
            right[ballot.voter] += ballot.topic in wanted
    return right


def verdict(right: Mapping[str, int], count: int) -> str:
    """One honest sentence on whether voting paid."""
    best = max(VOTERS, key=lambda voter: right[voter])
    gain = right["vote"] - right[best]
    share = f"{right['vote']} of {count}"
    if gain > 0:
        return f"The vote answers {share}, {gain} more than its best agent alone ({best})."
    if gain == 0:
        return f"The vote answers {share}: no better than its best agent alone ({best})."
    return (
        f"The vote answers {share}, {-gain} fewer than {best} alone: "
        "here voting does not beat the best agent."
    )


def output_of(subtask: SubtaskInfo) -> Any:
    """A subtask's output as Python data; None when it has none."""
    data = subtask.output.data
    return (
        json.loads(data)
        if data and subtask.output.content_type in ("", "application/json")
        else None
    )


def _answered(
    path: str,
    text: str,
    subtasks: Mapping[str, SubtaskInfo],
    ballots: Mapping[str, BallotInfo],
    node_names: Mapping[str, str],
) -> Answered:
    ballot = ballots.get(f"{path}/vote", BallotInfo())
    writer = subtasks.get(f"{path}/write", SubtaskInfo())
    written = output_of(writer) or {}
    cast = tuple(
        _ballot(voter, subtasks[f"{path}/{voter}"], node_names)
        for voter in VOTERS
        if f"{path}/{voter}" in subtasks
    )
    began = [subtasks[path].claimed_wall_ms] if subtasks[path].claimed_wall_ms else []
    return Answered(
        id=path.rsplit("/", 1)[-1],
        question=text or str(written.get("question", "")),
        topic=ballot.label,
        ballots=cast,
        tallies={tally.label: tally.votes for tally in ballot.tallies},
        writer_node=_name(writer.node_id, node_names),
        quote=str(written.get("quote", "")),
        source=str(written.get("source", "")),
        took_ms=max(0, writer.ended_wall_ms - began[0]) if began and writer.ended_wall_ms else 0,
    )


def _ballot(voter: str, subtask: SubtaskInfo, node_names: Mapping[str, str]) -> Ballot:
    ended = subtask.ended_wall_ms and subtask.claimed_wall_ms
    return Ballot(
        voter=voter,
        topic=subtask.label,
        node=_name(subtask.node_id, node_names),
        fence=subtask.fence,
        work_ms=max(0, subtask.ended_wall_ms - subtask.claimed_wall_ms) if ended else 0,
        cancelled=subtask.state == SubtaskState.CANCELLED,
    )


def _name(node_id: str, node_names: Mapping[str, str]) -> str:
    return node_names.get(node_id, node_id)

"""Checks what users send, and works out the graph, before anything is written. Knows no rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from quorumesh.v1 import values_pb2
from quorumesh.v1.tasks_pb2 import BallotSpec, RetryPolicy, SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Label, Reason, Value

from consensus.ledger import limits

_PART = re.compile(r"[A-Za-z0-9_.\-]{1,64}", re.ASCII)


class Refused(Exception):
    """Raised inside the ledger only, before the first write; becomes an Outcome with its reason."""

    def __init__(self, reason: Reason.ValueType, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked graph. Positions count the subtasks first, then the ballots."""

    subtasks: Sequence[SubtaskSpec]
    ballots: Sequence[BallotSpec]
    positions: dict[str, int]
    needs: list[list[int]]  # of a ballot: its voters
    dependents: list[list[int]]  # without ballots: these hear their voters


def invalid(message: str) -> Refused:
    return Refused(values_pb2.INVALID, message)


def check_text(what: str, text: str, chars_max: int) -> None:
    if len(text) > chars_max:
        raise invalid(f"{what} has {len(text)} characters; at most {chars_max} are allowed")


def check_value(what: str, value: Value) -> None:
    if len(value.data) > limits.VALUE_BYTES_MAX:
        raise Refused(
            values_pb2.VALUE_TOO_LARGE,
            f"{what} has {len(value.data)} bytes; at most {limits.VALUE_BYTES_MAX} are allowed",
        )
    check_text(f"the content type of {what}", value.content_type, limits.NAME_CHARS_MAX)


def check_duration(what: str, duration_ms: int) -> None:
    if duration_ms > limits.DURATION_MS_MAX:
        raise invalid(f"{what} of {duration_ms} ms is more than a year")


def check_labels(what: str, labels: Sequence[Label]) -> None:
    if len(labels) > limits.LABELS_MAX:
        raise invalid(f"{what} has {len(labels)} labels; at most {limits.LABELS_MAX} are allowed")
    for label in labels:
        check_text(f"a label of {what}", label.key, limits.LABEL_CHARS_MAX)
        check_text(f"a label of {what}", label.value, limits.LABEL_CHARS_MAX)
        if not label.key:
            raise invalid(f"a label of {what} has no key")


def check_task(spec: TaskSpec) -> Plan:
    """The plan of a task. Raises Refused with a message that names the rule."""
    check_text("the name", spec.name, limits.NAME_CHARS_MAX)
    if not spec.subtasks:
        raise invalid("the task has no subtasks")
    if spec.band > limits.BAND_MAX:
        raise invalid(f"band {spec.band} is above {limits.BAND_MAX}")
    check_duration("the deadline", spec.deadline_ms)
    check_duration("the retention time", spec.retain_ms)
    plan = check_graph(spec.subtasks, spec.ballots)
    if spec.output and spec.output not in plan.positions:
        raise invalid(f"the output names {spec.output!r}, which does not exist")
    return plan


def check_graph(subtasks: Sequence[SubtaskSpec], ballots: Sequence[BallotSpec]) -> Plan:
    """The plan of subtasks and ballots that need only each other."""
    count = len(subtasks) + len(ballots)
    if count > limits.SUBTASKS_MAX:
        raise invalid(f"{count} subtasks and ballots; at most {limits.SUBTASKS_MAX} are allowed")
    positions: dict[str, int] = {}
    # Lists keep the messages' Python faces: each access to a repeated field would make new ones.
    subtasks, ballots = list(subtasks), list(ballots)
    nodes: list[SubtaskSpec | BallotSpec] = [*subtasks, *ballots]
    for position, node in enumerate(nodes):
        name = node.id
        if _PART.fullmatch(name) is None:
            raise invalid(
                f"the id {name[:80]!r} is not 1 to {limits.ID_CHARS_MAX} of A-Z a-z 0-9 _ . -"
            )
        if name in positions:
            raise invalid(f"the id {name!r} is used twice")
        positions[name] = position
    plan = Plan(
        subtasks, ballots, positions, [[] for _ in range(count)], [[] for _ in range(count)]
    )
    for position, subtask in enumerate(subtasks):
        _check_subtask(subtask)
        _link(plan, position, subtask)
    for position, ballot in enumerate(ballots, len(subtasks)):
        if not plan.needs[position]:
            raise invalid(f"the ballot {ballot.id!r} has no voters")
    if any(plan.needs):
        _check_acyclic(plan)
    return plan


def _check_subtask(subtask: SubtaskSpec) -> None:
    # What is absent is not looked at: this runs for every subtask submitted.
    what = f"subtask {subtask.id!r}"
    skill = subtask.skill
    if not skill:
        raise invalid(f"{what} names no skill")
    if len(skill) > limits.SKILL_CHARS_MAX:
        check_text(f"the skill of {what}", skill, limits.SKILL_CHARS_MAX)
    if subtask.HasField("input"):
        check_value(f"the input of {what}", subtask.input)
    if subtask.where:
        check_labels(what, subtask.where)
    if subtask.timeout_ms:
        check_duration(f"the time-out of {what}", subtask.timeout_ms)
    if subtask.HasField("retry"):
        _check_retry(what, subtask.retry)


def _check_retry(what: str, retry: RetryPolicy) -> None:
    if retry.max_attempts > limits.ATTEMPTS_MAX:
        raise invalid(f"{what} asks for more than {limits.ATTEMPTS_MAX} attempts")
    check_duration(f"the back-off of {what}", retry.backoff_ms)
    check_duration(f"the back-off of {what}", retry.backoff_ms_max)


def _link(plan: Plan, position: int, subtask: SubtaskSpec) -> None:
    for need in dict.fromkeys(subtask.needs):
        other = plan.positions.get(need)
        if other is None:
            raise invalid(f"subtask {subtask.id!r} needs {need!r}, which does not exist")
        plan.needs[position].append(other)
        plan.dependents[other].append(position)
    if subtask.ballot:
        other = plan.positions.get(subtask.ballot, -1)
        if other < len(plan.subtasks):
            raise invalid(
                f"subtask {subtask.id!r} votes in {subtask.ballot!r}, which is not a ballot"
            )
        plan.needs[other].append(position)


def _check_acyclic(plan: Plan) -> None:
    """Take away what has no open needs until nothing is left; what is left holds a cycle."""
    open_needs = [len(needs) for needs in plan.needs]
    free = [position for position, number in enumerate(open_needs) if number == 0]
    done = 0
    subtask_count = len(plan.subtasks)
    while free:
        position = free.pop()
        done += 1
        freed = list(plan.dependents[position])
        if position < subtask_count and plan.subtasks[position].ballot:
            freed.append(plan.positions[plan.subtasks[position].ballot])
        for other in freed:
            open_needs[other] -= 1
            if open_needs[other] == 0:
                free.append(other)
    if done == len(open_needs):
        return
    raise invalid(f"the needs form a cycle: {' needs '.join(_name_cycle(plan, open_needs))}")


def _name_cycle(plan: Plan, open_needs: list[int]) -> list[str]:
    nodes: list[SubtaskSpec | BallotSpec] = [*plan.subtasks, *plan.ballots]
    ids = [node.id for node in nodes]
    at = next(position for position, number in enumerate(open_needs) if number > 0)
    path: list[int] = []
    seen: dict[int, int] = {}
    while at not in seen:
        seen[at] = len(path)
        path.append(at)
        at = next(need for need in plan.needs[at] if open_needs[need] > 0)
    names = [ids[position] for position in [*path[seen[at] :], at]]
    return names if len(names) <= 12 else [*names[:11], "…"]

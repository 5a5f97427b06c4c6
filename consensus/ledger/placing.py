"""Adds a checked graph of subtasks and ballots to a task: on submission, and on spawning."""

from __future__ import annotations

from quorumesh.v1 import values_pb2
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskEvent
from quorumesh.v1.values_pb2 import Label

from consensus.ledger import limits
from consensus.ledger.events import note
from consensus.ledger.records import REF_SHIFT, Ballot, Edge, Subtask, Task
from consensus.ledger.specs import Plan, Refused
from consensus.ledger.store import Store


def place(
    store: Store, task: Task, plan: Plan, *, parent: Subtask | None = None, join: str = ""
) -> None:
    """Add the plan's rows; what needs nothing becomes ready."""
    base = task.next_n
    prefix = "" if parent is None else f"{parent.id}/"
    join_at = plan.positions[join] if parent is not None else -1
    count = len(plan.subtasks)
    ready = []
    for at, spec in enumerate(plan.subtasks):
        subtask = _make_subtask(store, task, plan, at)
        if parent is not None:
            subtask.id = prefix + spec.id
            subtask.parent_n = parent.n
            subtask.depth = parent.depth + 1
            subtask.joins_n = parent.n if at == join_at else 0
        store.add_subtask(subtask)
        if spec.HasField("input") and (spec.input.data or spec.input.content_type):
            store.add_input(subtask.ref, spec.input.data, spec.input.content_type)
        _add_edge(store, plan, at, subtask.ref, base)
        if not subtask.open_needs:
            ready.append(subtask)
    for at, ballot in enumerate(plan.ballots, count):
        ref = (task.seq << REF_SHIFT) | (base + at)
        parent_n = 0 if parent is None else parent.n
        store.add_ballot(
            Ballot(
                ref=ref,
                id=prefix + ballot.id,
                hear_all=int(ballot.hear_all),
                plurality=int(ballot.plurality),
                joins_n=parent_n if at == join_at else 0,
                parent_n=parent_n,
                voter_count=len(plan.needs[at]),
            )
        )
        _add_edge(store, plan, at, ref, base)
    task.next_n = base + count + len(plan.ballots)
    task.subtask_count += count
    for subtask in ready:
        store.make_ready(subtask)
        note(store, TaskEvent.READY, task, subtask)


def _add_edge(store: Store, plan: Plan, at: int, ref: int, base: int) -> None:
    needs, dependents = plan.needs[at], plan.dependents[at]
    if needs or dependents:
        store.add_edge(
            ref, Edge(tuple(base + n for n in needs), tuple(base + n for n in dependents))
        )


def check_classes(store: Store, plan: Plan) -> None:
    """Refuse with OVERLOADED what would ask for more different requirements than are kept."""
    if len(store.classes) + len(plan.subtasks) <= limits.CLASSES_MAX:
        return
    new = {_requirement(spec) for spec in plan.subtasks} - store.class_ids.keys()
    if len(store.classes) + len(new) > limits.CLASSES_MAX:
        raise Refused(
            values_pb2.OVERLOADED, f"the mesh knows at most {limits.CLASSES_MAX} requirements"
        )


def _requirement(spec: SubtaskSpec) -> tuple[str, bytes]:
    if not spec.where:
        return spec.skill, b""
    pairs = sorted({(label.key, label.value) for label in spec.where})
    where = SubtaskSpec(where=[Label(key=key, value=value) for key, value in pairs])
    return spec.skill, where.SerializeToString(deterministic=True)


def _make_subtask(store: Store, task: Task, plan: Plan, at: int) -> Subtask:
    spec = plan.subtasks[at]
    need_count = len(plan.needs[at])
    subtask = Subtask(
        ref=(task.seq << REF_SHIFT) | (task.next_n + at),
        id=spec.id,
        class_id=store.intern_class(*_requirement(spec)),
        band=task.band,
        timeout_ms=spec.timeout_ms,
        attempts_max=limits.ATTEMPTS_DEFAULT,
        backoff_ms=limits.BACKOFF_MS_DEFAULT,
        backoff_ms_max=limits.BACKOFF_MS_MAX_DEFAULT,
        optional=int(spec.optional),
        ballot_n=task.next_n + plan.positions[spec.ballot] if spec.ballot else 0,
        need_count=need_count,
        dependent_count=len(plan.dependents[at]),
        open_needs=need_count,
    )
    if spec.HasField("retry"):
        retry = spec.retry
        subtask.attempts_max = retry.max_attempts or limits.ATTEMPTS_DEFAULT
        subtask.backoff_ms = retry.backoff_ms or limits.BACKOFF_MS_DEFAULT
        subtask.backoff_ms_max = retry.backoff_ms_max or limits.BACKOFF_MS_MAX_DEFAULT
    return subtask

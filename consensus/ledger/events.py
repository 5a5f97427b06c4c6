"""What happened, noted as it happens. It decides nothing."""

from __future__ import annotations

from quorumesh.v1.tasks_pb2 import TaskEvent

from consensus.ledger.limits import MESSAGE_CHARS_MAX
from consensus.ledger.records import Subtask, Task
from consensus.ledger.store import Store


def note_task(store: Store, kind: TaskEvent.Kind.ValueType, task: Task, detail: str = "") -> None:
    store.touched[task.seq] = None
    meta = store.meta
    store.effects.events.add(
        kind=kind,
        task_id=task.task_id,
        revision=meta.applied_index,
        wall_ms=meta.wall_ms,
        detail=detail[:MESSAGE_CHARS_MAX],
    )


def note_alarm(store: Store, detail: str) -> None:
    """A bug was met that belongs to no task."""
    store.effects.events.add(
        kind=TaskEvent.ALARM,
        revision=store.meta.applied_index,
        wall_ms=store.meta.wall_ms,
        detail=detail,
    )


def note_ballot(store: Store, task: Task, ballot_id: str, detail: str) -> None:
    note_task(store, TaskEvent.BALLOT_DECIDED, task, detail)
    store.effects.events[-1].subtask = ballot_id


def note(
    store: Store, kind: TaskEvent.Kind.ValueType, task: Task, subtask: Subtask, detail: str = ""
) -> None:
    """Note what happened to a subtask, under its current or last grant."""
    store.touched[task.seq] = None
    meta = store.meta
    event = store.effects.events.add(
        kind=kind,
        task_id=task.task_id,
        subtask=subtask.id,
        revision=meta.applied_index,
        wall_ms=meta.wall_ms,
        subtask_ref=subtask.ref,
    )
    if detail:
        event.detail = detail[:MESSAGE_CHARS_MAX]
    if subtask.fence:
        event.fence = subtask.fence
        event.node_id = subtask.node_id
        event.worker = subtask.worker
        event.attempt = subtask.attempt


def note_stale(store: Store, subtask: Subtask, fence: int, what: str) -> None:
    """A refused late result: the one change that a refusal makes, so that the story can show it."""
    task = store.task_of(subtask.ref)
    store.touched[task.seq] = None
    node_id = worker = ""
    if fence == subtask.fence:
        node_id, worker = subtask.node_id, subtask.worker
    for line in filter(None, subtask.past.split("\n")):
        past_fence, past_node, past_worker = line.split("\t")
        if int(past_fence) == fence:
            node_id, worker = past_node, past_worker
    store.effects.events.add(
        kind=TaskEvent.STALE_REFUSED,
        task_id=task.task_id,
        subtask=subtask.id,
        revision=store.meta.applied_index,
        wall_ms=store.meta.wall_ms,
        fence=fence,
        node_id=node_id,
        worker=worker,
        detail=f"late {what} refused: STALE_FENCE; the current fence is {subtask.fence}",
        subtask_ref=subtask.ref,
    )

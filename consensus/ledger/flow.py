"""What follows when a subtask or ballot has ended: joins, dependents, votes, the task's end."""

from __future__ import annotations

from quorumesh.v1.tasks_pb2 import TaskEvent

from consensus.ledger import limits
from consensus.ledger.ballots import hear
from consensus.ledger.events import note
from consensus.ledger.labels import label_of
from consensus.ledger.records import (
    BALLOT_DECIDED,
    DELEGATED,
    REF_SHIFT,
    RUNNING,
    SUCCEEDED,
    TASK_SUCCEEDED,
    WAITING,
    Ballot,
    Subtask,
    Task,
)
from consensus.ledger.store import Store
from consensus.ledger.tasks import cancel_spawned, end, fail_for_good, succeed


def drain(store: Store) -> None:
    """Follow up what has ended, first come first; end tasks that have nothing left."""
    settled = store.settled
    if not settled and not store.touched_tasks:
        return
    at = 0
    while at < len(settled):
        node = settled[at]
        at += 1
        task = store.task_of(node.ref)
        store.touched_tasks[task.seq] = None
        if task.state == RUNNING:
            _follow(store, task, node)
    settled.clear()
    for seq in list(store.touched_tasks):
        task = store.task(seq)
        if task.state == RUNNING and task.ended_count == task.subtask_count:
            end(store, task, TASK_SUCCEEDED)
    store.touched_tasks.clear()


def _follow(store: Store, task: Task, node: Subtask | Ballot) -> None:
    if isinstance(node, Subtask):
        has_output = node.state == SUCCEEDED
        if node.ballot_n:
            hear(store, task, node)
            if task.state != RUNNING:
                return
        has_dependents = node.dependent_count > 0
    else:
        has_output = node.state == BALLOT_DECIDED
        has_dependents = True
    if node.joins_n:
        _join(store, task, node, has_output)
        if task.state != RUNNING:
            return
    if has_dependents:
        base = task.seq << REF_SHIFT
        for n in store.edge(node.ref).dependents:
            _meet_need(store, task, store.subtask(base | n), node.output_bytes if has_output else 0)
            if task.state != RUNNING:
                return


def _join(store: Store, task: Task, node: Subtask | Ballot, has_output: bool) -> None:
    parent = store.subtask((task.seq << REF_SHIFT) | node.joins_n)
    if parent.state != DELEGATED:
        return
    if not has_output:
        cancel_spawned(store, task, parent, f"{node.id} has failed")
        fail_for_good(store, parent, "JOIN_FAILED", f"{node.id} ended without an output")
        return
    if parent.ballot_n and parent.label is None:
        parent.label = node.label or label_of(
            *store.output((task.seq << REF_SHIFT) | node.output_n)
        )
    succeed(store, parent, node.output_n, node.output_bytes)


def _meet_need(store: Store, task: Task, dependent: Subtask, output_bytes: int) -> None:
    if dependent.state != WAITING:
        return
    dependent.open_needs -= 1
    dependent.need_bytes += output_bytes
    store.mark_subtask(dependent)
    if dependent.open_needs > 0:
        return
    if dependent.need_bytes > limits.NEEDS_BYTES_MAX:
        fail_for_good(
            store,
            dependent,
            "INPUT_TOO_LARGE",
            f"its needs gave {dependent.need_bytes} bytes; at most {limits.NEEDS_BYTES_MAX} fit",
        )
        return
    store.make_ready(dependent)
    note(store, TaskEvent.READY, task, dependent)

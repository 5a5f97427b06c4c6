"""What is due in counted time: leases, back-off, deadlines, retention. Bounded per entry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from quorumesh.v1.tasks_pb2 import TaskEvent

from consensus.ledger import limits
from consensus.ledger.claims import time_out
from consensus.ledger.events import note, note_alarm
from consensus.ledger.flow import drain
from consensus.ledger.records import BACKOFF, CLAIMED, N_MASK, REF_SHIFT, RUNNING, TASK_FAILED, Task
from consensus.ledger.sessions import expire
from consensus.ledger.steps import Step, put_off_lease, put_off_subtask, put_off_task
from consensus.ledger.store import Store
from consensus.ledger.tasks import end


def fire_due(store: Store, step: Step) -> None:
    """Fire what is due, leases first, at most TIMERS_PER_ENTRY_MAX; the rest stays due.

    Each is one step: one that meets a bug is undone and put off.
    """
    left = limits.TIMERS_PER_ENTRY_MAX
    left -= _expire_leases(store, step, left)
    if left > 0:
        left -= _fire_subtasks(store, step, left)
    if left > 0:
        _fire_tasks(store, step, left)


def _expire_leases(store: Store, step: Step, limit: int) -> int:
    now_ms = store.meta.counted_ms
    due = sorted(
        (s.lease_until_ms, s.session) for s in store.holders.values() if s.lease_until_ms <= now_ms
    )
    fired = 0
    for _, name in due:
        if fired >= limit:
            break
        fired += store.sessions[name].held
        if not step(partial(_expire_lease, store, name)):
            put_off_lease(store, name)
    return fired


def _expire_lease(store: Store, name: bytes) -> None:
    expire(store, store.sessions[name])
    drain(store)


def _fire_subtasks(store: Store, step: Step, limit: int) -> int:
    refs = store.due("subtask", limit)
    for ref in refs:
        if not step(partial(_fire_subtask, store, ref)):
            put_off_subtask(store, ref)
    return len(refs)


def _fire_subtask(store: Store, ref: int) -> None:
    subtask = store.subtask(ref)
    if subtask.state == CLAIMED:
        time_out(store, subtask)
    elif subtask.state == BACKOFF:
        store.make_ready(subtask)
        note(store, TaskEvent.READY, store.task_of(ref), subtask)
    drain(store)


def _fire_tasks(store: Store, step: Step, limit: int) -> None:
    budget = Budget(limits.ROWS_DELETED_PER_ENTRY_MAX)
    for seq in store.due("task", limit):
        if not step(partial(_fire_task, store, seq, budget)):
            put_off_task(store, seq)
    if budget.rows < limits.ROWS_DELETED_PER_ENTRY_MAX and not step(partial(_prune_events, store)):
        note_alarm(store, "a bug in this program: old events stay")


def _fire_task(store: Store, seq: int, budget: Budget) -> None:
    task = store.task(seq)
    if task.state == RUNNING:
        end(store, task, TASK_FAILED, "DEADLINE", "the task ran out of time")
    elif budget.rows > 0:
        budget.rows = _forget(store, task, budget.rows)


@dataclass(slots=True)
class Budget:
    """Rows that may still be deleted in this entry."""

    rows: int


def _forget(store: Store, task: Task, budget: int) -> int:
    """Delete an ended task's rows as far as the budget goes; what is left over stays due."""
    store.flush()
    low, high = task.seq << REF_SHIFT, (task.seq << REF_SHIFT) | N_MASK
    for table in ("input", "output", "edge", "ballot", "subtask"):
        budget -= store.db.execute(
            f"DELETE FROM {table} WHERE ref IN"
            f" (SELECT ref FROM {table} WHERE ref BETWEEN ? AND ? ORDER BY ref LIMIT ?)",
            (low, high, max(budget, 0)),
        ).rowcount
    budget -= store.db.execute(
        "DELETE FROM task_event WHERE seq=? AND revision IN"
        " (SELECT revision FROM task_event WHERE seq=? ORDER BY revision LIMIT ?)",
        (task.seq, task.seq, max(budget, 0)),
    ).rowcount
    store.forget_task(task)
    if budget > 0:
        store.db.execute("DELETE FROM task WHERE seq=?", (task.seq,))
        store.meta.task_count -= 1
        budget -= 1
    return budget


def _prune_events(store: Store) -> None:
    """Events that no kept task needs leave, a bounded number at a time."""
    meta = store.meta
    row = store.db.execute("SELECT submitted_revision FROM task ORDER BY seq LIMIT 1").fetchone()
    newest = meta.applied_index - limits.EVENTS_KEPT_MIN
    keep_from = newest if row is None else min(newest, row[0])
    if keep_from <= meta.oldest_revision:
        return
    rows = store.db.execute(
        "SELECT revision FROM event WHERE revision < ? ORDER BY revision LIMIT ?",
        (keep_from, limits.ROWS_DELETED_PER_ENTRY_MAX),
    ).fetchall()
    if len(rows) == limits.ROWS_DELETED_PER_ENTRY_MAX:
        keep_from = rows[-1][0] + 1
    store.db.execute("DELETE FROM event WHERE revision < ?", (keep_from,))
    meta.oldest_revision = keep_from

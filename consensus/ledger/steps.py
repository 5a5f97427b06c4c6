"""Steps of an entry that may be undone alone: a bug in one costs that one, on every node alike.

What was due or to be granted and met a bug is put off, with an ALARM event, instead of stopping
every node of the mesh at the same entry. It says nothing of failures that may differ between nodes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from quorumesh.v1.tasks_pb2 import TaskEvent

from consensus.ledger.events import note, note_alarm
from consensus.ledger.limits import FAULT_PAUSE_MS
from consensus.ledger.records import BACKOFF, READY, Bug
from consensus.ledger.store import Store

# The same on every node that applies the same entry to the same rows. Nothing else may be caught.
DETERMINISTIC_ERRORS = (
    Bug,
    AssertionError,
    ArithmeticError,
    AttributeError,
    LookupError,
    StopIteration,
    TypeError,
    ValueError,
    sqlite3.IntegrityError,
)

Step = Callable[[Callable[[], None]], bool]


def plainly(work: Callable[[], None]) -> bool:
    """Just do it: a bug propagates, and the entry is run again with `undoably`."""
    work()
    return True


def undoably(store: Store) -> Step:
    """A step in a savepoint. False: it met a bug, and nothing of it is left but the fault noted."""

    def step(work: Callable[[], None]) -> bool:
        store.flush()
        store.write_meta()
        counts = store.effects.counts()
        touched = dict(store.touched)
        store.db.execute("SAVEPOINT step")
        try:
            work()
            store.flush()
            store.write_meta()
        except DETERMINISTIC_ERRORS as error:
            store.db.execute("ROLLBACK TO step")
            store.reload()
            store.effects.cut(counts)
            store.touched = touched
            store.effects.faults.append(f"{type(error).__name__}: {error}")
            store.db.execute("RELEASE step")
            return False
        store.db.execute("RELEASE step")
        return True

    return step


def put_off_subtask(store: Store, ref: int) -> None:
    """Its timer or its grant met a bug: not before FAULT_PAUSE_MS again."""
    subtask = store.subtask(ref)
    if subtask.state == READY:
        store.leave_ready(subtask)
        subtask.state = BACKOFF
    subtask.due_ms = store.meta.counted_ms + FAULT_PAUSE_MS
    store.mark_subtask(subtask)
    task = store.find_task_by_seq(subtask.seq)
    words = f"a bug in this program: {subtask.id} is put off for {FAULT_PAUSE_MS} ms"
    if task is None:
        note_alarm(store, words)
    else:
        note(store, TaskEvent.ALARM, task, subtask, words)


def put_off_task(store: Store, seq: int) -> None:
    task = store.task(seq)
    task.due_ms = store.meta.counted_ms + FAULT_PAUSE_MS
    store.mark_task(task)
    note_alarm(store, f"a bug in this program: task {seq} is put off for {FAULT_PAUSE_MS} ms")


def put_off_lease(store: Store, name: bytes) -> None:
    session = store.sessions[name]
    session.lease_until_ms = store.meta.counted_ms + FAULT_PAUSE_MS
    store.mark_session(session)
    words = f"a bug in this program: the lease of {session.name!r} ends {FAULT_PAUSE_MS} ms later"
    note_alarm(store, words)

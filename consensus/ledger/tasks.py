"""Submitting, cancelling, and how a task moves as its subtasks end."""

from __future__ import annotations

from hashlib import blake2b

from google.protobuf.message import DecodeError
from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import Cancel, Outcome, Submit
from quorumesh.v1.tasks_pb2 import TaskEvent, TaskSpec

from consensus.ledger import limits
from consensus.ledger.events import note, note_task
from consensus.ledger.placing import check_classes, place
from consensus.ledger.records import (
    BALLOT_CANCELLED,
    BALLOT_OPEN,
    CANCELLED,
    CLAIMED,
    DELEGATED,
    FAILED,
    READY,
    REF_SHIFT,
    RUNNING,
    SUCCEEDED,
    TASK_CANCELLED,
    TASK_FAILED,
    TASK_SUCCEEDED,
    Ballot,
    Subtask,
    Task,
)
from consensus.ledger.results import RevokeRef
from consensus.ledger.specs import Refused, check_task, check_text, invalid
from consensus.ledger.store import Store

_EVENT_OF = {
    TASK_SUCCEEDED: TaskEvent.TASK_SUCCEEDED,
    TASK_FAILED: TaskEvent.TASK_FAILED,
    TASK_CANCELLED: TaskEvent.TASK_CANCELLED,
}


def submit(store: Store, command: Submit) -> Outcome:
    """Take up a task. The same bytes again are accepted, with the first revision."""
    if not 1 <= len(command.task_id) <= limits.TASK_ID_BYTES_MAX:
        raise invalid(f"the task id must have 1 to {limits.TASK_ID_BYTES_MAX} bytes")
    check_text("the tenant", command.tenant, limits.NAME_CHARS_MAX)
    check_text("the principal", command.principal, limits.NAME_CHARS_MAX)
    digest = blake2b(command.spec, digest_size=16).digest()
    known = store.find_task(command.task_id, command.tenant)
    if known is not None:
        if known.spec_digest != digest:
            raise Refused(values_pb2.ALREADY_EXISTS, "the task id is taken by another task")
        return Outcome(revision=known.submitted_revision)
    try:
        spec = TaskSpec.FromString(command.spec)
    except DecodeError:
        raise invalid("the spec is not a serialised TaskSpec") from None
    plan = check_task(spec)
    check_classes(store, plan)
    _add(store, command, spec, digest, output_at=plan.positions.get(spec.output, -1))
    place(store, store.task(store.meta.task_seq), plan)
    return Outcome(revision=store.meta.applied_index)


def _add(store: Store, command: Submit, spec: TaskSpec, digest: bytes, *, output_at: int) -> None:
    meta = store.meta
    meta.task_seq += 1
    task = Task(
        seq=meta.task_seq,
        task_id=command.task_id,
        tenant=command.tenant,
        name=spec.name,
        principal=command.principal,
        state=RUNNING,
        band=spec.band,
        spec_digest=digest,
        output_n=output_at + 1,
        subtask_count=0,
        ended_count=0,
        next_n=1,
        due_ms=meta.counted_ms + (spec.deadline_ms or limits.DEADLINE_MS_DEFAULT),
        retain_ms=spec.retain_ms or limits.RETAIN_MS_DEFAULT,
        submitted_wall_ms=meta.wall_ms,
        ended_wall_ms=0,
        failure_code="",
        failure_message="",
        submitted_revision=meta.applied_index,
        revision=meta.applied_index,
    )
    store.add_task(task)
    note_task(store, TaskEvent.SUBMITTED, task, spec.name)


def cancel(store: Store, command: Cancel) -> Outcome:
    """Cancel a task. Refused: NOT_FOUND, FINISHED; a cancelled one is accepted again."""
    task = store.find_task_of_any_tenant(command.task_id)
    if task is None:
        raise Refused(values_pb2.NOT_FOUND, "no such task")
    if task.state == TASK_CANCELLED:
        return Outcome(revision=task.revision)
    if task.state != RUNNING:
        raise Refused(values_pb2.FINISHED, "the task has already ended")
    by = f" by {command.principal[: limits.NAME_CHARS_MAX]}" if command.principal else ""
    end(store, task, TASK_CANCELLED, "CANCELLED", f"cancelled{by}")
    return Outcome(revision=store.meta.applied_index)


def end(store: Store, task: Task, state: int, code: str = "", message: str = "") -> None:
    """End a task in whatever way; what is left of it is cancelled."""
    if task.ended_count < task.subtask_count:
        for subtask in store.subtasks_of(task.seq):
            cancel_subtask(store, task, subtask, "the task has ended")
    task.state = state
    store.meta.running_count -= 1
    task.failure_code = code
    task.failure_message = message[: limits.MESSAGE_CHARS_MAX]
    task.ended_wall_ms = store.meta.wall_ms
    task.due_ms = store.meta.counted_ms + task.retain_ms
    store.mark_task(task)
    if state != TASK_SUCCEEDED:
        for ballot in store.ballots_of(task.seq):
            if ballot.state == BALLOT_OPEN:
                ballot.state = BALLOT_CANCELLED
                store.mark_ballot(ballot)
    note_task(store, _EVENT_OF[state], task, f"{code}: {message}" if code else "")


def release(store: Store, subtask: Subtask) -> None:
    """The claim ends: its worker has a slot more."""
    session = store.sessions[subtask.holder]
    session.held -= 1
    store.mark_session(session)
    subtask.session = None
    subtask.due_ms = None
    store.mark_subtask(subtask)


def revoke(store: Store, subtask: Subtask, why: str) -> None:
    """Take a claim back and say so to its worker."""
    store.effects.revokes.append(RevokeRef(subtask.holder, subtask.ref, subtask.fence, why))
    release(store, subtask)


def cancel_subtask(store: Store, task: Task, subtask: Subtask, why: str) -> None:
    """Cancel what has not ended, with everything it spawned."""
    if subtask.has_ended:
        return
    was = subtask.state
    if was == CLAIMED:
        revoke(store, subtask, why)
    elif was == READY:
        store.leave_ready(subtask)
    _end_subtask(store, task, subtask, CANCELLED)
    note(store, TaskEvent.SUBTASK_CANCELLED, task, subtask, why)
    if was == DELEGATED:
        cancel_spawned(store, task, subtask, why)


def cancel_spawned(store: Store, task: Task, parent: Subtask, why: str) -> None:
    for child in store.subtasks_of(task.seq):
        if child.parent_n == parent.n:
            cancel_subtask(store, task, child, why)
    for ballot in store.ballots_of(task.seq):
        if ballot.parent_n == parent.n and ballot.state == BALLOT_OPEN:
            ballot.state = BALLOT_CANCELLED
            store.mark_ballot(ballot)


def _end_subtask(store: Store, task: Task, subtask: Subtask, state: int) -> None:
    subtask.state = state
    subtask.due_ms = None
    subtask.ended_wall_ms = store.meta.wall_ms
    store.mark_subtask(subtask)
    task.ended_count += 1
    store.mark_task(task)


def succeed(store: Store, subtask: Subtask, output_n: int, output_bytes: int) -> None:
    """It is done, and its output is that of row output_n."""
    task = store.task_of(subtask.ref)
    subtask.output_n = output_n
    subtask.output_bytes = output_bytes
    _end_subtask(store, task, subtask, SUCCEEDED)
    note(store, TaskEvent.SUBTASK_SUCCEEDED, task, subtask)
    store.settled.append(subtask)


def fail_for_good(store: Store, subtask: Subtask, code: str, message: str) -> None:
    """It has failed and is not tried again. Fails what cannot do without it."""
    task = store.task_of(subtask.ref)
    subtask.failure_code = code[: limits.CODE_CHARS_MAX]
    subtask.failure_message = message[: limits.MESSAGE_CHARS_MAX]
    _end_subtask(store, task, subtask, FAILED)
    note(store, TaskEvent.SUBTASK_FAILED, task, subtask, f"{code}: {message}")
    if subtask.optional or subtask.ballot_n:
        store.settled.append(subtask)
        return
    fail_above(
        store,
        task,
        subtask,
        subtask.failure_code,
        f"{subtask.id} failed: {subtask.failure_message}",
    )


def fail_above(store: Store, task: Task, node: Subtask | Ballot, code: str, message: str) -> None:
    """A node that nobody can do without has failed: so does what spawned it, or else the task."""
    if task.state != RUNNING:
        return
    if node.parent_n:
        parent = store.subtask((task.seq << REF_SHIFT) | node.parent_n)
        if parent.state == DELEGATED:
            cancel_spawned(store, task, parent, f"{parent.id} has failed")
            fail_for_good(store, parent, "JOIN_FAILED", f"{code}: {message}")
        else:
            store.touched_tasks[task.seq] = None
        return
    end(store, task, TASK_FAILED, code, message)

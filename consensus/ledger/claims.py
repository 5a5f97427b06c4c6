"""What becomes of a claim: completed, failed, timed out or lost. Only its fence may speak."""

from __future__ import annotations

from hashlib import blake2b

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import Outcome
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.workers_pb2 import Completion, FailureReport

from consensus.ledger import limits
from consensus.ledger.events import note, note_stale
from consensus.ledger.labels import label_of
from consensus.ledger.placing import check_classes, place
from consensus.ledger.records import (
    BACKOFF,
    CLAIMED,
    DELEGATED,
    REF_MAX,
    Session,
    Subtask,
)
from consensus.ledger.results import RevokeRef
from consensus.ledger.specs import Plan, Refused, check_graph, check_text, check_value, invalid
from consensus.ledger.store import Store
from consensus.ledger.tasks import fail_for_good, release, revoke, succeed


def complete(store: Store, completion: Completion) -> Outcome:
    """Take an output under its fence. The same again is accepted again.

    Refused: NOT_FOUND, STALE_FENCE, FINISHED, VALUE_TOO_LARGE, INVALID (in this order).
    """
    subtask = _find(store, completion.subtask_ref)
    digest = blake2b(completion.SerializeToString(deterministic=True), digest_size=16).digest()
    if subtask.fence == completion.fence and subtask.done_digest == digest:
        return Outcome(revision=store.meta.applied_index)
    _check_claim(store, subtask, completion.fence, "result")
    check_value("the output", completion.output)
    check_text("the label", completion.vote.label, limits.LABEL_CHARS_MAX)
    plan = None
    if completion.HasField("spawn"):
        plan = _check_spawn(store, subtask, completion)
    release(store, subtask)
    subtask.done_digest = digest
    output = completion.output
    if subtask.ballot_n:
        subtask.weight = completion.vote.weight or 1
        subtask.label = completion.vote.label or None
    if plan is not None:
        _delegate(store, subtask, plan, completion.spawn.join)
        return Outcome(revision=store.meta.applied_index)
    if subtask.ballot_n and subtask.label is None:
        subtask.label = label_of(output.data, output.content_type)
    if output.data or output.content_type:
        store.add_output(subtask.ref, output.data, output.content_type)
    succeed(store, subtask, subtask.n, len(output.data))
    return Outcome(revision=store.meta.applied_index)


def fail(store: Store, report: FailureReport) -> Outcome:
    """Take a failed attempt. The same fence again is accepted again. Refused as complete is."""
    subtask = _find(store, report.subtask_ref)
    if subtask.failed_fence == report.fence and report.fence:
        return Outcome(revision=store.meta.applied_index)
    _check_claim(store, subtask, report.fence, "failure")
    failure = report.failure
    end_attempt(store, subtask, failure.code or "AGENT_ERROR", failure.message, final=report.final)
    return Outcome(revision=store.meta.applied_index)


def _find(store: Store, ref: int) -> Subtask:
    subtask = store.find_subtask(ref) if 0 < ref <= REF_MAX else None
    if subtask is None:
        raise Refused(values_pb2.NOT_FOUND, "no such subtask")
    return subtask


def _check_claim(store: Store, subtask: Subtask, fence: int, what: str) -> None:
    if subtask.fence == fence and subtask.state == CLAIMED:
        return
    if subtask.fence == fence and (subtask.has_ended or subtask.state == DELEGATED):
        raise Refused(values_pb2.FINISHED, f"subtask {subtask.id} has already ended")
    note_stale(store, subtask, fence, what)
    raise Refused(
        values_pb2.STALE_FENCE,
        f"fence {fence} is no longer current: the claim is not yours",
    )


def _check_spawn(store: Store, parent: Subtask, completion: Completion) -> Plan:
    spawn = completion.spawn
    if not spawn.subtasks:
        raise invalid("the spawn has no subtasks")
    plan = check_graph(spawn.subtasks, spawn.ballots)
    if spawn.join not in plan.positions:
        raise invalid(f"the join names {spawn.join!r}, which the spawn does not have")
    task = store.task_of(parent.ref)
    count = task.next_n - 1 + len(spawn.subtasks) + len(spawn.ballots)
    if count > limits.SUBTASKS_MAX:
        raise invalid(f"the task would have {count} subtasks; at most {limits.SUBTASKS_MAX} may be")
    if parent.depth >= limits.SPAWN_DEPTH_MAX:
        raise invalid(f"spawns are at most {limits.SPAWN_DEPTH_MAX} deep")
    check_classes(store, plan)
    return plan


def _delegate(store: Store, parent: Subtask, plan: Plan, join: str) -> None:
    task = store.task_of(parent.ref)
    parent.state = DELEGATED
    store.mark_subtask(parent)
    store.mark_task(task)
    note(store, TaskEvent.DELEGATED, task, parent, f"joined by {parent.id}/{join}")
    note(store, TaskEvent.SPAWNED, task, parent, f"{len(plan.subtasks)} subtasks")
    place(store, task, plan, parent=parent, join=join)


def _remember_grant(subtask: Subtask) -> None:
    lines = [line for line in subtask.past.split("\n") if line]
    lines = lines[-(limits.PAST_GRANTS_MAX - 1) :]
    lines.append(f"{subtask.fence}\t{subtask.node_id}\t{subtask.worker}")
    subtask.past = "\n".join(lines)


def end_attempt(store: Store, subtask: Subtask, code: str, message: str, *, final: bool) -> None:
    """An attempt failed: back-off and another one, or failed for good. The claim has been held."""
    _remember_grant(subtask)
    release(store, subtask)
    subtask.failed_fence = subtask.fence
    subtask.failed_count += 1
    if final or subtask.failed_count >= subtask.attempts_max:
        fail_for_good(store, subtask, code, message)
        return
    subtask.failure_code = code[: limits.CODE_CHARS_MAX]
    subtask.failure_message = message[: limits.MESSAGE_CHARS_MAX]
    subtask.state = BACKOFF
    subtask.due_ms = store.meta.counted_ms + backoff_ms(
        subtask.backoff_ms, subtask.backoff_ms_max, subtask.failed_count, subtask.fence
    )
    detail = f"{subtask.failure_code}: {subtask.failure_message}"
    note(store, TaskEvent.ATTEMPT_FAILED, store.task_of(subtask.ref), subtask, detail)


def backoff_ms(first_ms: int, most_ms: int, failed_count: int, fence: int) -> int:
    """Doubles per failure up to the most; the upper half is spread by the fence."""
    full_ms = min(first_ms << min(failed_count - 1, 40), most_ms)
    half_ms = full_ms // 2
    spread = (fence * 2_654_435_761) % (1 << 32)
    return full_ms - half_ms + ((spread * (half_ms + 1)) >> 32)


def time_out(store: Store, subtask: Subtask) -> None:
    """The attempt took too long: its worker loses it, and it counts as failed."""
    store.effects.revokes.append(
        RevokeRef(subtask.holder, subtask.ref, subtask.fence, "the attempt took too long")
    )
    end_attempt(store, subtask, "TIMEOUT", f"took longer than {subtask.timeout_ms} ms", final=False)


def lose_all(store: Store, session: Session, why: str) -> None:
    """The worker is gone: what it held is ready again at once, and its offer is withdrawn."""
    for subtask in store.held_by(session.session):
        _remember_grant(subtask)
        revoke(store, subtask, why)
        subtask.lost_count += 1
        if subtask.lost_count > limits.LOST_COUNT_MAX:
            fail_for_good(store, subtask, "LOST", f"lost {subtask.lost_count} workers")
            continue
        note(store, TaskEvent.ATTEMPT_LOST, store.task_of(subtask.ref), subtask, why)
        store.make_ready(subtask)
    withdraw(store, session)


def withdraw(store: Store, session: Session) -> None:
    session.slots = 0
    store.mark_session(session)
    store.effects.withdrawn.append(session.session)

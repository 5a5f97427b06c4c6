"""Worker sessions, their standing offers, and the granting that honours them."""

from __future__ import annotations

import heapq
from functools import partial

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import (
    Claim,
    CloseSession,
    HeldClaim,
    OpenSession,
    Outcome,
    Renew,
    Suspect,
)
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.workers_pb2 import WorkerHello

from consensus.ledger import limits
from consensus.ledger.claims import lose_all, withdraw
from consensus.ledger.events import note
from consensus.ledger.records import CLAIMED, REF_MAX, Session
from consensus.ledger.results import GrantRef
from consensus.ledger.specs import Refused, check_labels, check_text, invalid
from consensus.ledger.steps import Step, put_off_subtask
from consensus.ledger.store import Store


def open_session(store: Store, command: OpenSession) -> Outcome:
    """Open or reopen: a new epoch without an offer; what was held stays held."""
    _check_hello(command)
    nonce = command.nonce.to_bytes(8, "big")
    known = store.sessions.get(command.session)
    if known is not None and known.is_open and known.nonce == nonce:
        return _opened(store, known)
    if known is None:
        _forget_idle(store)
        if len(store.sessions) >= limits.SESSIONS_MAX:
            raise Refused(values_pb2.OVERLOADED, "the mesh has too many worker sessions")
    now_ms = store.meta.counted_ms
    hello = WorkerHello(skills=command.skills, labels=command.labels)
    session = Session(
        session=command.session,
        epoch=known.epoch + 1 if known is not None else 1,
        nonce=nonce,
        node_id=command.node_id,
        name=command.name,
        profile=hello.SerializeToString(deterministic=True),
        slots=0,
        held=known.held if known is not None else 0,
        claim_sequence=0,
        lease_until_ms=now_ms + limits.LEASE_MS,
        granted_fence=known.granted_fence if known is not None else 0,
        active_ms=now_ms,
        is_open=1,
    )
    store.know_session(session)
    store.mark_session(session)
    return _opened(store, session)


def _check_hello(command: OpenSession) -> None:
    if not 1 <= len(command.session) <= limits.SESSION_BYTES_MAX:
        raise invalid(f"a session is 1 to {limits.SESSION_BYTES_MAX} bytes")
    check_text("the node id", command.node_id, limits.NAME_CHARS_MAX)
    check_text("the worker's name", command.name, limits.NAME_CHARS_MAX)
    if "\t" in command.name + command.node_id or "\n" in command.name + command.node_id:
        raise invalid("names must not hold tabs or line ends")
    if len(command.skills) > limits.SKILLS_MAX:
        raise invalid(f"a worker has at most {limits.SKILLS_MAX} skills")
    for skill in command.skills:
        check_text("a skill", skill, limits.SKILL_CHARS_MAX)
    check_labels("the worker", command.labels)


def _opened(store: Store, session: Session) -> Outcome:
    held = [
        HeldClaim(subtask_ref=subtask.ref, fence=subtask.fence)
        for subtask in store.held_by(session.session)
    ]
    return Outcome(revision=store.meta.applied_index, epoch=session.epoch, held=held)


def _forget_idle(store: Store) -> None:
    idle_ms = store.meta.counted_ms - limits.SESSION_IDLE_MS
    idle = [
        name
        for name, session in store.sessions.items()
        if session.active_ms <= idle_ms and session.held == 0 and session.slots == 0
    ]
    for name in sorted(idle):
        store.forget_session(name)


def _current(store: Store, name: bytes, epoch: int) -> Session:
    session = store.sessions.get(name)
    if session is None or not session.is_open or session.epoch != epoch:
        raise Refused(values_pb2.STALE_EPOCH, "the session was opened anew or has ended")
    return session


def close_session(store: Store, command: CloseSession) -> Outcome:
    """Its claims are lost at once. Closing again is accepted."""
    session = store.sessions.get(command.session)
    if session is None or (not session.is_open and session.epoch == command.epoch):
        return Outcome(revision=store.meta.applied_index)
    session = _current(store, command.session, command.epoch)
    session.is_open = 0
    lose_all(store, session, "the worker has left")
    return Outcome(revision=store.meta.applied_index)


def claim(store: Store, command: Claim) -> Outcome:
    """Set the standing offer. An older or equal sequence changes nothing."""
    if command.slots > limits.SLOTS_MAX or command.sequence > REF_MAX:
        raise invalid(f"a worker has at most {limits.SLOTS_MAX} slots")
    session = _current(store, command.session, command.epoch)
    if command.sequence > session.claim_sequence:
        session.claim_sequence = command.sequence
        session.slots = command.slots
        session.active_ms = store.meta.counted_ms
        store.mark_session(session)
    return Outcome(revision=store.meta.applied_index)


def renew(store: Store, command: Renew) -> Outcome:
    """Lengthen the leases of those that are current. STALE_EPOCH only when none is."""
    if len(command.sessions) > limits.RENEW_SESSIONS_MAX:
        raise invalid(f"at most {limits.RENEW_SESSIONS_MAX} sessions are renewed at once")
    stale_count = 0
    now_ms = store.meta.counted_ms
    for item in command.sessions:
        session = store.sessions.get(item.session)
        if session is None or not session.is_open or session.epoch != item.epoch:
            stale_count += 1
            continue
        session.lease_until_ms = now_ms + limits.LEASE_MS
        session.active_ms = now_ms
        store.mark_session(session)
    if stale_count and stale_count == len(command.sessions):
        raise Refused(values_pb2.STALE_EPOCH, "the session was opened anew or has ended")
    message = f"{stale_count} sessions were stale" if stale_count else ""
    return Outcome(revision=store.meta.applied_index, message=message)


def suspect(store: Store, command: Suspect) -> Outcome:
    """Withdraw the offers of a node's workers; their claims stay until the lease runs out."""
    for name in sorted(store.sessions):
        session = store.sessions[name]
        if session.node_id == command.node_id and session.slots:
            withdraw(store, session)
    return Outcome(revision=store.meta.applied_index)


def expire(store: Store, session: Session) -> None:
    """The lease has run out."""
    lose_all(store, session, "the lease ran out")


def grant_all(store: Store, step: Step) -> None:
    """Hand out ready subtasks, best first, until none is left that a free worker could take.

    Each grant is one step: a subtask whose grant meets a bug is put off, and the others go on.
    """
    if not store.ready.active or not store.free:
        return
    for _ in range(limits.FAULTS_PER_ENTRY_MAX):
        faulty = _grant_until_fault(store, step)
        if faulty is None:
            return
        put_off_subtask(store, faulty)


def _grant_until_fault(store: Store, step: Step) -> int | None:
    """The subtask whose grant met a bug; then all that was read of the store is out of date."""
    ready = store.ready
    free = list(store.free.values())
    left = sum(session.free for session in free)
    heads, workers = _match(store, free)
    while heads and left:
        (band, ref), class_id = heads[0]
        session = _least_loaded(store, workers[class_id])
        if session is None:
            heapq.heappop(heads)
            continue
        if not step(partial(_grant, store, ref, session)):
            return ref
        left -= 1
        ready.drop_head(class_id, (band, ref))
        following = ready.head(class_id, store.flush)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following, class_id))
    return None


Heads = list[tuple[tuple[int, int], int]]  # a heap: the best key of a class, and the class
Able = dict[int, list[tuple[int, int, bytes]]]  # per class a heap: held, granted fence, session


def _match(store: Store, free: list[Session]) -> tuple[Heads, Able]:
    """The classes that have something ready and somebody free to take it."""
    heads: Heads = []
    workers: Able = {}
    ready = store.ready
    for class_id in list(ready.active) if free else ():
        members = store.classes[class_id].sessions
        able = [(s.held, s.granted_fence, s.session) for s in free if s.session in members]
        if not able:
            continue
        key = ready.head(class_id, store.flush)
        if key is not None:
            heapq.heapify(able)
            workers[class_id] = able
            heads.append((key, class_id))
    heapq.heapify(heads)
    return heads, workers


def _least_loaded(store: Store, able: list[tuple[int, int, bytes]]) -> Session | None:
    """The one that holds least, then the one granted longest ago. Old figures are renewed here."""
    while able:
        held, fence, name = able[0]
        session = store.sessions[name]
        if session.slots <= session.held:
            heapq.heappop(able)
        elif (session.held, session.granted_fence) != (held, fence):
            heapq.heapreplace(able, (session.held, session.granted_fence, name))
        else:
            return session
    return None


def _grant(store: Store, ref: int, session: Session) -> None:
    subtask = store.subtask(ref)
    meta = store.meta
    meta.ready_count -= 1
    meta.fence += 1
    subtask.state = CLAIMED
    subtask.fence = meta.fence
    subtask.attempt += 1
    subtask.session = session.session
    subtask.node_id = session.node_id
    subtask.worker = session.name
    subtask.claimed_wall_ms = meta.wall_ms
    subtask.due_ms = meta.counted_ms + subtask.timeout_ms if subtask.timeout_ms else None
    store.mark_subtask(subtask)
    if session.held == 0:
        session.lease_until_ms = meta.counted_ms + limits.LEASE_MS
    session.held += 1
    session.granted_fence = meta.fence
    session.active_ms = meta.counted_ms
    store.mark_session(session)
    store.effects.grants.append(
        GrantRef(session.session, session.epoch, subtask.ref, subtask.fence)
    )
    note(store, TaskEvent.CLAIMED, store.task_of(subtask.ref), subtask)

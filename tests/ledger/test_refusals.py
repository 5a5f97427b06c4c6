"""Every reason that the ledger gives, and which comes first when two apply at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from hashlib import blake2b

import pytest
from quorumesh.v1 import values_pb2 as r
from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Bootstrap,
    Cancel,
    Claim,
    CloseSession,
    Command,
    Complete,
    Fail,
    OpenSession,
    Renew,
    SessionEpoch,
    Submit,
)
from quorumesh.v1.tasks_pb2 import TaskEvent, TaskSpec
from quorumesh.v1.values_pb2 import Reason, Value
from quorumesh.v1.workers_pb2 import Completion, FailureReport, Spawn, Vote

from consensus.ledger import limits
from consensus.ledger.dump import TABLES
from tests.ledger.world import World, sub

NO_CHANGE_OF = (
    "ledger",
    "event",
    "task_event",
)  # these say where the ledger stands, and who was late
BIG = Value(data=bytes(limits.VALUE_BYTES_MAX + 1))
LONG = "x" * (limits.NAME_CHARS_MAX + 1)
SPEC = TaskSpec(subtasks=[sub("a")]).SerializeToString()
OTHER = TaskSpec(subtasks=[sub("b")]).SerializeToString()


def scene() -> World:
    """Task `run` with a claim, task `late` claimed anew, task `done` finished; tokens of all kinds."""
    world = World()
    world.one(Command(bootstrap=Bootstrap(mesh_id="m", node_id="n1", address="h:1")))
    for token, ttl_ms in ((b"expired", 1), (b"used", 1), (b"fresh", 0)):
        command = AddToken(token_id=token, secret_digest=b"d", ttl_ms=ttl_ms, principal="p")
        world.one(Command(add_token=command))
    world.one(admission(b"used", "n2"))
    world.submit("late", sub("late"))
    world.work("gone")
    world.wait(limits.LEASE_MS)
    world.work("w", slots=9)
    world.submit("run", sub("run"))
    world.submit("done", sub("done"))
    world.complete("done", "1")
    world.work("old")
    world.work("old")
    return world


def admission(token: bytes, node: str, *, digest: bytes = b"d", address: str = "h:1") -> Command:
    return Command(admit=Admit(token_id=token, secret_digest=digest, node_id=node, address=address))


def completion(name: str, *, older: int = 0, **more: object) -> Callable[[World], Command]:
    def make(world: World) -> Command:
        grant = world.grants[name]
        fence = grant.fence - older
        found = Completion(subtask_ref=grant.subtask_ref, fence=fence, **more)  # type: ignore[arg-type]
        return Command(complete=Complete(completion=found))

    return make


def failure(name: str, *, older: int = 0) -> Callable[[World], Command]:
    def make(world: World) -> Command:
        grant = world.grants[name]
        report = FailureReport(subtask_ref=grant.subtask_ref, fence=grant.fence - older)
        return Command(fail=Fail(report=report))

    return make


def plainly(**command: object) -> Callable[[World], Command]:
    return lambda world: Command(**command)  # type: ignore[arg-type]


def submission(task_id: bytes, spec: bytes, tenant: str = "") -> Callable[[World], Command]:
    return plainly(submit=Submit(task_id=task_id, spec=spec, tenant=tenant))


def claiming(epoch: int, slots: int) -> Callable[[World], Command]:
    return plainly(claim=Claim(session=b"old", epoch=epoch, sequence=99, slots=slots))


def inviting(token: bytes, digest: bytes, **more: object) -> Callable[[World], Command]:
    return plainly(add_token=AddToken(token_id=token, secret_digest=digest, **more))  # type: ignore[arg-type]


NOWHERE = Completion(subtask_ref=999 << 20, fence=1, output=BIG)
TOO_FAR = Completion(subtask_ref=1 << 63, fence=1)
EMPTY_SPAWN = Spawn(join="x")
CASES: list[tuple[str, Callable[[World], Command], int]] = [
    ("an empty command", plainly(), r.INVALID),
    ("another mesh", plainly(bootstrap=Bootstrap(mesh_id="x")), r.ALREADY_EXISTS),
    ("a bad tenant before a taken id", submission(b"run", OTHER, LONG), r.INVALID),
    ("a taken id before a bad spec", submission(b"run", b"\xff"), r.ALREADY_EXISTS),
    ("a bad spec", submission(b"new", b"\xff"), r.INVALID),
    ("too large an input", submission(
        b"new", TaskSpec(subtasks=[sub("a", input=BIG)]).SerializeToString()), r.VALUE_TOO_LARGE),
    ("no such subtask before too large", plainly(complete=Complete(completion=NOWHERE)), r.NOT_FOUND),
    ("a ref beyond all", plainly(complete=Complete(completion=TOO_FAR)), r.NOT_FOUND),
    ("an old fence before too large", completion("late", older=1, output=BIG), r.STALE_FENCE),
    ("a fence of the future", completion("late", older=-9), r.STALE_FENCE),
    ("finished before too large", completion("done", output=BIG), r.FINISHED),
    ("too large before a bad type", completion(
        "run", output=Value(data=BIG.data, content_type=LONG)), r.VALUE_TOO_LARGE),
    ("too large before a bad spawn", completion("run", output=BIG, spawn=EMPTY_SPAWN), r.VALUE_TOO_LARGE),
    ("too large before a bad label", completion("run", output=BIG, vote=Vote(label=LONG)), r.VALUE_TOO_LARGE),
    ("an empty spawn", completion("run", spawn=EMPTY_SPAWN), r.INVALID),
    ("a join that is not there", completion("run", spawn=Spawn(subtasks=[sub("a")], join="b")), r.INVALID),
    ("a spawn with a cycle", completion(
        "run", spawn=Spawn(subtasks=[sub("a", "b"), sub("b", "a")], join="b")), r.INVALID),
    ("too large inside a spawn", completion(
        "run", spawn=Spawn(subtasks=[sub("a", input=BIG)], join="a")), r.VALUE_TOO_LARGE),
    ("a late failure", failure("late", older=1), r.STALE_FENCE),
    ("a failure of what is done", failure("done"), r.FINISHED),
    ("too many slots before an old epoch", claiming(1, limits.SLOTS_MAX + 1), r.INVALID),
    ("an old epoch", claiming(1, 1), r.STALE_EPOCH),
    ("an epoch of the future", claiming(3, 1), r.STALE_EPOCH),
    ("a session that is not there", plainly(claim=Claim(session=b"?", epoch=1)), r.STALE_EPOCH),
    ("closing under an old epoch", plainly(
        close_session=CloseSession(session=b"old", epoch=1)), r.STALE_EPOCH),
    ("renewing nothing that is current", plainly(
        renew=Renew(sessions=[SessionEpoch(session=b"old", epoch=1)])), r.STALE_EPOCH),
    ("a name with a tab", plainly(
        open_session=OpenSession(session=b"x", node_id="n", name="a\tb")), r.INVALID),
    ("cancelling what is not there", plainly(cancel=Cancel(task_id=b"?")), r.NOT_FOUND),
    ("cancelling what is done", plainly(cancel=Cancel(task_id=b"done")), r.FINISHED),
    ("too long a ttl before a taken id", inviting(
        b"fresh", b"x", ttl_ms=limits.TOKEN_TTL_MS_MAX + 1), r.INVALID),
    ("a taken token id", inviting(b"fresh", b"x"), r.ALREADY_EXISTS),
    ("no address before an unknown token", lambda w: admission(b"?", "n9", address=""), r.INVALID),
    ("an unknown token", lambda w: admission(b"?", "n1"), r.TOKEN_UNKNOWN),
    ("a wrong secret of a used token", lambda w: admission(b"used", "n9", digest=b"x"), r.TOKEN_UNKNOWN),
    ("a used token before an expired one", lambda w: admission(b"used", "n9"), r.TOKEN_USED),
    ("an expired token before a taken node id", lambda w: admission(b"expired", "n1"), r.TOKEN_EXPIRED),
    ("a taken node id", lambda w: admission(b"fresh", "n1"), r.ALREADY_EXISTS),
]  # fmt: skip
ELSEWHERE = {r.OVERLOADED: "test_bounds", r.INTERNAL: "test_faults"}
NOT_OF_THE_LEDGER = {r.VOTERS_FULL, r.OUT_OF_RANGE, r.PERMISSION_DENIED}


def contents(db: sqlite3.Connection) -> bytes:
    chain = blake2b()
    for table, key in TABLES.items():
        if table not in NO_CHANGE_OF:
            chain.update(
                repr(db.execute(f"SELECT * FROM {table} ORDER BY {key}").fetchall()).encode()
            )
    return chain.digest()


@pytest.mark.parametrize(
    ("make", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_refusal_gives_its_reason_and_changes_nothing(
    make: Callable[[World], Command], reason: int
) -> None:
    world = scene()
    before = contents(world.ledger.connection)

    applied = world.apply(make(world))

    assert Reason.Name(applied.outcomes[0].reason) == Reason.Name(reason)
    assert applied.outcomes[0].message
    assert contents(world.ledger.connection) == before
    told = {event.kind for event in applied.events}
    assert told == ({TaskEvent.STALE_REFUSED} if reason == r.STALE_FENCE else set())
    assert (applied.grants, applied.revokes, applied.withdrawn) == ([], [], [])


def test_every_reason_of_the_ledger_has_a_test() -> None:
    given = {reason for _, _, reason in CASES} | ELSEWHERE.keys()

    assert given == set(Reason.values()) - NOT_OF_THE_LEDGER - {0}


def test_a_node_admitted_with_a_token_is_accepted_again_after_it_expired() -> None:
    world = scene()

    assert world.one(admission(b"used", "n2")).reason == 0

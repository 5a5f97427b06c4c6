"""Every bound holds at its value and refuses one more, and a refusal changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from quorumesh.v1 import values_pb2 as r
from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Cancel,
    Claim,
    Command,
    Complete,
    Fail,
    MembershipChange,
    OpenSession,
    Outcome,
    Renew,
    SessionEpoch,
    Submit,
)
from quorumesh.v1.tasks_pb2 import BallotSpec, RetryPolicy, SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Failure, Label, Value
from quorumesh.v1.workers_pb2 import Completion, FailureReport, Spawn, Vote

from consensus.ledger import GrantRef, Ledger, limits
from tests.ledger.world import World, claim_command, entry_of, open_command, sub, submit_command

BATCH = 1_000


class Plain:
    """A ledger driven in large entries, without a check of all invariants after each."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        self.ledger = ledger or Ledger.open(":memory:")
        self.now_ms = self.ledger.counted_ms

    def apply(self, commands: Sequence[Command]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for at in range(0, len(commands), BATCH):
            entry = entry_of(*commands[at : at + BATCH], now_ms=self.now_ms)
            index = self.ledger.applied_index + 1
            outcomes += self.ledger.apply(index, 1, entry).outcomes
        return outcomes

    def one(self, command: Command) -> Outcome:
        """Apply one command; a refused one must leave all but the ledger's own row as it was."""
        before = contents(self.ledger)
        (outcome,) = self.apply([command])
        if outcome.reason:
            assert contents(self.ledger) == before
        return outcome


def contents(ledger: Ledger) -> list[int]:
    tables = ("member", "token", "class", "session", "task", "subtask", "ballot", "event")
    return [
        ledger.connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables
    ]


def submit(spec: TaskSpec, **more: object) -> Command:
    return Command(submit=Submit(task_id=b"t", spec=spec.SerializeToString(), **more))  # type: ignore[arg-type]


def task_of(**more: object) -> Command:
    return submit(TaskSpec(subtasks=[sub("a", **more)]))


def opened(**more: object) -> Command:
    fields: dict[str, object] = {"session": b"w", "node_id": "n", "name": "w", **more}
    return Command(open_session=OpenSession(**fields))  # type: ignore[arg-type]


def labels(count: int) -> list[Label]:
    return [Label(key=f"k{n}", value="v") for n in range(count)]


TEXT_BOUNDS: list[tuple[str, int, Callable[[int], Command]]] = [
    ("task id", limits.TASK_ID_BYTES_MAX, lambda n: Command(
        submit=Submit(task_id=b"x" * n, spec=TaskSpec(subtasks=[sub("a")]).SerializeToString())
    )),
    ("tenant", limits.NAME_CHARS_MAX, lambda n: submit(TaskSpec(subtasks=[sub("a")]), tenant="é" * n)),
    ("principal", limits.NAME_CHARS_MAX, lambda n: submit(TaskSpec(subtasks=[sub("a")]), principal="x" * n)),
    ("task name", limits.NAME_CHARS_MAX, lambda n: submit(TaskSpec(name="x" * n, subtasks=[sub("a")]))),
    ("band", limits.BAND_MAX, lambda n: submit(TaskSpec(band=n, subtasks=[sub("a")]))),
    ("deadline", limits.DURATION_MS_MAX, lambda n: submit(TaskSpec(deadline_ms=n, subtasks=[sub("a")]))),
    ("retention", limits.DURATION_MS_MAX, lambda n: submit(TaskSpec(retain_ms=n, subtasks=[sub("a")]))),
    ("subtasks", limits.SUBTASKS_MAX, lambda n: submit(
        TaskSpec(subtasks=[sub(f"a{i}", ballot="b") for i in range(n - 1)], ballots=[BallotSpec(id="b")])
    )),
    ("id", limits.ID_CHARS_MAX, lambda n: submit(TaskSpec(subtasks=[sub("x" * n)]))),
    ("skill", limits.SKILL_CHARS_MAX, lambda n: task_of(skill="x" * n)),
    ("where", limits.LABELS_MAX, lambda n: task_of(where=labels(n))),
    ("label key", limits.LABEL_CHARS_MAX, lambda n: task_of(where=[Label(key="x" * n)])),
    ("label value", limits.LABEL_CHARS_MAX, lambda n: task_of(where=[Label(key="k", value="x" * n)])),
    ("attempts", limits.ATTEMPTS_MAX, lambda n: task_of(retry=RetryPolicy(max_attempts=n))),
    ("time-out", limits.DURATION_MS_MAX, lambda n: task_of(timeout_ms=n)),
    ("content type", limits.NAME_CHARS_MAX, lambda n: task_of(input=Value(content_type="x" * n))),
    ("session", limits.SESSION_BYTES_MAX, lambda n: opened(session=b"x" * n)),
    ("worker name", limits.NAME_CHARS_MAX, lambda n: opened(name="x" * n)),
    ("node id", limits.NAME_CHARS_MAX, lambda n: opened(node_id="x" * n)),
    ("worker skills", limits.SKILLS_MAX, lambda n: opened(skills=[f"s{i}" for i in range(n)])),
    ("worker skill", limits.SKILL_CHARS_MAX, lambda n: opened(skills=["x" * n])),
    ("worker labels", limits.LABELS_MAX, lambda n: opened(labels=labels(n))),
    ("token ttl", limits.TOKEN_TTL_MS_MAX, lambda n: token(0, ttl_ms=n)),
    ("token id", 64, lambda n: Command(add_token=AddToken(token_id=b"x" * n, secret_digest=b"d"))),
    ("token digest", 64, lambda n: Command(add_token=AddToken(token_id=b"k", secret_digest=b"x" * n))),
    ("renewals", limits.RENEW_SESSIONS_MAX, lambda n: Command(
        renew=Renew(sessions=[SessionEpoch(session=b"held", epoch=1)] * n)
    )),
    ("slots", limits.SLOTS_MAX, lambda n: Command(
        claim=Claim(session=b"held", epoch=1, sequence=1, slots=n)
    )),
]  # fmt: skip


def token(number: int, **more: object) -> Command:
    return Command(add_token=AddToken(token_id=b"k%d" % number, secret_digest=b"d", **more))  # type: ignore[arg-type]


def admit(number: int) -> Command:
    return Command(
        admit=Admit(
            token_id=b"k%d" % number, secret_digest=b"d", node_id=f"n{number}", address="h:1"
        )
    )


@pytest.mark.parametrize(
    ("most", "command"), [bound[1:] for bound in TEXT_BOUNDS], ids=[b[0] for b in TEXT_BOUNDS]
)
def test_a_bound_of_one_command_is_reached_and_not_passed(
    most: int, command: Callable[[int], Command]
) -> None:
    plain = Plain()
    plain.apply([open_command("held", "s")])

    assert plain.one(command(most + 1)).reason == r.INVALID
    assert plain.one(command(most)).reason == 0


def test_one_worker_session_too_many_is_overloaded_until_idle_ones_are_forgotten() -> None:
    plain = Plain()
    opens = [open_command(f"w{n}", "s") for n in range(limits.SESSIONS_MAX)]
    assert {outcome.reason for outcome in plain.apply(opens)} == {0}

    assert plain.one(open_command("more", "s")).reason == r.OVERLOADED
    assert plain.one(open_command("w0", "s", nonce=2)).epoch == 2
    plain.now_ms += limits.SESSION_IDLE_MS
    assert plain.one(open_command("more", "s")).reason == 0
    assert contents(plain.ledger)[3] == 1


def test_one_token_too_many_is_overloaded_until_old_ones_have_gone() -> None:
    plain = Plain()
    outcomes = plain.apply([token(n) for n in range(limits.TOKENS_MAX)])
    assert {outcome.reason for outcome in outcomes} == {0}

    assert plain.one(token(limits.TOKENS_MAX)).reason == r.OVERLOADED
    assert plain.one(token(0)).reason == 0
    plain.now_ms += 2 * limits.TOKEN_TTL_MS_MAX
    assert plain.one(token(limits.TOKENS_MAX)).reason == 0


def test_one_member_too_many_is_overloaded_and_does_not_use_up_the_token() -> None:
    plain = Plain()
    for number in range(1, limits.MEMBERS_MAX):
        change = MembershipChange(add=True, node_id=f"m{number}", address="h:1")
        plain.ledger.apply_membership(plain.ledger.applied_index + 1, 1, change)
    plain.apply([token(1), token(2)])

    assert plain.one(admit(1)).reason == 0
    assert plain.one(admit(2)).reason == r.OVERLOADED
    used = "SELECT used_by FROM token ORDER BY token_id"
    assert plain.ledger.connection.execute(used).fetchall() == [("n1",), ("",)]


def test_one_requirement_too_many_is_overloaded(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.db")
    Ledger.open(path).close()
    with sqlite3.connect(path) as db:
        db.execute(
            "INSERT INTO class WITH RECURSIVE n(i) AS"
            " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
            " SELECT i, 'skill' || i, x'' FROM n",
            (limits.CLASSES_MAX - 1,),
        )
    plain = Plain(Ledger.open(path))

    def asks(name: str, *skills: str) -> int:
        subtasks = [sub(f"a{n}", skill=skill) for n, skill in enumerate(skills)]
        return plain.one(submit_command(name, TaskSpec(subtasks=subtasks))).reason

    assert asks("two-new", "x", "y") == r.OVERLOADED
    assert asks("one-new", "x", "x", "skill7") == 0
    assert asks("none-new", "x", "skill1") == 0
    assert asks("another", "y") == r.OVERLOADED


def completion(grant: GrantRef, **more: object) -> Command:
    given = Completion(subtask_ref=grant.subtask_ref, fence=grant.fence, **more)  # type: ignore[arg-type]
    return Command(complete=Complete(completion=given))


def spawn_of(count: int) -> Spawn:
    return Spawn(subtasks=[SubtaskSpec(id=f"c{n}", skill="none") for n in range(count)], join="c0")


def test_a_task_grows_by_spawning_to_its_bound_and_not_beyond() -> None:
    plain = Plain()
    plain.apply([task_of(), open_command("w", "s"), claim_command("w", 1, 1, 1)])
    grant = GrantRef(b"w", 1, 1 << 20 | 1, 1)

    assert plain.one(completion(grant, spawn=spawn_of(limits.SUBTASKS_MAX))).reason == r.INVALID
    assert plain.one(completion(grant, spawn=spawn_of(limits.SUBTASKS_MAX - 1))).reason == 0
    info = plain.ledger.reader().task(b"t")
    assert info is not None and info.subtask_count == limits.SUBTASKS_MAX


def test_spawns_go_to_their_greatest_depth_and_not_beyond() -> None:
    world = World()
    world.submit("t", sub("p"))
    world.work()
    name = "p"
    for _ in range(limits.SPAWN_DEPTH_MAX):
        assert world.complete(name, spawn=Spawn(subtasks=[sub("c")], join="c")).reason == 0
        name += "/c"

    outcome = world.complete(name, spawn=Spawn(subtasks=[sub("c")], join="c"))

    assert (outcome.reason, "deep" in outcome.message) == (r.INVALID, True)
    assert world.complete(name).reason == 0
    info = world.reader.task(b"t", with_outputs=True)
    assert info is not None and info.output.data == b'"out"'


def test_a_failure_from_the_depths_reaches_the_top() -> None:
    world = World()
    world.submit("t", sub("p"))
    world.work()
    name = "p"
    for _ in range(limits.SPAWN_DEPTH_MAX):
        world.complete(name, spawn=Spawn(subtasks=[sub("c")], join="c"))
        name += "/c"

    assert world.fail(name, final=True).reason == 0

    info = world.reader.task(b"t")
    assert info is not None and info.failure.code == "JOIN_FAILED"
    assert len(info.failure.message) <= limits.MESSAGE_CHARS_MAX


def test_codes_and_messages_of_failures_are_cut_to_their_bounds() -> None:
    world = World()
    world.submit("t", sub("a"), sub("b", optional=True))
    world.work(slots=2)
    failure = Failure(code="C" * (limits.CODE_CHARS_MAX + 1), message="é" * 5_000)
    for name, final in (("b", False), ("a", True)):
        grant = world.grants[name]
        report = FailureReport(
            subtask_ref=grant.subtask_ref, fence=grant.fence, failure=failure, final=final
        )
        assert world.one(Command(fail=Fail(report=report))).reason == 0

    info = world.reader.task(b"t", with_subtasks=True)
    assert info is not None
    for found in (info.failure, *(s.failure for s in info.subtasks)):
        assert len(found.code) == limits.CODE_CHARS_MAX
        assert len(found.message) <= limits.MESSAGE_CHARS_MAX
    events, _ = world.reader.story(b"t", page_size=1_000)
    assert max(len(event.detail) for event in events) == limits.MESSAGE_CHARS_MAX


def test_a_vote_has_a_bound_and_a_label_from_an_output_is_cut() -> None:
    world = World()
    world.submit("t", *(sub(f"v{n}", ballot="b") for n in range(3)), ballots=[BallotSpec(id="b")])
    world.work(slots=3)
    vote = Vote(label="x" * (limits.LABEL_CHARS_MAX + 1))
    assert world.complete("v0", vote=vote).reason == r.INVALID
    assert world.complete("v0", vote=Vote(label="x" * limits.LABEL_CHARS_MAX)).reason == 0
    assert world.complete("v1", '"' + "x" * 1_000 + '"').reason == 0

    info = world.reader.task(b"t", with_subtasks=True)
    assert info is not None and info.ballots[0].label == "x" * limits.LABEL_CHARS_MAX


def test_timers_beyond_the_bound_of_one_entry_fire_in_the_next() -> None:
    plain = Plain()
    most = limits.TIMERS_PER_ENTRY_MAX
    spec = TaskSpec(subtasks=[sub("a", skill="none")], deadline_ms=10)
    plain.apply([submit_command(f"t{n}", spec) for n in range(most + 1)])
    plain.now_ms = 10

    plain.apply([Command()])
    assert plain.ledger.reader().counts().running_count == 1
    assert plain.ledger.next_due_ms() == 10
    plain.apply([Command()])
    assert plain.ledger.reader().counts().running_count == 0


def test_an_entry_looks_for_what_is_due_only_once_something_can_be() -> None:
    plain, looks = Plain(), list[str]()
    spec = TaskSpec(subtasks=[sub("a", skill="none")], deadline_ms=10)
    plain.apply([submit_command("t", spec)])
    plain.apply([submit_command("u", TaskSpec(subtasks=spec.subtasks, deadline_ms=20))])
    plain.ledger.connection.set_trace_callback(
        lambda statement: looks.append(statement) if "due_ms <=" in statement else None
    )

    for now_ms, running_count in ((9, 2), (10, 1), (19, 1), (20, 0)):
        looks.clear()
        plain.now_ms = now_ms
        plain.apply([Command()])
        assert plain.ledger.reader().counts().running_count == running_count
        if now_ms == 9:
            assert looks == []
    plain.apply([Command()])
    looks.clear()
    plain.apply([Command()])
    assert looks == []


def test_what_ends_long_before_its_deadline_is_forgotten_in_its_time() -> None:
    plain = Plain()
    spec = TaskSpec(subtasks=[sub("a", skill="none")], deadline_ms=1_000, retain_ms=10)
    plain.apply([submit_command("t", spec)])
    plain.apply([Command()])  # nothing is due before the deadline, as far as is known
    plain.apply([Command(cancel=Cancel(task_id=b"t"))])

    plain.now_ms = 10
    plain.apply([Command()])

    assert plain.ledger.reader().task(b"t") is None


def test_rows_beyond_the_bound_of_one_entry_are_deleted_in_the_next() -> None:
    plain = Plain()
    most = limits.ROWS_DELETED_PER_ENTRY_MAX
    value = Value(data=b"1")
    spec = TaskSpec(
        subtasks=[sub(f"a{n}", skill="none", input=value) for n in range(most)],
        deadline_ms=10,
        retain_ms=10,
    )
    plain.apply([submit_command("t", spec)])
    count = "SELECT (SELECT count(*) FROM input) + (SELECT count(*) FROM subtask)"

    def rows() -> int:
        return int(plain.ledger.connection.execute(count).fetchone()[0])

    plain.now_ms = 10
    plain.apply([Command()])
    plain.now_ms = 20
    left = []
    for _ in range(4):
        plain.apply([Command()])
        left.append(rows())
    assert left == [most, 0, 0, 0]
    assert plain.ledger.reader().task(b"t") is None
    assert plain.ledger.reader().counts().task_count == 0
    assert plain.ledger.next_due_ms() is None

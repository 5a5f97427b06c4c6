"""What the ledger promises, in sentences. Every entry is followed by a check of all invariants."""

from __future__ import annotations

from pathlib import Path

import pytest
from quorumesh.v1 import values_pb2 as r
from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Bootstrap,
    Cancel,
    CloseSession,
    Command,
    Entry,
    MembershipChange,
    Renew,
    SessionEpoch,
    Submit,
    Suspect,
)
from quorumesh.v1.tasks_pb2 import BallotSpec, RetryPolicy, SubtaskSpec, TaskEvent, TaskSpec
from quorumesh.v1.values_pb2 import Value
from quorumesh.v1.workers_pb2 import Spawn, Vote

from consensus.ledger import APPLY_VERSION, CannotApply, Ledger, limits
from tests.ledger.world import (
    World,
    claim_command,
    complete_command,
    open_command,
    sub,
    submit_command,
)


@pytest.fixture
def world() -> World:
    return World()


def kinds(world: World, name: str = "t") -> list[str]:
    events, _ = world.reader.story(name.encode(), page_size=1000)
    return [TaskEvent.Kind.Name(event.kind) for event in events]


def test_a_chain_hands_outputs_on_and_ends_with_the_last_one(world: World) -> None:
    world.submit("t", sub("a"), sub("b", "a"))
    world.work()
    world.complete("a", '"one"')
    (grant,) = world.reader.grants([world.grants["b"]])
    world.complete("b", '"two"')

    assert [need.output.data for need in grant.needs] == [b'"one"']
    info = world.reader.task(b"t", with_outputs=True)
    assert info is not None and info.output.data == b'"two"' and info.state == r.TASK_SUCCEEDED


def test_a_standing_offer_is_served_when_work_comes_later(world: World) -> None:
    world.work(slots=2)

    world.submit("t", sub("a"), sub("b"), sub("c"))

    assert sorted(world.grants) == ["a", "b"]
    assert world.states("t")["c"] == "READY"


def test_the_least_loaded_worker_is_taken_and_then_the_one_granted_longest_ago(
    world: World,
) -> None:
    world.work("w1", slots=4)
    world.work("w2", slots=4)

    world.submit("t", *(sub(f"a{n}") for n in range(4)))

    assert [world.grants[f"a{n}"].session for n in range(4)] == [b"w1", b"w2", b"w1", b"w2"]


def test_lower_bands_go_first(world: World) -> None:
    world.submit("t9", sub("late"), band=9)
    world.submit("t0", sub("soon"), band=0)

    world.work()

    assert list(world.grants) == ["soon"]


def test_late_completion_is_refused_after_reclaim_and_the_story_shows_both(world: World) -> None:
    world.submit("t", sub("a"))
    world.work("w1", node="n1")
    old = world.grants["a"]
    world.wait(limits.LEASE_MS)
    world.work("w2", node="n3")

    outcome = world.one(complete_command(old, '"late"'))

    assert outcome.reason == r.STALE_FENCE
    events, _ = world.reader.story(b"t")
    assert (events[-1].kind, events[-1].fence, events[-1].node_id) == (
        TaskEvent.STALE_REFUSED,
        old.fence,
        "n1",
    )
    assert world.grants["a"].fence > old.fence
    assert world.complete("a").reason == 0


def test_completing_again_is_accepted_and_another_output_is_not(world: World) -> None:
    world.submit("t", sub("a"))
    world.work()
    world.complete("a", "1")

    assert world.complete("a", "1").reason == 0
    assert world.complete("a", "2").reason == r.FINISHED


def test_a_renewed_lease_holds_and_an_unrenewed_one_does_not(world: World) -> None:
    world.submit("t", sub("a"))
    epoch = world.work()
    world.now_ms += limits.LEASE_MS - 1
    renewed = Renew(sessions=[SessionEpoch(session=b"w", epoch=epoch)])
    world.apply(Command(renew=renewed))

    assert world.wait(limits.LEASE_MS - 1).revokes == []
    applied = world.wait(1)
    assert [ref.session for ref in applied.revokes] == [b"w"]
    assert applied.withdrawn == [b"w"]


def test_a_subtask_lost_too_often_fails(world: World) -> None:
    world.submit("t", sub("a"))
    for number in range(limits.LOST_COUNT_MAX + 1):
        assert world.states("t")["a"] == "READY"
        epoch = world.work(f"w{number}")
        world.apply(Command(close_session=CloseSession(session=b"w%d" % number, epoch=epoch)))

    info = world.reader.task(b"t")
    assert info is not None and info.failure.code == "LOST"


def test_failures_back_off_and_then_fail_the_task(world: World) -> None:
    world.submit("t", sub("a", retry=RetryPolicy(max_attempts=2, backoff_ms=100)), sub("b", "a"))
    epoch = world.work()
    world.fail("a")
    assert world.states("t")["a"] == "BACKOFF"
    world.wait(100)
    assert world.states("t")["a"] == "CLAIMED"
    assert world.fail("a").reason == 0
    assert world.fail("a").reason == 0

    assert world.states("t") == {"a": "FAILED", "b": "CANCELLED"}
    assert epoch == 1


def test_a_timed_out_attempt_is_revoked_and_tried_again(world: World) -> None:
    world.submit("t", sub("a", timeout_ms=500))
    world.work()

    applied = world.wait(500)

    assert [ref.why for ref in applied.revokes] == ["the attempt took too long"]
    assert world.states("t")["a"] == "BACKOFF"


def test_an_optional_failure_reaches_what_needs_it(world: World) -> None:
    world.submit("t", sub("a", optional=True), sub("b", "a"))
    world.work()
    world.fail("a", final=True)

    (grant,) = world.reader.grants([world.grants["b"]])
    assert grant.needs[0].failure.code == "AGENT_ERROR"
    world.complete("b")
    assert kinds(world)[-1] == "TASK_SUCCEEDED"


def test_spawned_work_is_joined_and_the_parent_takes_its_output(world: World) -> None:
    world.submit("t", sub("p"), sub("after", "p"))
    world.work(slots=3)
    spawn = Spawn(subtasks=[sub("x"), sub("y"), sub("join", "x", "y")], join="join")
    assert world.complete("p", spawn=spawn).reason == 0
    assert world.states("t")["p"] == "DELEGATED"
    world.complete("p/x")
    world.complete("p/y")
    world.complete("p/join", '"joined"')

    (grant,) = world.reader.grants([world.grants["after"]])
    assert grant.needs[0].output.data == b'"joined"'
    world.complete("after")
    assert kinds(world)[-1] == "TASK_SUCCEEDED"


def test_a_failing_child_fails_its_parent_and_the_task(world: World) -> None:
    world.submit("t", sub("p"))
    world.work(slots=3)
    world.complete("p", spawn=Spawn(subtasks=[sub("x"), sub("join", "x")], join="join"))

    world.fail("p/x", final=True)

    info = world.reader.task(b"t")
    assert info is not None and info.failure.code == "JOIN_FAILED"


def ballot_world(**ballot: bool) -> World:
    world = World()
    world.submit(
        "t",
        *(sub(f"v{n}", ballot="b") for n in range(3)),
        sub("after", "b"),
        ballots=[BallotSpec(id="b", **ballot)],
    )
    world.work(slots=4)
    return world


def test_a_majority_decides_early_and_stragglers_are_revoked() -> None:
    world = ballot_world()
    world.complete("v2", '"yes"')
    applied = world.apply(complete_command(world.grants["v1"], '"yes"'))

    assert [ref.subtask_ref for ref in applied.revokes] == [world.grants["v0"].subtask_ref]
    (grant,) = world.reader.grants([world.grants["after"]])
    assert (grant.needs[0].label, grant.needs[0].output.data) == ("yes", b'"yes"')
    assert world.complete("v0").reason == r.FINISHED
    world.complete("after")
    assert kinds(world)[-1] == "TASK_SUCCEEDED"


def test_hear_all_waits_for_every_voter() -> None:
    world = ballot_world(hear_all=True)
    world.complete("v0", '"yes"')
    world.complete("v1", '"yes"')
    assert "after" not in world.grants
    world.fail("v2", final=True)

    assert "after" in world.grants


def test_without_a_majority_a_ballot_is_undecided_and_fails_the_task() -> None:
    world = ballot_world()
    for number in range(3):
        world.complete(f"v{number}", vote=Vote(label=f"l{number}"))

    info = world.reader.task(b"t")
    assert info is not None and info.failure.code == "UNDECIDED"


def test_a_plurality_tie_goes_to_the_first_label_by_voter_id() -> None:
    world = ballot_world(plurality=True)
    for number in (2, 1, 0):
        world.complete(f"v{number}", vote=Vote(label=f"l{number}"))

    info = world.reader.task(b"t", with_subtasks=True)
    assert info is not None and info.ballots[0].label == "l0"


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        (TaskSpec(), r.INVALID, "no subtasks"),
        (TaskSpec(subtasks=[sub("a", "b"), sub("b", "a")]), r.INVALID, "cycle: a needs b needs a"),
        (TaskSpec(subtasks=[sub("a", "zz")]), r.INVALID, "needs 'zz'"),
        (TaskSpec(subtasks=[sub("a"), sub("a")]), r.INVALID, "twice"),
        (TaskSpec(subtasks=[sub("a/b")]), r.INVALID, "the id"),
        (TaskSpec(subtasks=[sub("a" * 65)]), r.INVALID, "the id"),
        (TaskSpec(subtasks=[sub("a")], band=limits.BAND_MAX + 1), r.INVALID, "band"),
        (TaskSpec(subtasks=[sub("a", ballot="b")]), r.INVALID, "not a ballot"),
        (TaskSpec(subtasks=[sub("a")], ballots=[BallotSpec(id="b")]), r.INVALID, "no voters"),
        (TaskSpec(subtasks=[sub("a")], output="x"), r.INVALID, "output"),
        (TaskSpec(subtasks=[SubtaskSpec(id="a")]), r.INVALID, "no skill"),
        (
            TaskSpec(subtasks=[sub("a", input=Value(data=bytes(limits.VALUE_BYTES_MAX + 1)))]),
            r.VALUE_TOO_LARGE,
            "65537 bytes",
        ),
        (
            TaskSpec(subtasks=[sub(f"a{n}") for n in range(limits.SUBTASKS_MAX + 1)]),
            r.INVALID,
            "10001 subtasks",
        ),
    ],
)
def test_a_bad_task_is_refused_with_the_rule_it_breaks(
    world: World, spec: TaskSpec, reason: int, message: str
) -> None:
    outcome = world.one(submit_command("t", spec))

    assert outcome.reason == reason
    assert message in outcome.message
    assert world.reader.counts().task_count == 0


def test_submitting_again_is_accepted_and_something_else_is_not(world: World) -> None:
    first = world.submit("t", sub("a"))

    assert world.submit("t", sub("a")) == first
    assert world.submit("t", sub("b")).reason == r.ALREADY_EXISTS
    garbage = Command(submit=Submit(task_id=b"g", spec=b"\xff"))
    assert world.one(garbage).reason == r.INVALID


def test_cancel_revokes_and_is_idempotent(world: World) -> None:
    world.submit("t", sub("a"), sub("b", "a"))
    world.work()
    command = Command(cancel=Cancel(task_id=b"t", principal="me"))

    assert len(world.apply(command).revokes) == 1
    assert world.one(command).reason == 0
    assert world.one(Command(cancel=Cancel(task_id=b"zz"))).reason == r.NOT_FOUND
    assert world.complete("a").reason == r.FINISHED


def test_outputs_and_needs_have_bounds(world: World) -> None:
    world.submit("t", *(sub(f"a{n}") for n in range(33)), sub("b", *(f"a{n}" for n in range(33))))
    world.work(slots=64)
    big = "x" * limits.VALUE_BYTES_MAX
    assert world.complete("a0", big + "x").reason == r.VALUE_TOO_LARGE
    for number in range(33):
        assert world.complete(f"a{number}", big).reason == 0

    info = world.reader.task(b"t")
    assert info is not None and info.failure.code == "INPUT_TOO_LARGE"


def test_sessions_reopen_keep_their_claims_and_outdate_the_old_epoch(world: World) -> None:
    world.submit("t", sub("a"))
    world.work()
    opened = world.one(open_command("w", "s", nonce=99))

    assert (opened.epoch, len(opened.held)) == (2, 1)
    assert world.one(open_command("w", "s", nonce=99)).epoch == 2
    assert world.one(claim_command("w", 1, 9, 1)).reason == r.STALE_EPOCH
    assert world.one(claim_command("w", 2, 1, limits.SLOTS_MAX + 1)).reason == r.INVALID
    assert world.one(claim_command("w", 2, 1, limits.SLOTS_MAX)).reason == 0


def test_a_suspected_node_gets_nothing_new_until_its_worker_claims_again(world: World) -> None:
    epoch = world.work()
    assert world.apply(Command(suspect=Suspect(node_id="n1"))).withdrawn == [b"w"]
    world.submit("t", sub("a"))
    assert world.states("t")["a"] == "READY"

    world.claim("w", epoch, 1)

    assert world.states("t")["a"] == "CLAIMED"


def test_deadlines_fail_a_task_and_retention_forgets_it(world: World) -> None:
    world.submit("t", sub("a", skill="nobody"), deadline_ms=1000, retain_ms=1000)
    info = world.reader.task(b"t", with_subtasks=True)
    assert info is not None
    assert info.subtasks[0].waiting_reason == "no worker has the skill 'nobody'"
    world.wait(1000)
    info = world.reader.task(b"t")
    assert info is not None and info.failure.code == "DEADLINE"
    world.wait(1000)

    assert world.reader.task(b"t") is None
    assert world.ledger.next_due_ms() is None


def token(**more: object) -> Command:
    return Command(add_token=AddToken(token_id=b"k", secret_digest=b"d", **more))  # type: ignore[arg-type]


def admit(node: str = "n2", digest: bytes = b"d") -> Command:
    return Command(admit=Admit(token_id=b"k", secret_digest=digest, node_id=node, address="h:1"))


def test_tokens_are_used_once_and_expire(world: World) -> None:
    assert world.one(admit()).reason == r.TOKEN_UNKNOWN
    world.one(token(ttl_ms=100))
    assert world.one(token(ttl_ms=100)).reason == 0
    assert world.one(admit(digest=b"x")).reason == r.TOKEN_UNKNOWN
    world.now_ms = 100
    assert world.one(admit()).reason == r.TOKEN_EXPIRED
    world.now_ms = 0
    other = World()
    other.one(token())
    assert [other.one(admit()).reason for _ in range(2)] == [0, 0]
    assert other.one(admit("n3")).reason == r.TOKEN_USED


def test_the_mesh_is_founded_once_and_voters_come_and_go(world: World) -> None:
    found = Bootstrap(mesh_id="m", node_id="n1", address="h:1")
    assert world.one(Command(bootstrap=found)).reason == 0
    assert world.one(Command(bootstrap=found)).reason == 0
    other = Bootstrap(mesh_id="x", node_id="n1")
    assert world.one(Command(bootstrap=other)).reason == r.ALREADY_EXISTS
    change = MembershipChange(add=True, node_id="n2", address="h:2")
    world.ledger.apply_membership(world.ledger.applied_index + 1, 1, change)

    assert world.ledger.voters() == {"n1": "h:1", "n2": "h:2"}


def test_an_entry_of_a_later_version_stops_the_node(world: World) -> None:
    with pytest.raises(CannotApply):
        world.ledger.apply(1, 1, Entry(apply_version=APPLY_VERSION + 1))
    assert world.ledger.applied_index == 0


def test_a_closed_and_opened_ledger_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    live = World()
    live.work(slots=2)
    for number in range(5):
        live.submit(f"t{number}", sub("a"), sub("b", "a"))
    path = str(tmp_path / "ledger.db")

    for index, entry in enumerate(live.log, 1):
        ledger = Ledger.open(path)
        ledger.apply(index, 1, entry)
        assert ledger.checkpoint()
        digest, full = ledger.digest, ledger.full_digest()
        ledger.close()

    assert (digest, full) == (live.ledger.digest, live.ledger.full_digest())

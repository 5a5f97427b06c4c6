"""A damaged member comes back as another one: what the ledger lets in, and what it forgets."""

from __future__ import annotations

import pytest
from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Bootstrap,
    Command,
    MembershipChange,
    Scrub,
    ScrubKey,
)
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.values_pb2 import Reason

from consensus.ledger import Applied, Ledger, limits
from tests.ledger.world import World, complete_command, sub


def change_of(world: World, node_id: str, *, add: bool) -> Applied:
    change = MembershipChange(add=add, node_id=node_id, address=f"{node_id}:1" if add else "")
    return world.ledger.apply_membership(world.ledger.applied_index + 1, 1, change)


def replacement(new: str, old: str, **more: object) -> Command:
    admit = Admit(node_id=new, name="host", address=f"{new}:1", replaces=old, apply_version_max=2)
    admit.MergeFrom(Admit(**more))  # type: ignore[arg-type]
    return Command(admit=admit)


@pytest.fixture
def world() -> World:
    """Three voters."""
    world = World()
    world.one(Command(bootstrap=Bootstrap(mesh_id="m", node_id="n1", address="n1:1")))
    for node_id in ("n2", "n3"):
        change_of(world, node_id, add=True)
    return world


def test_a_replaced_voter_is_leaving_until_the_log_takes_its_vote_and_then_forgotten(
    world: World,
) -> None:
    assert world.one(replacement("n4", "n2")).reason == 0

    assert world.ledger.leaving() == ["n2"]
    assert set(world.ledger.voters()) == {"n1", "n2", "n3"}
    assert [(m.node_id, m.leaving) for m in world.reader.members()] == [
        ("n1", False),
        ("n2", True),
        ("n3", False),
        ("n4", False),
    ]
    change_of(world, "n2", add=False)
    change_of(world, "n4", add=True)
    assert world.ledger.leaving() == []
    assert set(world.ledger.members()) == set(world.ledger.voters()) == {"n1", "n3", "n4"}


def learner(world: World, node_id: str) -> None:
    """Admit a node that has no vote yet."""
    token = AddToken(token_id=b"t", secret_digest=b"d", ttl_ms=60_000)
    admit = Admit(token_id=b"t", secret_digest=b"d", node_id=node_id, address=f"{node_id}:1")
    world.apply(Command(add_token=token), Command(admit=admit))


def test_a_member_without_a_vote_is_forgotten_at_once(world: World) -> None:
    learner(world, "n5")

    assert world.one(replacement("n6", "n5")).reason == 0

    assert set(world.ledger.members()) == {"n1", "n2", "n3", "n6"}
    assert world.ledger.removed_at("n5") == world.ledger.applied_index


def test_the_id_of_a_removed_node_is_never_admitted_again(world: World) -> None:
    learner(world, "n5")
    change_of(world, "n5", add=False)
    token = AddToken(token_id=b"new", secret_digest=b"d", ttl_ms=60_000)
    again = Admit(token_id=b"new", secret_digest=b"d", node_id="n5", address="n5:1")
    used = Admit(token_id=b"t", secret_digest=b"d", node_id="n5", address="n5:1")
    world.one(Command(add_token=token))

    assert world.one(Command(admit=again)).reason == Reason.ALREADY_EXISTS
    assert world.one(Command(admit=used)).reason == Reason.ALREADY_EXISTS
    assert world.one(replacement("n5", "n2")).reason == Reason.ALREADY_EXISTS


def test_ids_of_removed_nodes_are_remembered_up_to_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "DEPARTED_MAX", 3)
    for number in range(10, 16):
        change_of(world, f"n{number}", add=True)
        change_of(world, f"n{number}", add=False)

    query = "SELECT node_id FROM departed ORDER BY node_id"
    assert world.ledger.connection.execute(query).fetchall() == [("n13",), ("n14",), ("n15",)]


def test_workers_of_a_removed_node_are_offered_nothing_more(world: World) -> None:
    world.work("w", node="n2")
    change_of(world, "n2", add=False)

    world.submit("t", sub("a"))

    assert world.grants == {}


def test_a_vote_that_was_on_its_way_to_a_replaced_node_leaves_with_it(world: World) -> None:
    learner(world, "n5")
    world.one(replacement("n6", "n5"))

    change_of(world, "n5", add=True)

    assert world.ledger.leaving() == ["n5"]
    change_of(world, "n5", add=False)
    assert "n5" not in world.ledger.members()


def test_the_same_replacement_again_is_accepted_again_also_when_the_old_one_is_gone(
    world: World,
) -> None:
    world.one(replacement("n4", "n2"))
    assert world.one(replacement("n4", "n2")).reason == 0
    change_of(world, "n2", add=False)

    assert world.one(replacement("n4", "n2")).reason == 0
    assert set(world.ledger.members()) == {"n1", "n3", "n4"}


def test_what_is_refused_of_a_replacement_in_this_order(world: World) -> None:
    rows = "SELECT * FROM member ORDER BY node_id"
    world.one(replacement("n4", "n2"))
    before = world.ledger.connection.execute(rows).fetchall()

    refused = {
        "both": world.one(replacement("n5", "n1", token_id=b"t")).reason,
        "itself": world.one(replacement("n1", "n1")).reason,
        "long": world.one(replacement("n5", "x" * 1_000)).reason,
        "taken": world.one(replacement("n3", "n1")).reason,
        "taken by another replacement": world.one(replacement("n4", "n1")).reason,
        "unknown": world.one(replacement("n5", "n9")).reason,
        "replaced": world.one(replacement("n5", "n2")).reason,
    }

    assert {key: Reason.Name(value) for key, value in refused.items()} == {
        "both": "INVALID",
        "itself": "INVALID",
        "long": "INVALID",
        "taken": "ALREADY_EXISTS",
        "taken by another replacement": "ALREADY_EXISTS",
        "unknown": "NOT_FOUND",
        "replaced": "ALREADY_EXISTS",
    }
    assert world.ledger.connection.execute(rows).fetchall() == before


def test_a_replaced_nodes_claims_are_lost_at_once_and_late_results_refused(world: World) -> None:
    world.work("w2", node="n2")
    world.submit("t", sub("a"))
    old = world.grant("a")
    world.work("w1", node="n1")

    applied = world.apply(replacement("n4", "n2"))

    kinds = [event.kind for event in applied.events]
    assert kinds[0] == TaskEvent.ATTEMPT_LOST and TaskEvent.CLAIMED in kinds
    assert [ref.session for ref in applied.grants] == [b"w1"]
    assert {worker.name: worker.open for worker in world.reader.workers()} == {
        "w1": True,
        "w2": False,
    }
    assert world.one(complete_command(old, '"late"')).reason == Reason.Value("STALE_FENCE")
    assert world.complete("a").reason == 0


def test_a_full_mesh_still_lets_a_damaged_node_come_back(world: World) -> None:
    world.ledger.connection.executemany(
        "INSERT INTO member VALUES (?,'','a:1',0,0,2,'',0)",
        [(f"x{number}",) for number in range(limits.MEMBERS_MAX - 3)],
    )

    assert world.one(replacement("n4", "n2")).reason == 0


def test_a_scrub_entry_changes_nothing_but_where_the_ledger_stands() -> None:
    world, other = World(), World()
    for one in (world, other):
        one.submit("t", sub("a"))

    world.one(Command(scrub=Scrub(part=3, after=[ScrubKey(number=1)], rows_max=10)))
    other.apply()

    assert _rows_but_the_ledgers(world.ledger) == _rows_but_the_ledgers(other.ledger)


def _rows_but_the_ledgers(ledger: Ledger) -> list[object]:
    names = ["member", "token", "class", "session", "task", "subtask", "event", "task_event"]
    return [ledger.connection.execute(f"SELECT * FROM {name}").fetchall() for name in names]

"""Row 10, voters come and go: one change at a time, and only voters of the last change count."""

from __future__ import annotations

from quorumesh.v1.ledger_pb2 import MembershipChange

from consensus.engine import Engine
from tests.engine.test_rules import acknowledged, settled
from tests.engine.world import World


def add(node_id: str) -> MembershipChange:
    return MembershipChange(add=True, node_id=node_id, address=f"{node_id}:1")


def remove(node_id: str) -> MembershipChange:
    return MembershipChange(add=False, node_id=node_id)


def test_rule_10_one_membership_change_at_a_time() -> None:
    one_change_at_a_time(Engine)


def one_change_at_a_time(engine_type: type[Engine]) -> None:
    world, leader, others = settled(engine_type=engine_type)
    for other in others:
        world.partition(leader, other)
    engine = world.nodes[leader].engine

    assert engine.change(add("n4"))
    assert not engine.change(add("n5"))
    assert not engine.change(remove(others[0]))
    assert sorted(engine.voters) == ["n1", "n2", "n3", "n4"]


def test_rule_10_the_next_change_waits_until_the_last_one_is_committed() -> None:
    world, leader, others = settled()
    engine = world.nodes[leader].engine
    assert engine.change(remove(others[0]))
    assert not engine.change(remove(others[1]))

    assert world.run(1_000, lambda: engine.change(remove(others[1])))
    world.run(200)

    assert sorted(engine.voters) == [leader]
    assert world.violations == []


def test_rule_10_no_change_before_the_no_op_of_a_new_leader() -> None:
    world, old, others = settled()
    world.isolate(old)
    new = world.wait_leader(others)
    engine = world.nodes[new].engine
    world.isolate(new)
    assert engine.role == "leader" and engine.commit_index < engine.last_index

    assert not engine.change(add("n4"))
    assert sorted(engine.voters) == ["n1", "n2", "n3"]


def test_rule_10_a_change_that_was_withdrawn_is_no_longer_in_force() -> None:
    world, old, others = settled()
    world.isolate(old)
    assert world.nodes[old].engine.change(remove(others[0]))
    world.wait_leader(others)
    world.run(500)

    world.rejoin(old)
    world.run(3_000)

    assert sorted(world.nodes[old].engine.voters) == ["n1", "n2", "n3"]
    assert world.violations == []


def test_rule_10_a_new_voter_votes_before_it_knows_that_it_may() -> None:
    """The others of its majority are dead, or have a shorter log: without it nobody could lead."""
    world, leader, others = settled()
    joiner = world.join("n4")
    engine = world.nodes[leader].engine

    def has_caught_up() -> bool:
        engine.feed("n4")
        return engine.matched("n4") == engine.last_index

    assert world.run(5_000, has_caught_up)
    world.crash(others[0])
    world.filter = lambda a, b, frame: False
    assert engine.change(add("n4"))
    world.run(2_500)
    assert engine.role != "leader" and joiner.engine.role == "passive"

    world.filter = lambda a, b, frame: True

    assert world.wait_leader([leader, "n4"]) == leader
    assert world.run(5_000, lambda: "n4" in joiner.engine.voters)
    assert world.violations == []


def test_rule_10_a_removed_voter_counts_for_nothing() -> None:
    removed_voter_counts_for_nothing(Engine)


def removed_voter_counts_for_nothing(engine_type: type[Engine]) -> None:
    """Of two voters left one is cut off: what the removed one holds commits nothing."""
    world, leader, (gone, other) = settled(engine_type=engine_type)
    world.partition(leader, other)
    engine = world.nodes[leader].engine
    before = engine.commit_index
    assert engine.change(remove(gone))
    engine.feed(gone)

    world.propose(leader, b"held by no majority")
    world.run(1_000)

    assert engine.matched(gone) == engine.last_index
    assert engine.commit_index == before
    assert not acknowledged(world, b"held by no majority")


def test_rule_10_a_leader_that_is_removed_does_not_count_itself() -> None:
    removed_leader_does_not_count_itself(Engine)


def removed_leader_does_not_count_itself(engine_type: type[Engine]) -> None:
    """It still leads until its removal is committed (thesis 4.2.2), by the two others alone."""
    world, leader, (near, far) = settled(engine_type=engine_type)
    world.partition(leader, far)
    engine = world.nodes[leader].engine
    before = engine.commit_index
    assert engine.change(remove(leader))

    world.propose(leader, b"held by one of two")
    world.run(1_000)

    assert engine.matched(near) == engine.last_index
    assert engine.commit_index == before
    assert not acknowledged(world, b"held by one of two")


def test_rule_10_a_leader_whose_removal_is_committed_leads_no_more() -> None:
    world, leader, others = settled()
    assert world.nodes[leader].engine.change(remove(leader))

    assert world.run(2_000, lambda: world.nodes[leader].engine.role == "passive")
    new = world.wait_leader(others)

    assert world.nodes[leader].engine.append(b"\x00more") is None
    assert world.propose(new, b"after")
    world.run(300)
    assert acknowledged(world, b"after")
    assert world.violations == []


def test_rule_10_a_removed_node_that_never_heard_of_it_deposes_nobody() -> None:
    for seed in range(10):
        world, leader, (gone, other) = settled(seed)
        world.isolate(gone)
        assert world.nodes[leader].engine.change(remove(gone))
        world.run(3_000)
        terms = node_terms(world, leader, other)

        world.rejoin(gone)
        world.run(5_000)

        assert world.leader() == leader
        assert node_terms(world, leader, other) == terms


def node_terms(world: World, *node_ids: str) -> list[int]:
    return [world.nodes[node_id].engine.term for node_id in node_ids]


def test_rule_10_membership_is_known_again_after_a_restart() -> None:
    world, leader, _ = settled()
    world.join("n4")
    world.run(100)
    world.nodes[leader].engine.feed("n4")
    assert world.nodes["n4"].engine.role == "passive"
    assert world.run(3_000, lambda: world.nodes[leader].engine.matched("n4") > 0)
    assert world.nodes[leader].engine.change(
        MembershipChange(add=True, node_id="n4", address="n4:1")
    )
    world.run(500)
    for node_id in world.nodes:
        world.crash(node_id)
    for node in world.nodes.values():
        node.start()
        assert sorted(node.engine.voters) == ["n1", "n2", "n3", "n4"]


def test_rule_10_a_removed_node_stops_and_disturbs_nobody() -> None:
    world, leader, (gone, _) = settled()
    term = world.nodes[leader].engine.term
    assert world.nodes[leader].engine.change(MembershipChange(add=False, node_id=gone))
    world.run(3_000)

    assert gone not in world.nodes[leader].engine.voters
    assert world.nodes[leader].engine.term == term
    assert world.propose(leader, b"after")
    world.run(200)
    assert acknowledged(world, b"after")

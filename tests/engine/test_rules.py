"""The rules that make the ordering safe, one by one; test_stock.py shows them broken."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
from quorumesh.v1.peer_pb2 import (
    AppendEntries,
    AppendReply,
    Frame,
    LogEntry,
    PreVote,
    RequestVote,
    SnapshotChunk,
)

from consensus.engine import Engine, codec, library
from consensus.engine.config import APPEND_BYTES_MAX, APPENDS_PER_TURN_MAX, COMMAND_BYTES_MAX
from consensus.engine.raft import LIBRARY_BATCH_BYTES
from consensus.errors import Damaged
from tests.engine.world import World


def settled(
    seed: int = 1, nodes: int = 3, engine_type: type[Engine] = Engine
) -> tuple[World, str, list[str]]:
    """A world with a leader that has committed its no-op, and the others' ids."""
    world = World(seed, nodes=nodes, engine_type=engine_type)
    leader = world.wait_leader()
    world.run(1_000)
    return world, leader, [node_id for node_id in world.nodes if node_id != leader]


def acknowledged(world: World, value: bytes) -> bool:
    return value in world.acknowledged


def test_rule_1_nothing_is_acknowledged_before_it_is_durable() -> None:
    world, leader, others = settled()
    world.sync_ms = (10_000, 10_000)

    assert world.propose(leader, b"unsynced")
    world.run(300)

    assert not acknowledged(world, b"unsynced")
    engine = world.nodes[leader].engine
    assert engine.synced_index == engine.commit_index == engine.last_index - 1
    assert all(engine.matched(peer) < engine.last_index for peer in others)


def test_rule_1_an_acknowledged_value_survives_power_loss_of_every_node() -> None:
    for seed in range(10):
        world, leader, _ = settled(seed)
        for at in range(30):
            world.propose(leader, b"value %d" % at)
            world.run(world.rng.uniform(0, 5))
        for node_id in world.nodes:
            world.crash(node_id)
        world.heal_all()
        world.run(5_000)
        world.check_settled()
        assert world.violations == []


def test_rule_1_a_full_disk_makes_the_leader_step_down_and_say_nothing() -> None:
    world, leader, _ = settled()
    world.nodes[leader].disk.fails_writes = True

    world.propose(leader, b"lost")
    world.run(3_000)

    assert world.nodes[leader].engine.failed is not None
    assert world.nodes[leader].engine.role != "leader"
    assert all(command != b"\x00lost" for _, command in world.nodes[leader].log.entries)
    assert world.leader() not in (None, leader)


def test_rule_2_a_restarted_voter_does_not_vote_twice_in_a_term() -> None:
    world, leader, (voter, other) = settled()
    node = world.nodes[voter]
    for peer in world.nodes:
        if peer != voter:
            world.partition(voter, peer)
    term = node.engine.term + 5
    ask = Frame(
        term=term, request_vote=RequestVote(last_index=10**6, last_term=term, transfer=True)
    )
    node.engine.frame_received(leader, ask)
    world.crash(voter)
    world.start(voter)

    given: list[str] = []
    world.filter = lambda a, b, frame: (
        not (frame.HasField("vote_reply") and given.append(b) is None)
    )
    world.heal(voter, other)
    world.run(10)
    node.engine.frame_received(other, ask)
    world.run(10)

    assert node.engine.term == term
    assert given == []


def test_rule_2_a_lost_vote_record_refuses_to_start() -> None:
    world, _, (voter, _) = settled()
    world.crash(voter)
    world.nodes[voter].disk.remove(Path("/sim") / voter / "vote")

    with pytest.raises(Damaged):
        world.start(voter)


def test_rule_3_dropping_segments_loses_nothing_after_the_dropped_index() -> None:
    world, leader, _ = settled()
    for at in range(200):
        world.propose(leader, b"value %d" % at)
        world.run(3)
    for node in world.nodes.values():
        node.journal.drop_to(node.applied_index)
        assert node.journal.base_index > 0
    for node_id in world.nodes:
        world.crash(node_id)
    world.heal_all()
    world.run(5_000)
    world.check_settled()
    assert world.violations == []


def test_rule_4_an_old_append_cuts_nothing_that_agrees() -> None:
    old_append_cuts_nothing(Engine)


def old_append_cuts_nothing(engine_type: type[Engine]) -> None:
    world, leader, (follower, _) = settled(engine_type=engine_type)
    node = world.nodes[follower]
    old: list[Frame] = []
    world.filter = lambda a, b, frame: (
        old.append(Frame.FromString(frame.SerializeToString())) or True
        if b == follower and frame.append.entries
        else True
    )
    for at in range(10):
        world.propose(leader, b"value %d" % at)
        world.run(30)
    last = node.engine.last_index

    for frame in old:
        node.engine.frame_received(leader, frame)
        assert node.engine.last_index == last

    assert node.engine.counters.truncations == 0


def test_rule_4_cutting_what_is_committed_stops_the_node() -> None:
    world, leader, (follower, _) = settled()
    node = world.nodes[follower]
    append = AppendEntries(prev_index=0, prev_term=0)
    append.entries.append(LogEntry(index=1, term=node.engine.term + 1, command=b"\x00evil"))

    with pytest.raises(AssertionError):
        node.engine.frame_received(leader, Frame(term=node.engine.term + 1, append=append))


def test_rule_5_an_answer_of_an_older_term_counts_for_nothing() -> None:
    old_answer_counts_for_nothing(Engine)


def old_answer_counts_for_nothing(engine_type: type[Engine]) -> None:
    world, leader, (peer, _) = settled(engine_type=engine_type)
    for other in list(world.nodes):
        if other != leader:
            world.stall(other, leader)
    world.propose(leader, b"held by nobody else")
    world.run(20)
    engine = world.nodes[leader].engine
    reply = AppendReply(next_index=engine.last_index + 1, success=True)

    engine.frame_received(peer, Frame(term=engine.term - 1, append_reply=reply))
    world.run(50)

    assert not acknowledged(world, b"held by nobody else")
    assert engine.matched(peer) < engine.last_index


def test_rule_6_a_snapshot_chunk_commits_nothing_unverified() -> None:
    world, leader, others = settled()
    world.isolate(leader)
    world.propose(leader, b"never committed")
    world.run(20)
    engine = world.nodes[leader].engine
    before = engine.commit_index
    chunk = SnapshotChunk(
        index=900, entry_term=9, data=b"part", total_bytes=10_000, digest=b"d", commit_index=900
    )

    engine.frame_received(others[0], Frame(term=engine.term + 1, snapshot=chunk))
    world.run(50)

    assert engine.commit_index == before
    assert not acknowledged(world, b"never committed")


def test_rule_6_a_heartbeat_commits_no_further_than_it_verified() -> None:
    world, leader, (peer, _) = settled()
    world.isolate(leader)
    for at in range(5):
        world.propose(leader, b"tail %d" % at)
    engine = world.nodes[leader].engine
    before = engine.commit_index
    append = AppendEntries(prev_index=before, prev_term=engine.term, commit_index=before + 5)

    engine.frame_received(peer, Frame(term=engine.term + 1, append=append))

    assert engine.commit_index == before


def test_rule_7_a_conflicting_tail_catches_up_with_many_batches() -> None:
    world, old, others = settled()
    world.isolate(old)
    for at in range(30):
        world.propose(old, b"conflicting %d" % at)
    new = world.wait_leader(others)
    for at in range(300):
        world.propose(new, b"%d" % at + b"x" * 4_096)
        if at % 20 == 0:
            world.run(20)
    world.run(500)
    world.rejoin(old)

    assert world.run(5_000, lambda: world.nodes[old].applied_index >= 300)
    assert world.nodes[old].engine.counters.truncations > 0
    assert world.violations == []


def test_a_leader_begins_only_so_many_frames_to_one_peer_in_one_turn() -> None:
    world, leader, others = settled()
    behind = others[0]
    world.isolate(behind)
    entry_count = 3 * APPENDS_PER_TURN_MAX + 1
    for at in range(entry_count):
        world.propose(leader, b"%d" % at + b"x" * APPEND_BYTES_MAX)
        world.run(20)
    world.run(500)
    frames_of_turn: Counter[int] = Counter()

    def count(source: str, target: str, frame: Frame) -> bool:
        if (source, target) == (leader, behind) and frame.append.entries:
            frames_of_turn[world.clock.now_us] += 1
        return True

    world.filter = count
    world.rejoin(behind)

    assert world.run(5_000, lambda: world.nodes[behind].applied_index >= entry_count)
    assert max(frames_of_turn.values()) == APPENDS_PER_TURN_MAX
    assert sum(frames_of_turn.values()) >= entry_count
    full_us = [at_us for at_us, count in frames_of_turn.items() if count == APPENDS_PER_TURN_MAX]
    assert max(full_us) - min(full_us) < 1_000, "the next turn comes at once, not with the tick"


def test_rule_8_a_machine_that_raises_is_given_the_same_entry_again_and_only_once() -> None:
    world, leader, _ = settled()
    node = world.nodes[leader]
    before = node.applied_index
    wanted = node.apply
    raised: list[int] = []

    def apply(index: int, term: int, command: bytes) -> None:
        if not raised:
            raised.append(index)
            raise RuntimeError("the disk of the ledger is full")
        wanted(index, term, command)

    node.apply = apply  # type: ignore[method-assign]  # the node is its own machine
    world.propose(leader, b"value")
    with pytest.raises(RuntimeError):
        world.run(200)
    node.wants_tick = False
    world.run(200)
    for _ in range(10):
        node.turn()
        world.run(5)

    assert node.applied_index == before + 1
    assert [command for _, command in node.log.entries].count(b"\x00value") == 1


def test_rule_9_the_library_never_speaks_for_itself() -> None:
    world, leader, _ = settled()
    raft = world.nodes[leader].engine._seat.raft

    with pytest.raises(AssertionError):
        raft._SyncObj__transport.send(None, {"type": "apply_command"})
    with pytest.raises(AssertionError):
        raft.doTick()


def test_rule_11_a_returning_node_deposes_nobody() -> None:
    for seed in range(20):
        world, leader, (away, _) = settled(seed)
        term = world.nodes[leader].engine.term
        world.isolate(away)
        world.run(3_000)
        world.rejoin(away)
        world.run(1_000)
        assert (world.leader(), world.nodes[leader].engine.term) == (leader, term)


def test_rule_11_a_broken_link_to_the_leader_brings_a_new_one_soon() -> None:
    world, leader, others = settled()
    crashed_ms = world.clock.monotonic_ms()
    world.crash(leader)

    world.wait_leader(others)

    assert world.clock.monotonic_ms() - crashed_ms < 500


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.abort, ()  # type: ignore[return-value]  # never to be run


def test_rule_13_hostile_bytes_run_nothing_and_change_nothing() -> None:
    world, leader, (follower, _) = settled()
    node = world.nodes[follower]
    evil = pickle.dumps(Evil())
    before = node.engine.last_index
    term = node.engine.term
    for command in (b"", b"\x02" + evil, b"\x03" + evil, b"\x02", b"\xff", b"\x02" + b"\x00" * 9):
        append = AppendEntries(prev_index=before, prev_term=term)
        append.entries.append(LogEntry(index=before + 1, term=term, command=command))
        node.engine.frame_received(leader, Frame(term=term, append=append))
    node.engine.frame_received(leader, Frame(term=term))
    node.engine.frame_received(leader, Frame(term=0, pre_vote=PreVote()))

    assert node.engine.last_index == before
    assert node.engine.counters.frames_refused >= 6
    with pytest.raises(codec.Undecodable):
        codec.loads(evil)
    with pytest.raises(codec.Undecodable):
        codec.dumps(Evil())


def test_rule_14_the_library_is_told_never_to_fork_nor_to_dump() -> None:
    world, leader, _ = settled()
    conf = world.nodes[leader].engine._seat.raft.conf

    assert (conf.useFork, conf.fullDumpFile, conf.autoTick) == (False, None, False)


def test_rule_15_entries_stay_below_the_librarys_chunk_path() -> None:
    world, leader, _ = settled()
    assert COMMAND_BYTES_MAX < LIBRARY_BATCH_BYTES
    assert world.propose(leader, b"z" * (COMMAND_BYTES_MAX - 1))
    assert world.run(500, lambda: world.nodes[leader].engine.unsynced_count == 0)
    with pytest.raises(AssertionError):
        world.propose(leader, b"z" * COMMAND_BYTES_MAX)


def test_another_library_is_refused() -> None:
    with pytest.raises(ImportError):
        library.check_source("0.3.18", b"")
    with pytest.raises(ImportError):
        library.check_source("0.3.17", b"changed")


def test_a_leader_hands_over_to_a_voter_that_holds_everything() -> None:
    world, leader, (heir, _) = settled()

    assert world.nodes[leader].engine.transfer(heir)
    world.run(300)

    assert world.leader() == heir
    assert world.violations == []


def without_its_first(count: int) -> tuple[World, str]:
    """A settled world and its leader; so many values were written, and no journal holds them."""
    world, leader, _ = settled()
    for at in range(count):
        world.propose(leader, b"value %d" % at)
        world.run(3)
    world.run(500)
    for node in world.nodes.values():
        node.journal.drop_to(node.applied_index)
    return world, leader


def test_a_node_that_is_held_back_has_no_office_and_no_voice_and_applies_what_is_committed() -> (
    None
):
    world, leader, others = settled()
    engine = world.nodes[leader].engine
    assert world.propose(leader, b"before")
    world.run(1_000, lambda: acknowledged(world, b"before"))

    engine.hold(True)
    successor = world.wait_leader(others)
    term, last = engine.term, engine.last_index
    assert world.propose(successor, b"meanwhile")
    world.run(5_000)

    assert (engine.role, engine.leader_id, engine.term) == ("follower", "", term)
    assert engine.last_index == last == world.nodes[leader].applied_index
    assert leader not in world.nodes[successor].engine.live_nodes()
    engine.hold(False)
    world.run(2_000)
    assert (engine.leader_id, engine.last_index) == (
        successor,
        world.nodes[successor].engine.last_index,
    )
    assert world.nodes[successor].engine.role == "leader", "its return costs no term"


def test_a_joiner_far_behind_is_given_a_copy_and_then_the_entries_after_it() -> None:
    world, leader = without_its_first(300)
    joiner = world.join("n4")
    world.run(100)
    world.nodes[leader].engine.feed("n4")

    caught_up = world.run(5_000, lambda: joiner.applied_index == world.nodes[leader].applied_index)

    assert caught_up
    assert joiner.engine.counters.snapshots_installed == 1
    assert joiner.engine.role == "passive"
    assert joiner.log.entries == world.nodes[leader].log.entries


def test_a_peer_whose_disk_refuses_copies_is_not_sent_one_after_the_other() -> None:
    world, leader = without_its_first(100)
    joiner = world.join("n4")
    joiner.throws_copies_away = True
    world.run(100)
    world.nodes[leader].engine.feed("n4")

    world.run(10_000)

    assert 5 <= world.nodes[leader].engine.counters.snapshots_sent <= 10
    joiner.throws_copies_away = False
    assert world.run(3_000, lambda: joiner.applied_index == world.nodes[leader].applied_index)
    assert world.violations == []

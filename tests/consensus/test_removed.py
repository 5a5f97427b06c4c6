"""What a removed node, or a stranger, says to the nodes of a mesh: it changes nothing there."""

from __future__ import annotations

from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import MembershipChange
from quorumesh.v1.peer_pb2 import (
    AppendEntries,
    AppendReply,
    Frame,
    LogEntry,
    PreVote,
    Propose,
    RequestVote,
    ScrubDigest,
    SnapshotReply,
    TimeoutNow,
    VoteReply,
)

from consensus.core import Core
from consensus.engine.config import TERM_MAX
from consensus.errors import Refusal
from tests.consensus.cluster import Cluster
from tests.consensus.test_cores import accepted, submit, three
from tests.consensus.test_forwarding import from_peer
from tests.consensus.test_membership import ask, followers

STRANGER = "n9"


def without_one(tmp_path: Path) -> tuple[Cluster, str]:
    """Two voters, and one that was removed and knows it. All is quiet."""
    cluster = three(tmp_path)
    gone, other = followers(cluster)
    assert ask(cluster, cluster.cores[other], "remove_voter", gone) is None
    cluster.world.run(lambda: cluster.cores[gone].is_removed)
    cluster.kill(gone)
    cluster.world.run(lambda: cluster.agree())
    return cluster, gone


def listen(cluster: Cluster, peer: str) -> list[Frame]:
    """What is said to a peer from now on."""
    said: list[Frame] = []
    send = cluster.wires.send

    def heard(source: str, target: str, frame: Frame) -> bool:
        if target == peer:
            said.append(frame)
        return send(source, target, frame)

    cluster.wires.send = heard  # type: ignore[method-assign]  # the wires are the test's own
    return said


def state(core: Core) -> tuple[object, ...]:
    engine = core.engine
    return engine.role, engine.term, engine.last_index, engine.leader_id, core.ledger.digest


@pytest.mark.parametrize("who", ["removed", "stranger"])
def test_commands_of_who_is_no_member_are_told_that_they_got_nowhere(
    tmp_path: Path, who: str
) -> None:
    cluster, gone = without_one(tmp_path)
    peer = gone if who == "removed" else STRANGER
    leader = cluster.wait_leader()
    said, before = listen(cluster, peer), state(leader)

    leader.frame_received(peer, Frame(term=before[1], propose=from_peer(submit(1), submit(2))))  # type: ignore[arg-type]
    cluster.world.run_for(1_000)

    assert [(reply.incarnation, list(reply.sequences)) for reply in replies(said)] == [(99, [1, 2])]
    assert replies(said)[0].refused == "not appended here"
    assert state(leader) == before
    accepted(cluster.propose(leader.config.node_id, submit(3)))
    assert leader.reader.counts().task_count == 1


def replies(said: list[Frame]) -> list[object]:
    return [frame.propose_reply for frame in said if frame.HasField("propose_reply")]


@pytest.mark.parametrize("who", ["removed", "stranger"])
@pytest.mark.parametrize("is_add", [True, False])
def test_changes_of_voters_asked_by_who_is_no_member_are_refused(
    tmp_path: Path, who: str, is_add: bool
) -> None:
    cluster, gone = without_one(tmp_path)
    peer = gone if who == "removed" else STRANGER
    leader = cluster.wait_leader()
    [other] = [name for name in cluster.cores if name != leader.config.node_id]
    said, before, voters = listen(cluster, peer), state(leader), leader.ledger.voters()
    change = MembershipChange(add=is_add, node_id=peer if is_add else other)

    leader.frame_received(peer, Frame(term=leader.engine.term, propose=Propose(change=change)))
    cluster.world.run_for(1_000)

    assert [reply.refused for reply in replies(said)] == [Refusal.NOT_A_MEMBER.name]
    assert state(leader) == before and leader.ledger.voters() == voters


def test_what_a_removed_node_found_in_its_ledger_counts_for_nothing(tmp_path: Path) -> None:
    cluster, gone = without_one(tmp_path)
    core = cluster.cores[sorted(cluster.cores)[0]]
    [peer] = [name for name in cluster.cores if name != core.config.node_id]

    for name in (gone, STRANGER, peer):
        said = ScrubDigest(revision=1 << 40, digest=bytes(32))
        core.frame_received(name, Frame(term=core.engine.term, scrub_digest=said))

    assert set(core.scrubbing._heard) == {peer}


@pytest.mark.parametrize("node", ["leader", "follower"])
def test_a_removed_node_can_neither_lead_nor_vote_nor_end_a_term(tmp_path: Path, node: str) -> None:
    cluster, gone = without_one(tmp_path)
    leader = cluster.wait_leader()
    [other] = [name for name in cluster.cores if name != leader.config.node_id]
    core = leader if node == "leader" else cluster.cores[other]
    term, last = core.engine.term + 5, core.engine.last_index
    before, refused = state(core), core.engine.counters.frames_refused
    entry = LogEntry(index=last + 1, term=term, command=b"\1")
    append = AppendEntries(prev_index=last, prev_term=core.journal.last_term, entries=[entry])
    frames = [
        Frame(term=term, append=append),
        Frame(term=term, request_vote=RequestVote(last_index=last + 9, last_term=term)),
        Frame(
            term=term, request_vote=RequestVote(last_index=last + 9, last_term=term, transfer=True)
        ),
        Frame(term=term, pre_vote=PreVote(term=term + 1, last_index=last + 9, last_term=term)),
        Frame(term=term, vote_reply=VoteReply()),
        Frame(term=core.engine.term, timeout_now=TimeoutNow()),
        Frame(term=term, append_reply=AppendReply()),
        Frame(term=TERM_MAX, append_reply=AppendReply()),
        Frame(term=term, snapshot_reply=SnapshotReply()),
    ]

    for frame in frames:
        core.frame_received(gone, frame)
    cluster.world.run_for(1_000)

    assert state(core) == before
    assert core.engine.counters.frames_refused == refused + len(frames)


def test_how_much_of_the_log_a_removed_node_has_is_still_heard(tmp_path: Path) -> None:
    cluster, gone = without_one(tmp_path)
    leader = cluster.wait_leader()
    refused = leader.engine.counters.frames_refused

    leader.frame_received(gone, Frame(term=leader.engine.term, append_reply=AppendReply()))

    assert leader.engine.counters.frames_refused == refused

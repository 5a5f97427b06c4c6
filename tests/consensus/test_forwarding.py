"""The forming of entries: bounded whatever meets in them, and fair to peers and to this node."""

from __future__ import annotations

from pathlib import Path

from quorumesh.v1.ledger_pb2 import Barrier, Command, Complete, Outcome, Proposal, Submit
from quorumesh.v1.peer_pb2 import Frame, Propose
from quorumesh.v1.values_pb2 import Reason, Value
from quorumesh.v1.workers_pb2 import Completion

from consensus.engine.config import COMMAND_BYTES_MAX
from consensus.errors import ConsensusError
from consensus.proposals import (
    ENTRY_BYTES_MAX,
    ENTRY_UNITS_MAX,
    PROPOSALS_BYTES_MAX,
    Proposals,
)
from tests.consensus.test_cores import accepted, submit, three

Result = list[Outcome] | ConsensusError


def completion(bytes_count: int) -> Command:
    output = Value(data=b"x" * bytes_count)
    return Command(complete=Complete(completion=Completion(subtask_ref=1, fence=1, output=output)))


def from_peer(*commands: Command) -> Propose:
    return Propose(
        proposals=[
            Proposal(incarnation=99, sequence=at + 1, command=command)
            for at, command in enumerate(commands)
        ]
    )


def test_a_large_submit_beside_a_peers_results_does_not_burst_an_entry(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    large = Command(submit=Submit(task_id=b"t" * 16, spec=b"s" * 850_000))
    answers: list[Result] = []
    for count in (1, 2):  # whoever comes first in an entry
        leader.forwarding.receive(
            "n2", from_peer(*[completion(60_000)] * 8), term=leader.engine.term
        )
        leader.propose([large], deadline_ms=10**9, done=answers.append)
        before = leader.engine.last_index
        cluster.world.run(lambda count=count: len(answers) == count and cluster.agree())  # type: ignore[misc]
        sizes = [
            len(leader.journal.command_at(index))
            for index in range(before + 1, leader.engine.last_index + 1)
        ]
        assert len(sizes) == 2 and max(sizes) <= COMMAND_BYTES_MAX

    assert len(answers) == 2


def test_a_command_that_no_entry_can_hold_is_refused_and_stops_nobody(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    follower = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)

    for node_id in (leader.config.node_id, follower):
        result = cluster.propose(node_id, completion(ENTRY_BYTES_MAX), submit(1))
        assert not isinstance(result, ConsensusError)
        assert [outcome.reason for outcome in result] == [Reason.VALUE_TOO_LARGE, 0]
    leader.forwarding.receive(
        "n2", from_peer(completion(2 * COMMAND_BYTES_MAX)), term=leader.engine.term
    )
    accepted(cluster.propose(follower, submit(2)))


def test_peers_under_full_load_do_not_starve_the_leaders_own_clients(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    barriers = from_peer(*[Command(barrier=Barrier())] * (ENTRY_UNITS_MAX * 6))
    leader.forwarding.receive("n2", barriers, term=leader.engine.term)
    leader.propose([submit(1)], deadline_ms=10**9, done=lambda _: None)

    first = leader.forwarding.take_for_entry()
    second = leader.forwarding.take_for_entry()

    assert len(first) == len(second) == ENTRY_UNITS_MAX
    assert any(p.incarnation == leader.proposals.incarnation for p in [*first, *second])


def test_what_waits_is_bounded_in_bytes_too() -> None:
    proposals = Proposals(incarnation=1)
    big = completion(ENTRY_BYTES_MAX - 100)
    count = 0
    while proposals.has_room(1):
        proposals.add([big], deadline_ms=1, done=lambda _: None)
        count += 1

    assert count == PROPOSALS_BYTES_MAX // Proposal(command=big).ByteSize() + 1
    proposals.expire(1)
    assert proposals.has_room(1)


def test_a_full_inbox_refuses_and_says_so(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    other = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)
    big = from_peer(*[completion(800_000)] * 16)
    said: list[Frame] = []
    link = cluster.wires.ends[leader.config.node_id]

    class Ear:
        def send(self, peer: str, frame: Frame) -> bool:
            said.append(frame)
            return link.send(peer, frame)

    leader.forwarding._link = Ear()  # type: ignore[assignment]  # only what is sent is of interest
    for _ in range(12):
        leader.forwarding.receive(other, big, term=leader.engine.term)

    assert said and list(said[-1].propose_reply.sequences) == list(range(1, 17))

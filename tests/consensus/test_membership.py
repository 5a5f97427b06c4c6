"""Voters are added, removed and replaced through any node, one change at a time, and never blindly."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Admit, Command, MembershipChange
from quorumesh.v1.peer_pb2 import Frame

from consensus.core import Core
from consensus.errors import (
    ChangeRefused,
    ConsensusError,
    OutcomeUnknown,
    Refusal,
    Removed,
    Unavailable,
)
from consensus.membership import ASKS_WAITING_MAX, judge
from tests.consensus.cluster import Cluster
from tests.consensus.test_autopilot import admit
from tests.consensus.test_cores import accepted, holds_all, join, submit, three

Answer = ConsensusError | None


def ask(cluster: Cluster, core: Core, what: str, *nodes: str, ms: int = 20_000) -> Answer:
    """Ask one node for a change and run the world until the answer is there."""
    answers: list[Answer] = []
    act = getattr(core.membership, what)
    act(*nodes, deadline_ms=cluster.world.monotonic_ms() + ms, done=answers.append)
    cluster.world.run(lambda: bool(answers), ms_max=ms + 1_000)
    return answers[0]


def refused_as(answer: Answer) -> Refusal:
    assert isinstance(answer, ChangeRefused), answer
    return answer.refusal


def followers(cluster: Cluster) -> list[str]:
    leader = cluster.wait_leader().config.node_id
    return [node_id for node_id in sorted(cluster.cores) if node_id != leader]


def five(tmp_path: Path) -> Cluster:
    cluster = three(tmp_path)
    join(cluster, "n4")
    join(cluster, "n5")
    cluster.world.run(cluster.agree)
    return cluster


@pytest.mark.parametrize("asked", ["the leader", "itself", "another"])
def test_a_voter_is_removed_whoever_is_asked_and_learns_it(tmp_path: Path, asked: str) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    gone, other = followers(cluster)
    core = {"the leader": leader, "itself": cluster.cores[gone]}.get(asked, cluster.cores[other])
    term = leader.engine.term

    assert ask(cluster, core, "remove_voter", gone) is None
    cluster.world.run(lambda: cluster.cores[gone].is_removed, ms_max=1_000)

    assert gone not in leader.ledger.voters()
    assert gone not in leader.ledger.members()
    assert (leader.engine.role, leader.engine.term) == ("leader", term)
    accepted(cluster.propose(other, submit(1)))


def test_a_removed_node_answers_honestly_and_says_nothing_to_peers(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    gone = followers(cluster)[0]
    core = cluster.cores[gone]
    answers: list[object] = []
    deadline_ms = cluster.world.monotonic_ms() + 60_000
    assert ask(cluster, leader, "remove_voter", gone) is None
    core.propose([submit(9)], deadline_ms=deadline_ms, done=answers.append)
    cluster.world.run(lambda: core.is_removed, ms_max=1_000)

    assert len(answers) == 1
    assert isinstance(answers[0], (Removed, OutcomeUnknown))
    with pytest.raises(Removed):
        core.propose([submit(10)], deadline_ms=deadline_ms, done=answers.append)
    with pytest.raises(Removed):
        core.membership.remove_voter("n1", deadline_ms=deadline_ms, done=lambda _: None)
    assert not core.view().writable
    assert "removed from the mesh" in core.view().trouble
    said: list[Frame] = []
    send = cluster.wires.send
    cluster.wires.send = lambda a, b, frame: (
        (said.append(frame) if a == gone else None)
        or send(  # type: ignore[method-assign, func-returns-value]  # the wires are the test's own
            a, b, frame
        )
    )
    cluster.world.run_for(10_000)
    assert said == []


def test_a_removed_node_that_restarts_knows_it_and_disturbs_nobody(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    gone, other = followers(cluster)
    assert ask(cluster, leader, "remove_voter", gone) is None
    cluster.world.run(lambda: cluster.cores[gone].is_removed)
    term = leader.engine.term
    cluster.kill(gone)

    again = cluster.start(gone)
    cluster.world.run_for(5_000)

    assert again.is_removed
    with pytest.raises(Removed):
        again.propose([submit(1)], deadline_ms=0, done=lambda _: None)
    assert (leader.engine.role, leader.engine.term) == ("leader", term)
    accepted(cluster.propose(other, submit(1)))


def test_a_node_removed_while_it_was_away_is_told_when_it_returns(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    gone, other = followers(cluster)
    cluster.kill(gone)
    assert ask(cluster, cluster.cores[other], "remove_voter", gone) is None
    term = cluster.wait_leader().engine.term

    core = cluster.start(gone)
    cluster.world.run(lambda: core.is_removed, ms_max=2_000)
    cluster.world.run_for(5_000)

    leader = cluster.wait_leader()
    assert leader.engine.term == term
    assert core.ledger.removed_at(gone) is not None


def test_a_node_removed_so_long_ago_that_the_log_has_gone_learns_it_from_a_copy(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path, compact_entries=20, keep_entries=5, segment_bytes_max=4_096)
    gone, other = followers(cluster)
    cluster.kill(gone)
    assert ask(cluster, cluster.cores[other], "remove_voter", gone) is None
    for number in range(1, 121):
        accepted(cluster.propose(other, submit(number)))
    assert cluster.wait_leader().journal.base_index > 0

    core = cluster.start(gone)
    cluster.world.run(lambda: core.is_removed, ms_max=5_000)

    assert core.snapshots.installed_count == 1
    with pytest.raises(Removed):
        core.propose([submit(1_000)], deadline_ms=0, done=lambda _: None)
    # One more power cycle: what it learnt is on its disk.
    cluster.kill(gone)
    assert cluster.start(gone).is_removed


@pytest.mark.parametrize("seed", range(5))
def test_a_leader_that_dies_while_it_hands_over_loses_no_request(tmp_path: Path, seed: int) -> None:
    cluster = three(tmp_path, seed=seed)
    old = cluster.wait_leader().config.node_id
    asked = cluster.cores[followers(cluster)[0]]
    answers: list[Answer] = []
    deadline_ms = cluster.world.monotonic_ms() + 20_000
    asked.membership.remove_voter(old, deadline_ms=deadline_ms, done=answers.append)
    cluster.world.run_for(1 + 2 * seed)
    cluster.kill(old)

    cluster.world.run(lambda: bool(answers))
    again = cluster.start(old)
    cluster.world.run(lambda: again.is_removed, ms_max=5_000)

    assert answers == [None]


def test_a_removed_node_that_stays_away_costs_the_leader_no_feeding(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    gone = followers(cluster)[0]
    cluster.kill(gone)
    assert ask(cluster, leader, "remove_voter", gone) is None
    cluster.world.run_for(1_000)

    assert gone not in leader.engine._seat.peers
    assert gone not in leader.engine._seat.fed


@pytest.mark.parametrize("asked", ["the leader", "another"])
def test_a_leader_hands_over_before_it_is_removed(tmp_path: Path, asked: str) -> None:
    cluster = three(tmp_path)
    old = cluster.wait_leader()
    heir = followers(cluster)[0]
    core = old if asked == "the leader" else cluster.cores[heir]
    began_ms = cluster.world.monotonic_ms()

    assert ask(cluster, core, "remove_voter", old.config.node_id) is None
    cluster.world.run(lambda: old.is_removed, ms_max=2_000)

    assert cluster.world.monotonic_ms() - began_ms < 2_000
    new = cluster.wait_leader()
    assert new.config.node_id != old.config.node_id
    # The change was appended by the heir: a leader never leads on without a vote of its own.
    [index] = [
        index
        for command, index, _ in new.journal.rows
        if command[:1] == b"\x02" and not MembershipChange.FromString(command[1:]).add
    ]
    assert new.journal.term_at(index) == new.engine.term
    accepted(cluster.propose(heir, submit(1)))


def test_a_busy_leader_hands_over_too_and_no_write_is_lost(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    old = cluster.wait_leader()
    writer = cluster.cores[followers(cluster)[0]]
    answers: list[object] = []

    def write(number: int) -> None:
        deadline_ms = cluster.world.monotonic_ms() + 20_000
        writer.propose([submit(number)], deadline_ms=deadline_ms, done=answers.append)
        if number < 400:
            cluster.world.after(2_000, partial(write, number + 1))

    write(1)
    assert ask(cluster, old, "remove_voter", old.config.node_id) is None
    cluster.world.run(lambda: len(answers) == 400)

    assert all(accepted(answer) for answer in answers)  # type: ignore[arg-type]
    cluster.kill(old.config.node_id)
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, 400)


def test_a_voter_is_replaced_by_one_that_has_caught_up(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, voters_max=3)
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    join(cluster, "n2")
    join(cluster, "n3")
    admit(cluster, "n4")
    cluster.start("n4", joined_voters={"n1": "n1", "n2": "n2", "n3": "n3"})
    accepted(cluster.propose("n4", submit(1)))

    assert ask(cluster, cluster.cores["n4"], "replace_voter", "n2", "n4") is None

    assert sorted(cluster.wait_leader().ledger.voters()) == ["n1", "n3", "n4"]
    cluster.world.run(lambda: cluster.cores["n2"].is_removed, ms_max=2_000)


def test_a_member_without_a_vote_is_removed_too(tmp_path: Path) -> None:
    cluster = three(tmp_path, voters_max=3)
    admit(cluster, "n4")
    cluster.start("n4", joined_voters={"n1": "n1", "n2": "n2", "n3": "n3"})
    accepted(cluster.propose("n4", submit(1)))

    assert ask(cluster, cluster.cores["n2"], "remove_voter", "n4") is None

    cluster.world.run(lambda: cluster.cores["n4"].is_removed, ms_max=2_000)
    assert sorted(cluster.wait_leader().ledger.voters()) == ["n1", "n2", "n3"]


def test_a_removal_that_leaves_no_live_majority_is_refused_and_changes_nothing(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    dead, alive = followers(cluster)
    cluster.kill(dead)
    cluster.world.run_for(2_000)
    before = leader.engine.last_index

    for core in (leader, cluster.cores[alive]):
        answer = ask(cluster, core, "remove_voter", alive)
        assert refused_as(answer) is Refusal.NO_LIVE_MAJORITY

    assert leader.engine.last_index == before
    assert ask(cluster, leader, "remove_voter", dead) is None
    assert sorted(leader.ledger.voters()) == sorted([leader.config.node_id, alive])


def test_the_last_voter_is_never_removed(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    core = cluster.start("n1")
    cluster.world.run(lambda: core.ledger.mesh_id == "m")

    assert refused_as(ask(cluster, core, "remove_voter", "n1")) is Refusal.LAST_VOTER
    accepted(cluster.propose("n1", submit(1)))


def test_unknown_nodes_are_refused_and_asking_again_is_accepted_again(tmp_path: Path) -> None:
    cluster = five(tmp_path)
    core = cluster.cores["n2"]

    assert refused_as(ask(cluster, core, "remove_voter", "n9")) is Refusal.UNKNOWN_NODE
    assert refused_as(ask(cluster, core, "add_voter", "n9")) is Refusal.UNKNOWN_NODE
    assert ask(cluster, core, "add_voter", "n5") is None
    assert ask(cluster, core, "remove_voter", "n5") is None
    assert ask(cluster, core, "remove_voter", "n5") is None
    assert refused_as(ask(cluster, core, "add_voter", "n5")) is Refusal.UNKNOWN_NODE


def test_an_add_of_a_node_that_never_answered_is_refused_at_its_deadline(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    admit(cluster, "n4")

    answer = ask(cluster, cluster.cores["n3"], "add_voter", "n4", ms=2_000)

    assert refused_as(answer) is Refusal.NOT_CAUGHT_UP
    assert "n4" not in cluster.wait_leader().engine.voters


def test_without_a_leader_a_change_is_unavailable_and_nothing_is_written(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    alone = followers(cluster)[0]
    for node_id in [node_id for node_id in cluster.cores if node_id != alone]:
        cluster.kill(node_id)
    cluster.world.run_for(100)

    answer = ask(cluster, cluster.cores[alone], "remove_voter", "n1", ms=1_000)

    assert type(answer) is Unavailable


def test_a_change_whose_leader_cannot_commit_it_is_unknown(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    for other in followers(cluster):
        cluster.wires.cut(leader.config.node_id, other)

    answer = ask(cluster, leader, "remove_voter", followers(cluster)[0], ms=1_000)

    assert isinstance(answer, OutcomeUnknown)


def test_two_changes_asked_at_once_are_made_one_after_the_other(tmp_path: Path) -> None:
    cluster = five(tmp_path)
    answers: list[Answer] = []
    deadline_ms = cluster.world.monotonic_ms() + 20_000
    one, other, *third = followers(cluster)
    for node_id, asked in zip((one, other), third, strict=True):
        core = cluster.cores[asked]
        core.membership.remove_voter(node_id, deadline_ms=deadline_ms, done=answers.append)
    counts: list[int] = []

    def both() -> bool:
        counts.append(len(cluster.wait_leader().engine.voters))
        return len(answers) == 2

    cluster.world.run(both)
    cluster.world.run(lambda: len(cluster.wait_leader().ledger.voters()) == 3)

    assert answers == [None, None]
    assert [count for count in (5, 4, 3) if count in counts] == [5, 4, 3]
    assert min(counts) == 3
    accepted(cluster.propose(cluster.wait_leader().config.node_id, submit(1)))


def test_more_changes_than_the_bound_are_refused_at_once(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    core = cluster.cores["n1"]
    for _ in range(ASKS_WAITING_MAX):
        core.membership.remove_voter("n9", deadline_ms=10**9, done=lambda _: None)

    with pytest.raises(Unavailable):
        core.membership.remove_voter("n9", deadline_ms=10**9, done=lambda _: None)


def test_a_removed_id_is_never_admitted_again(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    gone, other = followers(cluster)
    assert ask(cluster, leader, "remove_voter", gone) is None
    token, digest = b"again".ljust(16, b"."), b"d" * 32

    [made, again] = cluster.propose(  # type: ignore[misc]
        other,
        Command(add_token={"token_id": token, "secret_digest": digest, "ttl_ms": 60_000}),  # type: ignore[arg-type]
        Command(admit=Admit(token_id=token, secret_digest=digest, node_id=gone, address=gone)),
    )

    assert made.reason == 0
    assert again.reason != 0 and "was removed" in again.message


@pytest.mark.parametrize(
    ("add", "node_id", "voters", "live", "refusal"),
    [
        (False, "c", "abc", "ab", None),
        (False, "b", "abc", "ab", Refusal.NO_LIVE_MAJORITY),
        (False, "b", "ab", "a", None),
        (False, "a", "ab", "a", Refusal.NO_LIVE_MAJORITY),
        (False, "a", "a", "a", Refusal.LAST_VOTER),
        (True, "d", "abc", "abd", None),
        (True, "d", "abc", "ad", Refusal.NO_LIVE_MAJORITY),
        (False, "e", "abcde", "abc", None),
        (False, "a", "abcde", "abc", Refusal.NO_LIVE_MAJORITY),
        (True, "g", "abcdef", "abcdefg", None),
        (True, "h", "abcdefg", "abcdefgh", Refusal.NO_SEAT),
    ],
)
def test_who_would_be_left_decides(
    add: bool, node_id: str, voters: str, live: str, refusal: Refusal | None
) -> None:
    change = MembershipChange(add=add, node_id=node_id)

    assert judge(change, voters=voters, live=live) is refusal

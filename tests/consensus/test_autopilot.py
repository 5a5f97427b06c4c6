"""What the leader does by itself: it feeds, promotes and suspects, and no peer's trouble stops it."""

from __future__ import annotations

from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import AddToken, Admit, Barrier, Command
from quorumesh.v1.peer_pb2 import Frame

from consensus.errors import OutcomeUnknown
from consensus.membership import CAUGHT_UP_ENTRIES, ROUND_MS_MAX
from consensus.proposals import PROPOSALS_WAITING_MAX
from tests.consensus.cluster import Cluster, MemoryEnd
from tests.consensus.test_cores import accepted, join, submit, three


def admit(cluster: Cluster, *node_ids: str) -> None:
    """Admit nodes in the ledger without starting them."""
    for node_id in node_ids:
        token = node_id.encode().ljust(16, b".")
        digest = b"d" * 32
        accepted(
            cluster.propose(
                cluster.wait_leader().config.node_id,
                Command(add_token=AddToken(token_id=token, secret_digest=digest, ttl_ms=60_000)),
                Command(
                    admit=Admit(
                        token_id=token, secret_digest=digest, node_id=node_id, address=node_id
                    )
                ),
            )
        )


def founded(tmp_path: Path, **config: int) -> Cluster:
    cluster = Cluster(tmp_path, **config)
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    return cluster


class Mute:
    """A process whose link is up and that answers nothing."""

    def link_up(self, peer: str) -> None: ...

    def link_down(self, peer: str) -> None: ...

    def frame_received(self, peer: str, frame: Frame) -> None: ...


def test_a_joiner_that_never_answered_gets_no_vote(tmp_path: Path) -> None:
    cluster = founded(tmp_path)
    admit(cluster, "n2")
    end = MemoryEnd(cluster.wires, "n2")
    end.bind(Mute())
    end.set_peers({"n1": "n1"})

    cluster.world.run_for(3_000)

    assert end.is_up("n1")
    assert sorted(cluster.cores["n1"].engine.voters) == ["n1"]
    accepted(cluster.propose("n1", submit(1)))


def test_a_joiner_that_dies_before_its_promotion_holds_up_nobody(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    admit(cluster, "n4")
    cluster.start("n4", joined_voters={"n1": "n1", "n2": "n2", "n3": "n3"})
    cluster.kill("n4")

    accepted(cluster.propose("n2", submit(1)))
    join(cluster, "n5")

    assert sorted(cluster.wait_leader().engine.voters) == ["n1", "n2", "n3", "n5"]


@pytest.mark.parametrize("seed", range(3))
def test_rule_16_a_joiner_far_behind_gets_a_vote_only_when_it_has_caught_up(
    tmp_path: Path, seed: int
) -> None:
    cluster = three(tmp_path, seed=seed, compact_entries=100, keep_entries=20)
    leader = cluster.wait_leader()
    for number in range(1, 301):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    admit(cluster, "n4")
    joiner = cluster.start("n4", joined_voters={"n1": "n1", "n2": "n2", "n3": "n3"})
    cluster.slow_down("n4", (40_000, 90_000))

    ends: list[tuple[int, int]] = []  # when the log ended where

    for number in range(301, 1_000):
        ends.append((cluster.world.monotonic_ms(), leader.engine.last_index))
        accepted(cluster.propose(leader.config.node_id, submit(number)))
        if "n4" in leader.engine.voters:
            break
        assert joiner.engine.role == "passive"
    matched = leader.engine.matched("n4")

    # Under this load the end of the log is always further away than its disk is quick.
    assert 300 < matched < leader.engine.last_index - CAUGHT_UP_ENTRIES // 2
    lag_ms = cluster.world.monotonic_ms() - max(at_ms for at_ms, end in ends if end <= matched)
    assert lag_ms <= ROUND_MS_MAX


def test_rule_16_a_learner_is_never_counted_and_never_stands(tmp_path: Path) -> None:
    cluster = three(tmp_path, voters_max=3)
    admit(cluster, "n4")
    learner = cluster.start("n4", joined_voters={"n1": "n1", "n2": "n2", "n3": "n3"})
    accepted(cluster.propose("n4", submit(1)))
    leader = cluster.wait_leader()
    before = leader.engine.commit_index

    for node_id in sorted({"n1", "n2", "n3"} - {leader.config.node_id}):
        cluster.kill(node_id)
    answers: list[object] = []
    deadline_ms = cluster.world.monotonic_ms() + 1_000
    leader.propose([submit(2)], deadline_ms=deadline_ms, done=answers.append)
    cluster.world.run_for(200)
    assert leader.engine.matched("n4") == leader.engine.last_index > before
    cluster.world.run_for(10_000)

    assert leader.engine.commit_index == before
    assert learner.engine.role == "passive" and learner.engine.counters.prevotes == 0
    assert [type(answer) for answer in answers] == [OutcomeUnknown]


def test_two_nodes_that_join_at_once_both_get_a_vote(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    admit(cluster, "n4", "n5")
    known = {"n1": "n1", "n2": "n2", "n3": "n3"}
    cluster.start("n4", joined_voters=known)
    cluster.start("n5", joined_voters=known)

    leader = cluster.wait_leader()
    cluster.world.run(lambda: len(leader.ledger.voters()) == 5 and cluster.agree(), ms_max=5_000)

    cluster.assert_sound()


def test_a_node_beyond_the_voters_follows_without_a_vote(tmp_path: Path) -> None:
    cluster = founded(tmp_path, voters_max=1)
    admit(cluster, "n2", "n3")
    for node_id in ("n2", "n3"):
        cluster.start(node_id, joined_voters={"n1": "n1"})

    accepted(cluster.propose("n3", submit(1)))
    cluster.world.run(cluster.agree, ms_max=5_000)

    assert [core.engine.role for core in cluster.cores.values()] == ["leader", "passive", "passive"]
    assert sorted(cluster.cores["n1"].ledger.voters()) == ["n1"]


def test_each_of_many_nodes_without_a_vote_is_fed(tmp_path: Path) -> None:
    cluster = founded(tmp_path, voters_max=1)
    learners = [f"n{number}" for number in range(2, 20)]
    admit(cluster, *learners)
    for node_id in learners:
        cluster.start(node_id, joined_voters={"n1": "n1"})

    accepted(cluster.propose("n1", submit(1)))

    cluster.world.run(cluster.agree, ms_max=10_000)


def test_a_leader_whose_proposals_are_full_goes_on_when_a_node_dies(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    for node_id in sorted(set(cluster.cores) - {leader.config.node_id}):
        cluster.kill(node_id)
    barriers = [Command(barrier=Barrier())] * PROPOSALS_WAITING_MAX
    deadline_ms = cluster.world.monotonic_ms() + 60_000
    leader.propose(barriers, deadline_ms=deadline_ms, done=lambda _: None)

    cluster.world.run_for(1_000)

    assert leader.engine.role == "leader"
    assert not leader.proposals.has_room(1)


def test_a_dead_node_is_suspected_once_and_not_again_and_again(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    cluster.kill(next(n for n in sorted(cluster.cores) if n != leader.config.node_id))
    before = leader.engine.last_index

    cluster.world.run_for(20_000)

    assert leader.engine.last_index == before + 1

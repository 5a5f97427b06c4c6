"""What the leader does by itself: it feeds, promotes and suspects, and no peer's trouble stops it."""

from __future__ import annotations

from pathlib import Path

from quorumesh.v1.ledger_pb2 import AddToken, Admit, Barrier, Command
from quorumesh.v1.peer_pb2 import Frame

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

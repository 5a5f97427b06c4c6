"""A leader that is to go asks each voter in turn, so that one that cannot lead is not asked for ever."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from quorumesh.v1.peer_pb2 import Frame

from consensus.core import Core
from consensus.succession import HEIR_MS
from tests.consensus.cluster import Cluster
from tests.consensus.test_cores import accepted, submit, three


def refuse_writes(core: Core) -> None:
    """SQLite itself refuses to write this ledger, and nothing else is in the way."""
    core.ledger.connection.execute("PRAGMA query_only = 1")


class Declines:
    """A node that hears everything but that it should lead, and notes when it was asked to."""

    def __init__(self, cluster: Cluster, core: Core) -> None:
        self._world, self._core = cluster.world, core
        self.asked_ms: list[int] = []

    def link_up(self, peer: str) -> None:
        self._core.link_up(peer)

    def link_down(self, peer: str) -> None:
        self._core.link_down(peer)

    def frame_received(self, peer: str, frame: Frame) -> None:
        if frame.HasField("timeout_now"):
            self.asked_ms.append(self._world.monotonic_ms())
        else:
            self._core.frame_received(peer, frame)


def declining(cluster: Cluster, *names: str) -> list[Declines]:
    found = []
    for name in names:
        declines = Declines(cluster, cluster.cores[name])
        cluster.wires.ends[name].bind(declines)
        found.append(declines)
    return found


def led(tmp_path: Path) -> tuple[Cluster, Core, list[str]]:
    """Three nodes that agree, the leader, and the others by name."""
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    accepted(cluster.propose(leader.config.node_id, submit(1)))
    cluster.world.run(cluster.agree)
    return cluster, leader, [n for n in sorted(cluster.cores) if n != leader.config.node_id]


def ask_to_go(cluster: Cluster, leader: Core, why: str) -> None:
    if why == "removed":
        deadline_ms = cluster.world.monotonic_ms() + 60_000
        name = leader.config.node_id
        leader.membership.remove_voter(name, deadline_ms=deadline_ms, done=lambda _: None)
    else:
        refuse_writes(leader)
        leader.propose(
            [submit(2)], deadline_ms=cluster.world.monotonic_ms() + 60_000, done=lambda _: None
        )


@pytest.mark.parametrize("why", ["removed", "cannot write"])
def test_an_heir_that_does_not_lead_is_not_asked_before_the_next_was(
    tmp_path: Path, why: str
) -> None:
    cluster, leader, others = led(tmp_path)
    [first] = declining(cluster, others[0])

    ask_to_go(cluster, leader, why)
    cluster.world.run(lambda: cluster.cores[others[1]].engine.role == "leader", ms_max=6_000)

    assert len(first.asked_ms) <= 1


@pytest.mark.parametrize("why", ["removed", "cannot write"])
def test_heirs_are_asked_one_at_a_time_and_each_as_often_as_the_others(
    tmp_path: Path, why: str
) -> None:
    cluster, leader, others = led(tmp_path)
    both = declining(cluster, *others)

    ask_to_go(cluster, leader, why)
    cluster.world.run_for(12_000)

    counts = [len(one.asked_ms) for one in both]
    assert min(counts) >= 2 and max(counts) - min(counts) <= 1
    times = sorted(both[0].asked_ms + both[1].asked_ms)
    assert all(later - earlier >= HEIR_MS - 2 for earlier, later in pairwise(times))
    assert leader.engine.role == "leader", "nobody else would"


def test_two_that_cannot_write_do_not_hand_to_each_other_for_ever(tmp_path: Path) -> None:
    cluster, leader, others = led(tmp_path)
    for core in (leader, cluster.cores[others[0]]):
        refuse_writes(core)
    sound = cluster.cores[others[1]]

    leader.propose(
        [submit(2)], deadline_ms=cluster.world.monotonic_ms() + 60_000, done=lambda _: None
    )
    cluster.world.run(lambda: sound.engine.role == "leader", ms_max=6_000)

    accepted(cluster.propose(others[1], submit(3)))

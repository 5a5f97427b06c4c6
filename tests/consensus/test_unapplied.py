"""A ledger that cannot be written while its journal can: what is taken meanwhile has a bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from consensus.core import Core
from consensus.engine import Journal
from consensus.engine.unapplied import Backlog
from tests.consensus.cluster import Cluster
from tests.consensus.test_cores import accepted, holds_all, join, submit
from tests.consensus.test_full_disk import other_than

BYTES_MAX = 2_000
ROUND_BYTES_MAX = 2_000  # what may be under way when the bound is met: a few commands of some 100
RETURN_MS_MAX = 10_000


class Inline:
    """Blocking work is done at once."""

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        work()
        done(None)


def refuse_writes(core: Core, *, is_refusing: bool) -> None:
    """SQLite itself refuses to write this ledger, and nothing else is in the way."""
    core.ledger.connection.execute(f"PRAGMA query_only = {int(is_refusing)}")


def three(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path, unapplied_bytes_max=BYTES_MAX)
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    for node_id in ("n2", "n3"):
        join(cluster, node_id)
    cluster.world.run(cluster.agree)
    return cluster


def waiting_bytes(core: Core) -> int:
    journal = core.journal
    after = range(core.applied_index + 1, journal.last_index + 1)
    return sum(len(journal.command_at(index)) for index in after)


@pytest.mark.parametrize(("more_bytes", "is_too_much"), [(0, False), (1, True)])
def test_too_much_waits_only_beyond_the_bound(
    tmp_path: Path, more_bytes: int, is_too_much: bool
) -> None:
    journal, backlog = Journal(tmp_path, background=Inline()), Backlog(100)
    journal.append(1, 1, bytes(60))
    journal.append(2, 1, bytes(40 + more_bytes))
    journal.append(3, 1, bytes(500))

    found = backlog.is_too_much(journal, applied_index=0, commit_index=2)

    assert (found, backlog.bytes_waiting) == (is_too_much, 100 + more_bytes)
    journal.close()


def test_too_much_stays_too_much_until_half_of_the_bound_is_left(tmp_path: Path) -> None:
    journal, backlog = Journal(tmp_path, background=Inline()), Backlog(100)
    for index in range(1, 13):
        journal.append(index, 1, bytes(10))

    found = [
        backlog.is_too_much(journal, applied_index=applied, commit_index=12)
        for applied in range(13)
    ]

    assert found == [True] * 7 + [False] * 6
    assert backlog.bytes_waiting == 0
    journal.close()


def test_a_follower_that_cannot_apply_takes_so_much_and_goes_on_once_it_can(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    term = leader.engine.term
    stuck = cluster.cores[other_than(cluster, leader)]
    refuse_writes(stuck, is_refusing=True)
    applied = stuck.applied_index

    for number in range(1, 101):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    cluster.world.run_for(5_000)

    assert stuck.applied_index == applied and "cannot be written" in stuck.trouble
    assert BYTES_MAX < waiting_bytes(stuck) <= BYTES_MAX + ROUND_BYTES_MAX
    assert stuck.journal.last_index < leader.journal.last_index
    assert (stuck.engine.role, stuck.engine.leader_id) == ("follower", leader.config.node_id)
    assert stuck.config.node_id in leader.engine.live_nodes(), "it is heard, and heard from"
    assert (leader.engine.role, leader.engine.term) == ("leader", term)

    refuse_writes(stuck, is_refusing=False)
    cluster.world.run(lambda: cluster.agree() and holds_all(cluster, 100), ms_max=RETURN_MS_MAX)
    assert stuck.trouble == ""
    assert len({core.ledger.full_digest() for core in cluster.cores.values()}) == 1


def test_what_a_follower_did_not_take_is_not_acknowledged(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    mine, stuck_id = leader.config.node_id, other_than(cluster, leader)
    stuck = cluster.cores[stuck_id]
    refuse_writes(stuck, is_refusing=True)
    for number in range(1, 101):
        accepted(cluster.propose(mine, submit(number)))
    cluster.world.run_for(1_000)
    last_taken = stuck.journal.last_index
    third = next(name for name in cluster.cores if name not in (mine, stuck_id))

    cluster.kill(third)
    unknown = cluster.propose(mine, submit(101), ms=3_000)

    assert isinstance(unknown, Exception), "no majority holds it"
    assert leader.engine.matched(stuck_id) <= last_taken < leader.engine.commit_index
    refuse_writes(stuck, is_refusing=False)
    cluster.world.run(lambda: stuck.trouble == "", ms_max=RETURN_MS_MAX)
    accepted(cluster.propose(mine, submit(101)))
    cluster.world.run(lambda: holds_all(cluster, 101), ms_max=RETURN_MS_MAX)

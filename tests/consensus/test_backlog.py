"""A ledger that cannot be written while its journal can: what is taken meanwhile has a bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from consensus.backlog import LOOK_MS, is_too_much
from consensus.core import Core
from consensus.engine import Journal
from tests.consensus.cluster import AtOnce, Cluster
from tests.consensus.test_cores import accepted, holds_all, join, submit
from tests.consensus.test_full_disk import other_than

ENTRIES_MAX = 30
PACE_MS = 20
LOOK_ENTRIES_MAX = 2 * LOOK_MS // PACE_MS  # what may come until it is seen, and what is under way
RETURN_MS_MAX = 10_000


def refuse_writes(core: Core, *, is_refusing: bool) -> None:
    """SQLite itself refuses to write this ledger, and nothing else is in the way."""
    core.ledger.connection.execute(f"PRAGMA query_only = {int(is_refusing)}")


def three(tmp_path: Path) -> Cluster:
    cluster = Cluster(tmp_path, unapplied_entries_max=ENTRIES_MAX)
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    for node_id in ("n2", "n3"):
        join(cluster, node_id)
    cluster.world.run(cluster.agree)
    return cluster


def waiting_count(core: Core) -> int:
    return core.journal.last_index - core.applied_index


@pytest.mark.parametrize(
    ("applied_index", "commit_index", "entries_max", "bytes_max", "expected"),
    [
        (0, 3, 3, 600, False),
        (0, 3, 2, 600, True),
        (1, 3, 2, 540, False),
        (0, 3, 3, 599, True),
        (1, 3, 3, 539, True),
        (0, 2, 3, 100, False),
        (0, 9, 3, 600, False),  # what is committed and not here yet is not taken yet
        (3, 3, 0, 0, False),
    ],
)
def test_too_much_waits_only_beyond_a_bound(
    tmp_path: Path,
    applied_index: int,
    commit_index: int,
    entries_max: int,
    bytes_max: int,
    expected: bool,
) -> None:
    journal = Journal(tmp_path, background=AtOnce())
    for index, length_bytes in enumerate((60, 40, 500), 1):
        journal.append(index, 1, bytes(length_bytes))

    found = is_too_much(
        journal,
        applied_index=applied_index,
        commit_index=commit_index,
        entries_max=entries_max,
        bytes_max=bytes_max,
    )

    assert found is expected
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

    for number in range(1, 201):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
        cluster.world.run_for(PACE_MS)
    cluster.world.run_for(5_000)

    assert stuck.applied_index == applied and "cannot be written" in stuck.trouble
    assert ENTRIES_MAX < waiting_count(stuck) <= ENTRIES_MAX + LOOK_ENTRIES_MAX
    assert stuck.journal.last_index < leader.journal.last_index
    assert (stuck.engine.role, stuck.engine.leader_id) == ("follower", "")
    assert stuck.config.node_id not in leader.engine.live_nodes(), "it counts for nothing"
    assert (leader.engine.role, leader.engine.term) == ("leader", term)

    refuse_writes(stuck, is_refusing=False)
    cluster.world.run(lambda: cluster.agree() and holds_all(cluster, 200), ms_max=RETURN_MS_MAX)
    assert stuck.trouble == ""
    assert (leader.engine.role, leader.engine.term) == ("leader", term), "its return costs no term"
    assert len({core.ledger.full_digest() for core in cluster.cores.values()}) == 1


def test_without_the_follower_that_takes_no_more_there_is_no_leader(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    mine, stuck_id = leader.config.node_id, other_than(cluster, leader)
    stuck = cluster.cores[stuck_id]
    refuse_writes(stuck, is_refusing=True)
    for number in range(1, 201):
        accepted(cluster.propose(mine, submit(number)))
        cluster.world.run_for(PACE_MS)
    last_taken = stuck.journal.last_index
    third = next(name for name in cluster.cores if name not in (mine, stuck_id))

    cluster.kill(third)
    unknown = cluster.propose(mine, submit(201), ms=3_000)

    assert isinstance(unknown, Exception), "no majority holds it"
    cluster.world.run(lambda: leader.engine.role != "leader")
    assert stuck.journal.last_index == last_taken < leader.engine.commit_index
    refuse_writes(stuck, is_refusing=False)
    cluster.world.run(lambda: stuck.trouble == "", ms_max=RETURN_MS_MAX)
    accepted(cluster.propose(cluster.wait_leader().config.node_id, submit(201)))
    cluster.world.run(lambda: holds_all(cluster, 201), ms_max=RETURN_MS_MAX)

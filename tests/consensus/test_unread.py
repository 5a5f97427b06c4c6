"""A ledger that cannot be read while nothing is applied: damage or trouble, whoever meets it, and never a bug."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from quorumesh.v1.peer_pb2 import Frame, PreVote

from consensus.core import Core
from consensus.errors import Damaged, OutcomeUnknown, Unavailable
from consensus.ledger import Applied
from tests.consensus.cluster import Cluster
from tests.consensus.test_copies_sent import WRITTEN, one_away
from tests.consensus.test_cores import accepted, holds_all, submit, three

RETURN_MS_MAX = 10_000


def refuse_reads(core: Core, *, is_refusing: bool = True) -> None:
    """SQLite gives up each statement of this node's own, as it does when the disk refuses a page."""
    handler = (lambda: 1) if is_refusing else None
    core.ledger.connection.set_progress_handler(handler, 1)


def spoil_table(core: Core, table: str) -> None:
    """The definition of a table leads to a page that there is not."""
    with sqlite3.connect(core.ledger_path) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET rootpage=1000000 WHERE name=?", (table,))
        # So that whoever has it open looks at it again.
        (version,) = db.execute("PRAGMA schema_version").fetchone()
        db.execute(f"PRAGMA schema_version={version + 1}")
    db.close()


def is_out_of_service(core: Core) -> bool:
    return bool(core.diverged) and (core.config.root / "DIVERGED").exists()


@pytest.mark.parametrize("table", ["member", "departed", "task"])
def test_damage_that_an_idle_leader_reads_takes_it_out_of_service(
    tmp_path: Path, table: str
) -> None:
    cluster = three(tmp_path)
    cluster.world.run(cluster.agree)
    leader = cluster.wait_leader()
    leader.ledger._next_due = None

    spoil_table(leader, table)
    with pytest.raises(Damaged, match="damaged"):
        cluster.world.run(lambda: False, ms_max=2_000)

    assert is_out_of_service(leader)
    name = leader.config.node_id
    cluster.kill(name)
    accepted(cluster.propose(next(iter(cluster.cores)), submit(1)))
    with pytest.raises(Damaged, match="out of service"):
        cluster.start(name)


def test_damage_that_a_frame_meets_takes_its_node_out_of_service_in_the_next_turn(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    cluster.world.run(cluster.agree)
    leader = cluster.wait_leader()
    core = next(c for c in cluster.cores.values() if c is not leader)
    spoil_table(core, "departed")

    core.frame_received("n9", Frame(term=1, pre_vote=PreVote()))
    with pytest.raises(Damaged, match="damaged"):
        core.turn()

    assert is_out_of_service(core)


def test_a_leader_that_cannot_read_hands_over_and_serves_again_once_it_can(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    cluster.world.run(cluster.agree)
    core = cluster.wait_leader()
    name = core.config.node_id
    other = next(n for n in sorted(cluster.cores) if n != name)

    refuse_reads(core)
    cluster.world.run(lambda: core.engine.role != "leader", ms_max=3_000)
    accepted(cluster.propose(other, submit(1)))

    assert core.trouble and not core.view().writable and not core.diverged
    with pytest.raises(Unavailable, match="cannot be"):
        cluster.propose(name, submit(2))
    cluster.world.run_for(5_000)
    assert core.applied_index < cluster.cores[other].applied_index

    refuse_reads(core, is_refusing=False)
    cluster.world.run(lambda: core.view().writable, ms_max=RETURN_MS_MAX)
    accepted(cluster.propose(name, submit(2)))
    cluster.world.run(lambda: cluster.agree() and holds_all(cluster, 2))


def test_a_node_alone_that_could_not_read_comes_back_though_nothing_waits_for_it(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path)
    core = cluster.start("n1")
    cluster.world.run(lambda: core.ledger.mesh_id == "m" and cluster.agree())
    before = core.applied_index

    refuse_reads(core)
    cluster.world.run(lambda: core.trouble != "", ms_max=2_000)
    assert "cannot be read" in core.trouble and core.reader.counts().task_count == 0
    cluster.world.run_for(5_000)
    assert core.applied_index == before and core.engine.role == "leader"

    refuse_reads(core, is_refusing=False)
    cluster.world.run(lambda: core.view().writable, ms_max=RETURN_MS_MAX)
    assert core.trouble == ""
    accepted(cluster.propose("n1", submit(1)))


def test_a_change_that_is_asked_of_a_node_that_cannot_read_ends_in_time(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    core = cluster.cores["n2"]
    cluster.world.run(cluster.agree)
    refuse_reads(core)
    ended: list[object] = []

    deadline_ms = cluster.world.monotonic_ms() + 1_000
    core.membership.remove_voter("n3", deadline_ms=deadline_ms, done=ended.append)
    cluster.world.run(lambda: bool(ended), ms_max=1_100)

    assert isinstance(ended[0], Unavailable)
    refuse_reads(core, is_refusing=False)


def test_a_removed_node_that_cannot_read_keeps_nobody_waiting_for_ever(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    cluster.world.run(cluster.agree)
    leader = cluster.wait_leader()
    name = next(n for n in sorted(cluster.cores) if cluster.cores[n] is not leader)
    core = cluster.cores[name]
    ended: list[object] = []

    deadline_ms = cluster.world.monotonic_ms() + 2_000
    core.membership.remove_voter(name, deadline_ms=deadline_ms, done=ended.append)
    cluster.world.run(lambda: core.is_removed, ms_max=2_000)
    assert not ended, "it is told in the turn after the one in which its removal was applied"
    refuse_reads(core)
    cluster.world.run(lambda: bool(ended), ms_max=2_100)

    assert isinstance(ended[0], OutcomeUnknown)
    refuse_reads(core, is_refusing=False)


class Unlucky:
    """An observer that cannot read, so many times, neither an entry nor when it begins anew."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.told: list[int] = []
        self.began_anew_count = 0

    def entry_applied(self, applied: Applied) -> None:
        self._read()
        self.told.append(applied.revision)

    def ledger_replaced(self) -> None:
        self._read()
        self.began_anew_count += 1

    def _read(self) -> None:
        if self.left > 0:
            self.left -= 1
            raise sqlite3.OperationalError("disk I/O error")


@pytest.mark.parametrize("times", [1, 2, 3])
def test_who_cannot_read_twice_stops_no_node_and_begins_anew_once_it_can(
    tmp_path: Path, times: int
) -> None:
    cluster = three(tmp_path)
    core, observer = cluster.cores["n1"], Unlucky(times)
    core.observe(observer)

    accepted(cluster.propose("n1", submit(1)))
    cluster.world.run(
        lambda: observer.began_anew_count == 1 and core.view().writable, ms_max=RETURN_MS_MAX
    )
    accepted(cluster.propose("n1", submit(2)))

    assert observer.began_anew_count == 1 and observer.told[-1] == core.applied_index
    cluster.world.run(cluster.agree)


@pytest.mark.parametrize("times", [1, 2])
def test_a_copy_whose_observers_cannot_read_is_installed_all_the_same(
    tmp_path: Path, times: int
) -> None:
    cluster, away, _ = one_away(tmp_path)
    returned, observer = cluster.start(away), Unlucky(times)
    returned.observe(observer)

    cluster.world.run(lambda: cluster.agree() and observer.began_anew_count == 1)

    assert returned.snapshots.installed_count == 1 and holds_all(cluster, WRITTEN)
    cluster.world.run(lambda: returned.view().writable, ms_max=RETURN_MS_MAX)

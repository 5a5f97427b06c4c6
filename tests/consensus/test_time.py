"""Counted time and timers: quiet when nothing is due, on time when something is, whoever leads."""

from __future__ import annotations

from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Claim, Command, OpenSession, Submit
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec

from consensus.autopilot import SUSPECT_AFTER_MS
from consensus.core import Core
from consensus.engine import EngineConfig
from consensus.ledger import Applied, GrantRef
from consensus.ledger.limits import LEASE_MS
from tests.consensus.cluster import Cluster
from tests.consensus.test_cores import accepted, submit, three

FAIL_OVER_MS = 1_500


class Grants:
    """Observes which claims were granted, and to whom."""

    def __init__(self) -> None:
        self.all: list[GrantRef] = []

    def entry_applied(self, applied: Applied) -> None:
        self.all.extend(applied.grants)

    def ledger_replaced(self) -> None: ...


def offer(cluster: Cluster, node_id: str, session: bytes) -> None:
    """A worker of the node opens a session and offers one slot."""
    opening = OpenSession(session=session, node_id=node_id, name="w", skills=["s"], nonce=1)
    [opened] = accepted(cluster.propose(node_id, Command(open_session=opening)))
    claim = Claim(session=session, epoch=opened.epoch, sequence=1, slots=1)
    accepted(cluster.propose(node_id, Command(claim=claim)))


def submit_work(cluster: Cluster, node_id: str, **more: int) -> None:
    spec = TaskSpec(name="t", subtasks=[SubtaskSpec(id="a", skill="s", **more)])  # type: ignore[arg-type]
    command = Command(submit=Submit(task_id=b"t" * 16, spec=spec.SerializeToString()))
    accepted(cluster.propose(node_id, command))


def last_indexes(cluster: Cluster) -> set[int]:
    return {core.engine.last_index for core in cluster.cores.values()}


def test_an_idle_mesh_writes_nothing_for_a_minute(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    accepted(cluster.propose("n2", submit(1)))
    offer(cluster, "n3", b"worker")
    cluster.world.run(cluster.agree)
    before = last_indexes(cluster)
    synced = [core.journal.sync_count for core in cluster.cores.values()]

    cluster.world.run_for(60_000)

    assert last_indexes(cluster) == before
    assert [core.journal.sync_count for core in cluster.cores.values()] == synced


def test_an_idle_mesh_is_quiet_again_after_a_dead_node_and_after_its_return(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    dead = next(n for n, core in sorted(cluster.cores.items()) if core.engine.role != "leader")
    cluster.kill(dead)
    cluster.world.run_for(SUSPECT_AFTER_MS * 4)
    before = cluster.wait_leader().engine.last_index
    cluster.world.run_for(30_000)
    assert last_indexes(cluster) == {before}

    cluster.start(dead)
    cluster.world.run(cluster.agree)
    cluster.world.run_for(30_000)

    assert last_indexes(cluster) == {before}


@pytest.mark.parametrize("seed", range(4))
def test_work_of_a_dead_node_is_taken_over_in_time_even_when_it_led(
    tmp_path: Path, seed: int
) -> None:
    cluster = three(tmp_path, seed=seed)
    leader = cluster.wait_leader().config.node_id
    other = next(n for n in sorted(cluster.cores) if n != leader)
    grants = Grants()
    cluster.cores[other].observe(grants)
    offer(cluster, leader, b"doomed")
    submit_work(cluster, leader)
    cluster.world.run(lambda: [g.session for g in grants.all] == [b"doomed"])
    offer(cluster, other, b"heir")
    killed_ms = cluster.world.monotonic_ms()

    cluster.kill(leader)
    cluster.world.run(lambda: len(grants.all) == 2, ms_max=60_000)

    assert grants.all[1].session == b"heir" and grants.all[1].fence > grants.all[0].fence
    assert cluster.world.monotonic_ms() - killed_ms <= LEASE_MS + FAIL_OVER_MS + 1_000
    cluster.assert_sound()


def test_a_lease_runs_out_no_earlier_than_it_says_when_the_leader_changes(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader().config.node_id
    other = next(n for n in sorted(cluster.cores) if n != leader)
    grants = Grants()
    cluster.cores[other].observe(grants)
    offer(cluster, other, b"holder")
    submit_work(cluster, other)
    cluster.world.run(lambda: len(grants.all) == 1)
    granted_ms = cluster.world.monotonic_ms()
    offer(cluster, other, b"heir")
    cluster.kill(leader)

    cluster.world.run(lambda: len(grants.all) == 2, ms_max=60_000)

    # Counted time may lag behind a dead leader's by one heartbeat, never run ahead of it.
    assert cluster.world.monotonic_ms() - granted_ms >= LEASE_MS - EngineConfig("n").heartbeat_ms


def test_a_timeout_of_an_attempt_fires_when_due_with_nobody_writing(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    grants = Grants()
    cluster.cores["n2"].observe(grants)
    offer(cluster, "n2", b"worker")
    submit_work(cluster, "n2", timeout_ms=1_000)
    cluster.world.run(lambda: len(grants.all) == 1)
    began_ms = cluster.world.monotonic_ms()

    cluster.world.run(lambda: len(grants.all) == 2, ms_max=3_000)

    assert 1_000 <= cluster.world.monotonic_ms() - began_ms <= 2_000


def test_a_process_that_was_stopped_does_not_expire_the_world(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader: Core = cluster.wait_leader()
    before_ms = leader.counted.now_ms()

    cluster.world.now_us += 60_000_000
    leader.turn()

    assert leader.counted.now_ms() - before_ms <= 1_000


def test_counted_time_never_goes_back_when_leaders_change(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    stamps: list[int] = []
    for number in range(1, 7):
        accepted(cluster.propose(sorted(cluster.cores)[0], submit(number)))
        cluster.world.run(cluster.agree)
        leader = cluster.wait_leader()
        stamps.append(leader.ledger.counted_ms)
        cluster.world.run_for(700)
        cluster.kill(leader.config.node_id)
        began_ms = leader.counted.now_ms()
        heir = cluster.wait_leader()
        assert heir.counted.now_ms() >= began_ms - EngineConfig("n").heartbeat_ms * 3
        cluster.start(leader.config.node_id)

    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] >= 5 * 700


def test_a_leader_whose_entries_were_withdrawn_sees_leases_run_out_when_it_leads_again(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    again = cluster.wait_leader()
    name = again.config.node_id
    other = next(n for n in sorted(cluster.cores) if n != name)
    grants = Grants()
    cluster.cores[other].observe(grants)
    for peer in set(cluster.cores) - {name}:
        cluster.wires.cut(name, peer)
    for number in range(40):
        deadline_ms = cluster.world.monotonic_ms() + 500
        again.propose([submit(number)], deadline_ms=deadline_ms, done=lambda _: None)
        cluster.world.run_for(25)
    cluster.world.run_for(3_000)
    cluster.wires.heal()
    cluster.world.run(cluster.agree)
    withdrawn_count = again.engine.counters.truncations

    offer(cluster, other, b"holder")
    submit_work(cluster, other)
    cluster.world.run(lambda: len(grants.all) == 1)
    offer(cluster, other, b"heir")
    cluster.world.run(lambda: hands_over_to(cluster, name))
    cluster.world.run(lambda: len(grants.all) == 2, ms_max=LEASE_MS + FAIL_OVER_MS + 1_000)

    assert withdrawn_count > 0 and again.engine.role == "leader"
    assert again.engine.last_index < 40, "the withdrawn entries lay beyond all that came after"


def hands_over_to(cluster: Cluster, name: str) -> bool:
    leader = cluster.leader()
    return leader is not None and (leader.config.node_id == name or leader.engine.transfer(name))

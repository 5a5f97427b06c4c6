"""Disks that are full or break under journal and vote: nothing is promised in vain, and who can goes on."""

from __future__ import annotations

import errno
from itertools import pairwise
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Command, Submit
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Value

from consensus.core import Core
from consensus.engine.records import GROUP_BODY, Kind, encode
from consensus.errors import ConsensusError, DiskFull, OutcomeUnknown, Unavailable
from tests.consensus.cluster import Cluster
from tests.consensus.refusing import RefusingDisk
from tests.consensus.test_cores import accepted, holds_all, join, submit

TINY = {"compact_entries": 20, "keep_entries": 5, "segment_bytes_max": 4_096}
RETURN_MS_MAX = 10_000
STEP_DOWN_MS_MAX = 1_000


def mesh(
    tmp_path: Path, *, nodes: int = 3, **config: int
) -> tuple[Cluster, dict[str, RefusingDisk]]:
    cluster = Cluster(tmp_path, **config)
    disks = {f"n{number}": RefusingDisk() for number in range(1, nodes + 1)}
    cluster.disks.update(disks)
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    for node_id in sorted(disks)[1:]:
        join(cluster, node_id)
    cluster.world.run(cluster.agree)
    return cluster, disks


def other_than(cluster: Cluster, core: Core) -> str:
    return next(n for n in sorted(cluster.cores) if n != core.config.node_id)


def test_a_leader_with_a_full_disk_steps_down_and_the_others_go_on(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path)
    full = cluster.wait_leader()
    mine, other = full.config.node_id, other_than(cluster, full)
    accepted(cluster.propose(mine, submit(1)))

    disks[mine].is_full = True
    unknown = cluster.propose(mine, submit(2), ms=1_500)
    accepted(cluster.propose(other, submit(3)))

    assert isinstance(unknown, OutcomeUnknown), "it was in the log's buffer when the write failed"
    assert full.engine.role == "follower" and not full.view().writable
    assert "disk is full" in full.view().trouble and full.view().is_disk_full
    assert full.reader.counts().task_count == 1, "reads go on"
    with pytest.raises(DiskFull):
        full.propose([submit(4)], deadline_ms=cluster.world.monotonic_ms() + 1, done=print)


def test_a_disk_that_was_full_serves_again_by_itself(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path)
    full = cluster.wait_leader()
    mine, other = full.config.node_id, other_than(cluster, full)
    disks[mine].is_full = True
    cluster.propose(mine, submit(1), ms=1_500)
    for number in range(2, 12):
        accepted(cluster.propose(other, submit(number)))
    cluster.world.run_for(60_000)

    disks[mine].is_full = False
    began_ms = cluster.world.monotonic_ms()
    cluster.world.run(lambda: full.view().writable, ms_max=RETURN_MS_MAX)
    print(f"back after {cluster.world.monotonic_ms() - began_ms} ms")
    accepted(cluster.propose(mine, submit(12)))
    accepted(cluster.propose(mine, submit(1)))

    cluster.world.run(cluster.agree)
    assert holds_all(cluster, 12)
    assert len({core.ledger.full_digest() for core in cluster.cores.values()}) == 1


def test_a_node_alone_with_a_full_disk_refuses_reads_on_and_comes_back(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path, nodes=1)
    alone = cluster.cores["n1"]
    accepted(cluster.propose("n1", submit(1)))

    disks["n1"].is_full = True
    unknown = cluster.propose("n1", submit(2), ms=500)
    with pytest.raises(DiskFull):
        cluster.propose("n1", submit(3))
    assert isinstance(unknown, ConsensusError) and alone.reader.counts().task_count == 1

    disks["n1"].is_full = False
    cluster.world.run(lambda: alone.view().writable, ms_max=RETURN_MS_MAX)
    accepted(cluster.propose("n1", submit(2)))
    accepted(cluster.propose("n1", submit(3)))
    assert alone.reader.counts().task_count == 3


def test_a_follower_with_a_full_disk_harms_nobody(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path)
    leader = cluster.wait_leader()
    term = leader.engine.term
    full = cluster.cores[other_than(cluster, leader)]
    disks[full.config.node_id].is_full = True

    for number in range(1, 51):
        accepted(cluster.propose(leader.config.node_id, submit(number), ms=400))

    assert (leader.engine.role, leader.engine.term) == ("leader", term)
    assert full.view().is_disk_full and leader.view().trouble == ""
    disks[full.config.node_id].is_full = False
    cluster.world.run(lambda: cluster.agree() and holds_all(cluster, 50), ms_max=RETURN_MS_MAX)


def test_what_was_never_sent_is_refused_at_once_as_not_written(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path, nodes=2)
    leader = cluster.wait_leader()
    mine, other = leader.config.node_id, other_than(cluster, leader)
    cluster.kill(other)
    cluster.world.run(lambda: leader.engine.role != "leader")
    answers: list[object] = []
    deadline_ms = cluster.world.monotonic_ms() + 60_000
    leader.propose([submit(1)], deadline_ms=deadline_ms, done=answers.append)

    disks[mine].is_full = True
    cluster.start(other)
    cluster.world.run(lambda: leader.view().is_disk_full)

    assert [type(answer) for answer in answers] == [DiskFull]


def test_a_failed_sync_is_never_acknowledged_and_its_file_is_left_alone(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path)
    broken = cluster.wait_leader()
    mine, other = broken.config.node_id, other_than(cluster, broken)
    disk = disks[mine]
    disk.sync_errno = errno.EIO

    began_ms = cluster.world.monotonic_ms()
    answers: list[object] = []
    broken.propose([submit(1)], deadline_ms=began_ms + 20_000, done=answers.append)
    cluster.world.run(lambda: broken.engine.role != "leader", ms_max=STEP_DOWN_MS_MAX)
    disk.sync_errno = 0
    disk.touched.clear()
    accepted(cluster.propose(other, submit(2)))
    cluster.world.run_for(30_000)

    assert [type(answer) for answer in answers] == [OutcomeUnknown]
    assert disk.touched == [], "neither written nor synced again, nor tried"
    assert "start this node anew" in broken.view().trouble and not broken.view().is_disk_full
    with pytest.raises(Unavailable):
        cluster.propose(mine, submit(3))
    assert broken.reader.counts().task_count == 0, "reads go on"


def test_after_a_failed_sync_the_next_start_trusts_only_a_fresh_file(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path)
    broken = cluster.wait_leader()
    mine, other = broken.config.node_id, other_than(cluster, broken)
    old = {path.name for path in (tmp_path / mine / "journal").iterdir()}
    disks[mine].sync_errno = errno.EIO
    cluster.propose(mine, submit(1), ms=1_500)
    accepted(cluster.propose(other, submit(2)))
    cluster.kill(mine)

    disks[mine].sync_errno = 0
    disks[mine].touched.clear()
    cluster.start(mine)
    accepted(cluster.propose(mine, submit(1)))
    cluster.world.run(cluster.agree)

    assert old.isdisjoint(disks[mine].touched)
    assert old.isdisjoint(path.name for path in (tmp_path / mine / "journal").iterdir())
    assert holds_all(cluster, 2)


def test_a_vote_that_could_not_be_written_is_not_given(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path)
    leader = cluster.wait_leader()
    rest = [n for n in sorted(cluster.cores) if n != leader.config.node_id]
    for node_id in rest:
        disks[node_id].is_full = True

    cluster.kill(leader.config.node_id)
    cluster.world.run(lambda: any(cluster.cores[n].view().is_disk_full for n in rest))
    cluster.world.run_for(5_000)
    assert cluster.leader() is None

    for node_id in rest:
        disks[node_id].is_full = False
    cluster.world.run(lambda: cluster.leader() is not None, ms_max=RETURN_MS_MAX)
    accepted(cluster.propose(rest[0], submit(1)))


def test_a_node_that_starts_with_a_full_disk_reads_and_waits_for_room(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path)
    accepted(cluster.propose("n2", submit(1)))
    cluster.world.run(cluster.agree)
    cluster.kill("n2")
    disks["n2"].is_full = True

    returned = cluster.start("n2")
    cluster.world.run(lambda: returned.view().is_disk_full)
    cluster.world.run_for(10_000)
    assert returned.reader.counts().task_count == 1 and not returned.view().writable

    disks["n2"].is_full = False
    cluster.world.run(lambda: returned.view().writable, ms_max=RETURN_MS_MAX)
    accepted(cluster.propose("n2", submit(2)))


class RefusesCopies(RefusingDisk):
    """A ledger that was received cannot be opened while `is_refusing`: there is no room for its log."""

    is_refusing = True

    def sync_folder(self, folder: Path) -> None:
        if self.is_refusing and (folder / "ledger.db").exists():
            (folder / "ledger.db-wal").mkdir()
        super().sync_folder(folder)


@pytest.mark.parametrize("step", ["open", "name", "journal"])
def test_an_install_on_a_full_disk_stops_nobody_and_is_done_once_there_is_room(
    tmp_path: Path, step: str
) -> None:
    cluster, _ = mesh(tmp_path, **TINY)
    leader = cluster.wait_leader()
    behind = other_than(cluster, leader)
    cluster.kill(behind)
    for number in range(1, 101):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    assert leader.journal.base_index > 50
    disk = RefusesCopies() if step == "open" else RefusingDisk()
    disk.full_names = {"open": "", "name": "CURRENT", "journal": ".journal"}[step]
    cluster.disks[behind] = disk

    returned = cluster.start(behind)
    cluster.world.run(lambda: returned.trouble != "")
    accepted(cluster.propose(leader.config.node_id, submit(101)))
    cluster.world.run_for(5_000)
    assert returned.applied_index < 50 and leader.trouble == ""

    disk.full_names, disk.is_refusing = "", False
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, 101)
    cluster.kill(behind)
    cluster.start(behind)
    cluster.world.run(cluster.agree)


def test_looks_for_room_grow_rare_and_stay_often_enough(tmp_path: Path) -> None:
    cluster, disks = mesh(tmp_path, nodes=1)
    disks["n1"].is_full = True
    cluster.propose("n1", submit(1), ms=500)
    looks: list[int] = []
    disk = disks["n1"]
    seen = disk.free_bytes

    def noted(folder: Path) -> int:
        looks.append(cluster.world.monotonic_ms())
        return seen(folder)

    disk.free_bytes = noted  # type: ignore[method-assign]
    cluster.world.run_for(60_000)

    waits = [later - earlier for earlier, later in pairwise(looks)]
    assert len(looks) <= 60_000 // 1_900 + 5
    assert max(waits) <= 2_100


def test_a_founder_whose_disk_was_full_founds_its_mesh_once_there_is_room(tmp_path: Path) -> None:
    cluster, disk = Cluster(tmp_path), RefusingDisk()
    cluster.disks["n1"] = disk
    founder = cluster.start("n1")
    cluster.world.run(lambda: founder.engine.last_index > 1)
    disk.is_full = True
    cluster.world.run(lambda: founder.trouble != "")
    assert founder.ledger.mesh_id == ""

    disk.is_full = False

    cluster.world.run(lambda: founder.ledger.mesh_id == "m", ms_max=RETURN_MS_MAX)


def test_a_task_that_holds_records_of_a_journal_does_no_harm_when_its_write_is_cut_short(
    tmp_path: Path,
) -> None:
    cluster, disks = mesh(tmp_path, nodes=1)
    claims_synced = encode(Kind.GROUP, GROUP_BODY.pack(1 << 40, 0))
    value = Value(data=claims_synced * 2_000)
    subtasks = [SubtaskSpec(id=f"a{number}", skill="s", input=value) for number in range(4)]
    spec = TaskSpec(name="t", subtasks=subtasks)
    hostile = Command(submit=Submit(task_id=b"h" * 16, spec=spec.SerializeToString()))
    disks["n1"].is_full = True
    assert isinstance(cluster.propose("n1", hostile, ms=500), ConsensusError)
    disks["n1"].is_full = False

    cluster.world.run(lambda: cluster.cores["n1"].view().writable, ms_max=RETURN_MS_MAX)
    accepted(cluster.propose("n1", hostile))
    cluster.kill("n1")
    again = cluster.start("n1")

    cluster.world.run(lambda: again.reader.counts().task_count == 1)
    held = (again.journal.command_at(index) for index in range(1, again.journal.last_index + 1))
    assert any(claims_synced in command for command in held), "read back as it was written"


def test_a_ledger_that_refuses_writes_is_not_said_to_work_because_the_journal_failed_too(
    tmp_path: Path,
) -> None:
    """The journal fails in the moment between the look for room and the entry that is tried again."""
    cluster, _ = mesh(tmp_path)
    core = cluster.wait_leader()
    other = other_than(cluster, core)
    core.ledger.connection.execute("PRAGMA query_only = 1")
    accepted(cluster.propose(other, submit(1)))
    cluster.world.run(lambda: bool(core.trouble) and core._apply_due, ms_max=RETURN_MS_MAX)

    core.engine._fail(OSError(errno.ENOSPC, "No space left on device"))
    cluster.world.run(lambda: core.engine.failed is None, ms_max=RETURN_MS_MAX)
    with pytest.raises(AssertionError, match="not within"):
        cluster.world.run(lambda: core.view().writable, ms_max=5_000)

    core.ledger.connection.execute("PRAGMA query_only = 0")
    cluster.world.run(lambda: core.view().writable, ms_max=RETURN_MS_MAX)
    cluster.world.run(lambda: cluster.agree() and holds_all(cluster, 1))

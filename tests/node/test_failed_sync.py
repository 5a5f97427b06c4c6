"""A real leader whose disk fails a sync: it steps down, says so, and leaves that file alone for ever."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from quorumesh.v1.tasks_pb2 import ListTasksRequest

from tests.e2e.mesh_process import LocalMesh, NodeProcess, Site, wait_for
from tests.faultlib import oplog
from tests.faultlib.child import need_library
from tests.faultlib.control import Faults
from tests.node.test_cut import refusal, submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(150)]

STEP_DOWN_S_MAX = 1.0
MADE = oplog.Kind.CREATE
CHANGES = {oplog.Kind.WRITE, oplog.Kind.TRUNCATE, oplog.Kind.SYNC, oplog.Kind.SYNC_FAILED}


@pytest.fixture
def switched(tmp_path: Path) -> Iterator[dict[str, Faults]]:
    need_library()
    names = [f"node-{number}" for number in (1, 2, 3)]
    faults = {
        name: Faults(tmp_path / name, near=tmp_path / "near" / name, logs=True) for name in names
    }
    yield faults
    for each in faults.values():
        each.close()


def journal_records(faults: Faults) -> list[oplog.Record]:
    """What was done to files that were made as segments of the journal."""
    assert faults.log is not None
    records = oplog.read(faults.log)
    made = {one.ticket for one in records if one.kind is MADE and ".journal" in one.name}
    files = {one.file for one in records if one.kind is oplog.Kind.NAMED and one.offset in made}
    return [one for one in records if one.file in files and one.kind in CHANGES]


def test_a_leader_whose_sync_failed_steps_down_and_leaves_the_file_alone(
    tmp_path: Path, switched: dict[str, Faults]
) -> None:
    def site(name: str) -> Site:
        return Site(environment=switched[name].environment())

    with LocalMesh(tmp_path, workers=0, site=site) as mesh:
        mesh.grow(3)
        broken = mesh.leader()
        others = [node for node in mesh.nodes if node is not broken]
        known = submit(broken, timeout_s=10)
        faults = switched[broken.name]

        faults.sync_errno = errno.EIO
        began_s = time.monotonic()
        with pytest.raises(grpc.RpcError):
            submit(broken, timeout_s=3)
        failed_s = _until_not_leading(broken, began_s)
        after = wait_for(lambda: submit(others[0], timeout_s=10), "another one leads")
        gap_s = time.monotonic() - began_s
        faults.sync_errno = 0
        changes = len(journal_records(faults))
        failures = [one.kind for one in journal_records(faults)].count(oplog.Kind.SYNC_FAILED)
        assert failures == 1, "it was not tried again"
        for _ in range(20):
            submit(others[1], timeout_s=10)

        print(f"stepped down after {failed_s:.2f} s; written again after {gap_s:.1f} s")
        assert failed_s <= STEP_DOWN_S_MAX
        code, reason, _ = refusal(broken, timeout_s=5)
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
        assert len(journal_records(faults)) == changes, "neither written nor synced again"
        assert known in ids(broken), "reads go on"

        broken.stop()
        assert len(journal_records(faults)) == changes, "nor at the end"
        broken.start()
        mesh.wait_ready(broken, voters=3)
        mesh.equal_digests()
        assert {known, after} <= ids(broken)
        assert "start this node anew" in broken.log.read_text(encoding="utf-8")


def ids(node: NodeProcess) -> set[bytes]:
    reply = node.tasks().List(ListTasksRequest(page_size=500), timeout=5)
    return {task.task_id for task in reply.tasks}


def _until_not_leading(node: NodeProcess, began_s: float) -> float:
    wait_for(lambda: node.status().role != "leader", f"{node.name} steps down")
    return time.monotonic() - began_s

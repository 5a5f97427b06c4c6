"""A real node whose disk refuses to take more: it says so, goes on reading, and comes back whole."""

from __future__ import annotations

import resource
from pathlib import Path

import grpc
import pytest
from quorumesh.v1.tasks_pb2 import ListTasksRequest

from tests.e2e.mesh_process import LocalMesh, NodeProcess, wait_for
from tests.node.test_cut import refusal, submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def fill_disk(node: NodeProcess) -> None:
    """No file of this process may grow any more: each write fails, as on a full disk."""
    _, hard = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (1, hard))


@pytest.mark.parametrize("leads", [False, True], ids=["follower", "leader"])
def test_a_full_disk_stops_the_writes_of_its_node_and_nothing_else(
    tmp_path: Path, leads: bool
) -> None:
    with LocalMesh(tmp_path, workers=0) as mesh:
        mesh.grow(3)
        leader = mesh.leader()
        full = leader if leads else next(node for node in mesh.nodes if node is not leader)
        others = [node for node in mesh.nodes if node is not full]
        known = submit(full, timeout_s=10)

        fill_disk(full)
        after = wait_for(lambda: submit(others[0], timeout_s=10), "the other two go on")
        wait_for(lambda: not full.status().writable, "it calls itself read-only")
        code, reason, retry_ms = refusal(full, timeout_s=5)

        assert code is grpc.StatusCode.UNAVAILABLE
        assert reason in {"UNAVAILABLE", "STORAGE_FAILED"}
        assert retry_ms > 0
        reply = full.tasks().List(ListTasksRequest(), timeout=5)
        assert known in {task.task_id for task in reply.tasks}
        assert not full.has_ended()

        process = full.process
        full.stop()
        assert process is not None
        assert process.returncode == 0, "a disk that refuses is no bug"
        full.start()
        mesh.wait_ready(full, voters=3)
        mesh.equal_digests()
        ids = {t.task_id for t in full.tasks().List(ListTasksRequest(), timeout=5).tasks}
        assert {known, after} <= ids

"""Real nodes whose disk is full: they say so, go on reading, and come back by themselves."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import grpc
import pytest
from quorumesh.v1.tasks_pb2 import ListTasksRequest

from tests.e2e.mesh_process import LocalMesh, NodeProcess, wait_for
from tests.node.small_disk import FileSizes, small_disks
from tests.node.test_cut import refusal, submit

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

RETURN_S_MAX = 10.0


def ids(node: NodeProcess) -> set[bytes]:
    reply = node.tasks().List(ListTasksRequest(page_size=500), timeout=5)
    return {task.task_id for task in reply.tasks}


def write_until_refused(node: NodeProcess) -> None:
    """A full disk shows at the next write. How that one ends is not always known."""

    def refused() -> bool:
        with contextlib.suppress(grpc.RpcError):
            submit(node, timeout_s=2)
        return not node.status().writable

    wait_for(refused, f"{node.name} calls itself read-only")


def back_within(node: NodeProcess, since_s: float) -> float:
    """Seconds until the node itself takes a write again."""

    def taken() -> bytes | None:
        return submit(node, timeout_s=2)

    wait_for(taken, f"{node.name} takes writes again", within_s=RETURN_S_MAX)
    return time.monotonic() - since_s


@pytest.mark.parametrize("leads", [False, True], ids=["follower", "leader"])
def test_a_full_disk_stops_the_writes_of_its_node_and_nothing_else(
    tmp_path: Path, leads: bool
) -> None:
    with small_disks(tmp_path, 3) as disk, LocalMesh(tmp_path, workers=0) as mesh:
        mesh.grow(3)
        leader = mesh.leader()
        full = leader if leads else next(node for node in mesh.nodes if node is not leader)
        others = [node for node in mesh.nodes if node is not full]
        known = submit(full, timeout_s=10)

        disk.fill(full)
        began_s = time.monotonic()
        after = [wait_for(lambda: submit(others[0], timeout_s=10), "the other two go on")]
        gap_s = time.monotonic() - began_s
        wait_for(lambda: not full.status().writable, "it calls itself read-only")
        after += [submit(others[1], timeout_s=10) for _ in range(20)]
        code, reason, retry_ms = refusal(full, timeout_s=5)

        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
        assert retry_ms > 0 and "disk is full" in full.status().trouble
        assert known in ids(full), "reads go on"
        with full.client(*others) as client:
            client.submit({"subtasks": [{"id": "a", "skill": "echo"}]})
        assert not full.has_ended()

        pid = full.pid
        disk.make_room(full)
        took_s = back_within(full, time.monotonic())
        mesh.equal_digests()
        print(f"{type(disk).__name__}: write gap {gap_s:.1f} s, back after {took_s:.1f} s")
        assert {known, *after} <= ids(full)
        assert full.pid == pid and not full.has_ended(), "it was not started anew"


def test_a_node_alone_with_a_full_disk_refuses_reads_on_and_comes_back(tmp_path: Path) -> None:
    with small_disks(tmp_path, 1) as disk, LocalMesh(tmp_path, workers=0) as mesh:
        [alone] = mesh.grow(1)
        known = submit(alone, timeout_s=10)

        disk.fill(alone)
        write_until_refused(alone)
        code, reason, _ = refusal(alone, timeout_s=5)
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")
        assert known in ids(alone), "reads go on"

        disk.make_room(alone)
        took_s = back_within(alone, time.monotonic())
        print(f"{type(disk).__name__}: alone, back after {took_s:.1f} s")
        assert known in ids(alone)


def test_a_node_that_starts_with_a_full_disk_reads_and_comes_back(tmp_path: Path) -> None:
    with small_disks(tmp_path, 1) as disk, LocalMesh(tmp_path, workers=0) as mesh:
        if isinstance(disk, FileSizes):
            pytest.skip("a bound on file sizes ends with the process")
        [alone] = mesh.grow(1)
        known = submit(alone, timeout_s=10)
        alone.kill()

        disk.fill(alone)
        alone.start()
        assert known in wait_for(lambda: ids(alone), "it reads")
        code, reason, _ = refusal(alone, timeout_s=5)
        assert (code, reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DISK_FULL")

        disk.make_room(alone)
        print(f"started full, back after {back_within(alone, time.monotonic()):.1f} s")
        assert known in ids(alone)

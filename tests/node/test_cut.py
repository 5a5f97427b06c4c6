"""Real nodes whose peers fall silent: writes are refused in time, reads go on and say their age."""

from __future__ import annotations

import time
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from quorumesh.v1.tasks_pb2 import GetTaskRequest, ListTasksRequest, SubmitRequest, TaskSpec

from mesh.ids import uuid7
from tests.e2e.mesh_process import LocalMesh, NodeProcess, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

REFUSED_S_MAX = 3.0
WAITS_S = 12.0


def submit(node: NodeProcess, *, timeout_s: float) -> bytes:
    spec = TaskSpec(name="cut")
    spec.subtasks.add(id="a", skill="echo")
    task_id = uuid7()
    node.tasks().Submit(SubmitRequest(task_id=task_id, spec=spec), timeout=timeout_s)
    return task_id


def refusal(node: NodeProcess, *, timeout_s: float) -> tuple[grpc.StatusCode, str, int]:
    """How a submit is refused: code, reason, and after how many ms it says to try again."""
    with pytest.raises(grpc.RpcError) as raised:
        submit(node, timeout_s=timeout_s)
    error = raised.value
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error.code()} {error.details()}"
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    return error.code(), info.reason, retry.retry_delay.ToMilliseconds()


@pytest.mark.parametrize("leads", [False, True], ids=["follower", "leader"])
def test_after_a_silent_cut_writes_are_refused_within_three_seconds(
    tmp_path: Path, leads: bool
) -> None:
    with LocalMesh(tmp_path, workers=0) as mesh:
        mesh.grow(3)
        leader = mesh.leader()
        left = leader if leads else next(node for node in mesh.nodes if node is not leader)
        known = submit(left, timeout_s=10)
        others = [node for node in mesh.nodes if node is not left]

        cut = time.monotonic()
        for node in others:
            node.pause()
        code, reason, retry_ms = refusal(left, timeout_s=WAITS_S)
        first_s = time.monotonic() - cut
        wait_for(lambda: not left.status().writable, "it calls itself read-only")
        asked = time.monotonic()
        later = refusal(left, timeout_s=WAITS_S)
        at_once_s = time.monotonic() - asked

        print(f"refused after {first_s:.2f} s, then at once ({at_once_s * 1e3:.0f} ms)")
        assert code is grpc.StatusCode.UNAVAILABLE
        assert reason in {"UNAVAILABLE", "OUTCOME_UNKNOWN"}
        assert retry_ms > 0
        assert first_s <= REFUSED_S_MAX
        assert later[:2] == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE")
        assert at_once_s < 0.5
        reply = left.tasks().Get(GetTaskRequest(task_id=known), timeout=5)
        assert reply.task.task_id == known
        assert reply.age_ms >= 1_000
        assert left.tasks().List(ListTasksRequest(), timeout=5).age_ms >= reply.age_ms

        for node in others:
            node.resume()
        wait_for(lambda: left.status().writable, "it can write again")
        submit(left, timeout_s=10)


def test_while_no_leader_can_be_elected_a_submit_waits_until_its_deadline(tmp_path: Path) -> None:
    with LocalMesh(tmp_path, workers=0) as mesh:
        mesh.grow(3)
        leader = mesh.leader()
        left, silent = (node for node in mesh.nodes if node is not leader)
        # The silent one still seems to be there: an election is under way that cannot end.
        silent.pause()
        leader.kill()

        began = time.monotonic()
        code, reason, retry_ms = refusal(left, timeout_s=1.0)
        waited_s = time.monotonic() - began

        assert code is grpc.StatusCode.UNAVAILABLE
        assert reason in {"UNAVAILABLE", "OUTCOME_UNKNOWN"}
        assert retry_ms > 0
        assert 0.7 <= waited_s < 1.1
        silent.resume()
        known = wait_for(lambda: submit(left, timeout_s=5), "the two elect a leader")
        tasks = left.tasks().List(ListTasksRequest(), timeout=5).tasks
        assert known in {task.task_id for task in tasks}
        assert all(task.subtask_count == 1 for task in tasks)

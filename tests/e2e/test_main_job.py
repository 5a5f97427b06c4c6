"""The main job on real processes: nodes die and come back, and every task still gets its end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from quorumesh.v1 import tasks_pb2
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.values_pb2 import READY, TASK_FAILED, TASK_RUNNING, TASK_SUCCEEDED

from mesh.client import Client
from mesh.client_errors import TaskFailed
from tests.e2e.mesh_process import LocalMesh, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def sleepers(count: int, *, ms: int) -> dict[str, object]:
    parts: list[dict[str, object]] = [
        {"id": f"s{at}", "skill": "sleep", "input": {"ms": ms}} for at in range(count)
    ]
    ids = [str(part["id"]) for part in parts]
    parts.append({"id": "all", "skill": "combine.list", "needs": ids})
    return {"name": f"{count} sleepers", "subtasks": parts}


def ended_ids(client: Client, task_id: str) -> list[str]:
    task = client.get(task_id)
    return [part.id for part in task.subtasks if part.ended_wall_ms]


def successes(story: Sequence[TaskEvent]) -> Counter[str]:
    return Counter(event.subtask for event in story if event.kind == TaskEvent.SUBTASK_SUCCEEDED)


def test_a_killed_leader_costs_no_subtask_and_repeats_none(mesh: LocalMesh) -> None:
    mesh.grow(3)
    leader = mesh.leader()
    followers = [node for node in mesh.nodes if node is not leader]
    leader_id = leader.status().node_id

    with followers[0].client(followers[1]) as client:
        task_id = client.submit(sleepers(40, ms=500))
        wait_for(
            lambda: (
                any(lock.holder.startswith(leader_id) for lock in client.locks())
                or leader_id in {part.node_id for part in client.get(task_id).subtasks}
            ),
            "the leader's worker holds a claim",
        )
        assert len(ended_ids(client, task_id)) < 41
        leader.kill()
        result = client.result(task_id, 60)
        story = list(client.story(task_id))
        task = client.get(task_id)

    assert isinstance(result, list)
    assert len(result) == 40
    assert successes(story) == {part.id: 1 for part in task.subtasks}
    fences = [event.fence for event in story if event.kind == TaskEvent.CLAIMED]
    assert len(set(fences)) == len(fences), "a fence is never used twice"
    assert any(event.kind == TaskEvent.ATTEMPT_LOST for event in story)

    leader.start()
    mesh.wait_ready(leader, voters=3)
    mesh.equal_digests()


def test_a_fourth_node_joins_when_the_first_is_dead_for_good(mesh: LocalMesh) -> None:
    mesh.grow(3)
    mesh.nodes[0].kill()
    mesh.leader()

    fourth = mesh.add(through=mesh.nodes[2])

    with fourth.client() as client:
        task_id = client.submit({"subtasks": [{"id": "a", "skill": "echo", "input": "hello"}]})
        assert client.result(task_id, 30) == "hello"
        wait_for(
            lambda: sum(member.voter for member in client.members()) == 4, "there are four voters"
        )


def test_a_sixth_node_works_and_answers_without_a_vote(mesh: LocalMesh) -> None:
    mesh.grow(5)

    sixth = mesh.add(votes=False)

    with sixth.client() as client:
        task_id = client.submit(sleepers(24, ms=100))
        client.result(task_id, 30)
        nodes = {part.node_id for part in client.get(task_id).subtasks}
        assert sum(member.voter for member in client.members()) == 5
    assert sixth.status().node_id in nodes


def test_the_minority_reads_with_its_age_and_refuses_writes_within_3_s(mesh: LocalMesh) -> None:
    mesh.grow(3)
    left = mesh.nodes[1]
    with left.client() as client:
        task_id = client.submit({"subtasks": [{"id": "a", "skill": "echo", "input": 1}]})
        client.result(task_id, 30)
        known = client.get(task_id)
    others = [node for node in mesh.nodes if node is not left]
    for node in others:
        node.pause()
    try:
        wait_for(lambda: not left.status().writable, "the node says so", within_s=3)
        request = tasks_pb2.GetTaskRequest(task_id=known.task_id)
        reply = left.tasks().Get(request, timeout=2)
        with pytest.raises(grpc.RpcError) as refused:
            left.tasks().Submit(tasks_pb2.SubmitRequest(task_id=bytes(16), spec=_echo()), timeout=1)
    finally:
        for node in others:
            node.resume()

    assert reply.task.state == TASK_SUCCEEDED
    assert reply.age_ms > 500
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    wait_for(lambda: left.status().writable, "it writes again")


def test_a_submit_without_leader_waits_to_its_deadline_and_leaves_nothing(mesh: LocalMesh) -> None:
    mesh.grow(3)
    leader = mesh.leader()
    left, other = mesh.followers()
    left.status()
    task_id = bytes(range(16))
    leader.kill()
    other.pause()  # its connection stays up, so a leader may come; it just does not

    start = time.monotonic()
    with pytest.raises(grpc.RpcError) as refused:
        left.tasks().Submit(tasks_pb2.SubmitRequest(task_id=task_id, spec=_echo()), timeout=2)
    waited_s = time.monotonic() - start
    other.resume()

    status = rpc_status.from_call(refused.value)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
    assert 1.0 < waited_s <= 2.5, refused.value
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)
    mesh.leader()
    with left.client() as client:
        client.create_token()
        assert [task.task_id for task in client.list() if task.task_id == task_id] == []


def test_a_skill_that_nobody_has_waits_with_the_reason_and_fails_at_its_deadline(
    mesh: LocalMesh,
) -> None:
    [node] = mesh.grow(1)

    with node.client() as client:
        task_id = client.submit(
            {"deadline_ms": 2_500, "subtasks": [{"id": "a", "skill": "no.such.skill"}]}
        )
        task = client.get(task_id)
        assert task.state == TASK_RUNNING
        assert task.subtasks[0].state == READY
        assert "no.such.skill" in task.subtasks[0].waiting_reason
        ended = client.ended(task_id, 20)

    assert ended.state == TASK_FAILED
    assert ended.failure.code == "DEADLINE"


def test_bad_agents_stop_no_node_and_lose_no_task(mesh: LocalMesh) -> None:
    [node] = mesh.grow(1)
    once = {"max_attempts": 1}
    bad = ("raises", "raises_final", "not_json", "too_large", "sys_exits")

    with node.client() as client:
        failing = [
            client.submit({"subtasks": [{"id": "a", "skill": skill, "input": "x", "retry": once}]})
            for skill in bad
        ]
        marker = str(mesh.root / "exited")
        leaving = client.submit({"subtasks": [{"id": "a", "skill": "exits", "input": marker}]})
        loud = client.submit({"subtasks": [{"id": "a", "skill": "prints"}]})
        hanging = client.submit(
            {"subtasks": [{"id": "a", "skill": "hangs_sync", "timeout_ms": 500, "retry": once}]}
        )

        for task_id in failing:
            with pytest.raises(TaskFailed):
                client.result(task_id, 30)
        with pytest.raises(TaskFailed) as late:
            client.result(hanging, 60)
        assert late.value.code == "TIMEOUT"
        assert client.result(leaving, 60) == "second time"
        assert client.result(loud, 60) == "printed"
    assert not node.has_ended()


def test_stopping_a_node_leaves_no_process_behind(mesh: LocalMesh) -> None:
    [node] = mesh.grow(1)
    workers = node.worker_pids()
    assert workers

    node.kill()

    wait_for(lambda: not any(is_running(pid) for pid in workers), "the workers are gone")


def is_running(pid: int) -> bool:
    """Whether the process still runs; one that only waits to be collected does not."""
    path = Path(f"/proc/{pid}/stat")
    if not path.exists():
        return False
    return path.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "Z"


def _echo() -> tasks_pb2.TaskSpec:
    part = tasks_pb2.SubtaskSpec(id="a", skill="echo")
    return tasks_pb2.TaskSpec(name="echo", subtasks=[part])

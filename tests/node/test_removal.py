"""A node that was removed from the mesh: it is told over its real links, and says so to its clients."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from quorumesh.v1.mesh_pb2 import (
    CreateTokenRequest,
    DigestRequest,
    EntriesRequest,
    JoinRequest,
    StatusRequest,
)
from quorumesh.v1.mesh_pb2_grpc import MeshStub
from quorumesh.v1.tasks_pb2 import GetTaskRequest, SubmitRequest, WatchTaskRequest
from quorumesh.v1.tasks_pb2_grpc import TasksStub

from mesh.credentials import NodeCredentials
from tests.node.small_mesh import SmallMesh, small_mesh, until

TASK = {"name": "t", "subtasks": [{"id": "a", "skill": "nobody-has"}]}


async def says_that_it_was_removed(mesh: SmallMesh, name: str) -> None:
    creds = mesh.credentials(name).channel_credentials()
    async with mesh.channel(name, creds) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as written:
            await MeshStub(channel).CreateToken(CreateTokenRequest(), timeout=5)
        with pytest.raises(grpc.aio.AioRpcError) as read:
            request = GetTaskRequest(task_id=b"t", linearizable=True)
            await TasksStub(channel).Get(request, timeout=5)
        status = await MeshStub(channel).Status(StatusRequest(), timeout=5)
    for refused in (written.value, read.value):
        assert refused.code() is grpc.StatusCode.UNAVAILABLE
        assert "removed from the mesh" in (refused.details() or "")
    assert not status.writable


async def test_a_removed_leader_is_told_and_answers_honestly_also_after_a_restart(
    tmp_path: Path,
) -> None:
    async with small_mesh(tmp_path) as mesh:
        first = await mesh.start("n1")
        await mesh.grow("n2")
        third = await mesh.grow("n3")

        await third.replica.remove_voter(first.node_id, timeout_ms=10_000)
        await until(lambda: first.replica.core.is_removed)

        await says_that_it_was_removed(mesh, "n1")
        assert sorted(third.replica.view().voters) == sorted(
            node.node_id for name, node in mesh.nodes.items() if name != "n1"
        )
        async with mesh.client("n2") as client:
            await client.submit(TASK)
            assert first.node_id not in {member.node_id for member in await client.members()}

        await mesh.stop("n1")
        again = await mesh.start("n1")
        assert again.replica.core.is_removed
        await says_that_it_was_removed(mesh, "n1")
        async with mesh.client("n3") as client:
            await client.submit(TASK)


async def test_the_certificate_of_a_removed_node_is_refused_by_all_others(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        second = await mesh.grow("n2")
        creds = NodeCredentials.load(tmp_path / "n2" / "node").channel_credentials()
        async with mesh.channel("n1", creds) as channel:
            await MeshStub(channel).Status(StatusRequest(), timeout=5)

            await mesh.nodes["n1"].replica.remove_voter(second.node_id, timeout_ms=10_000)

            calls = [
                MeshStub(channel).Status(StatusRequest(), timeout=5),
                MeshStub(channel).CreateToken(CreateTokenRequest(), timeout=5),
                MeshStub(channel).Digest(DigestRequest(), timeout=5),
                MeshStub(channel).Entries(EntriesRequest(), timeout=5),
                TasksStub(channel).Submit(SubmitRequest(), timeout=5),
                HealthStub(channel).Check(HealthCheckRequest(), timeout=5),
            ]
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert_was_removed(refused.value, second.node_id)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await TasksStub(channel).Watch(WatchTaskRequest(), timeout=5).read()
            assert_was_removed(refused.value, second.node_id)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await MeshStub(channel).Join(JoinRequest(), timeout=5)
        assert refused.value.details() == "the certificate belongs to another token"


def assert_was_removed(refused: grpc.aio.AioRpcError, node_id: str) -> None:
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert refused.details() == f"{node_id} was removed from the mesh"

"""A node that was removed from the mesh: it is told over its real links, and says so to its clients."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from quorumesh.v1.mesh_pb2 import CreateTokenRequest, StatusRequest
from quorumesh.v1.mesh_pb2_grpc import MeshStub
from quorumesh.v1.tasks_pb2 import GetTaskRequest
from quorumesh.v1.tasks_pb2_grpc import TasksStub

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

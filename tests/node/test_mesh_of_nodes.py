"""Whole nodes over loopback: joining, submitting through a follower, refusing strangers."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from quorumesh.v1.mesh_pb2 import StatusRequest
from quorumesh.v1.mesh_pb2_grpc import MeshStub
from quorumesh.v1.tasks_pb2 import ListTasksRequest
from quorumesh.v1.tasks_pb2_grpc import TasksStub

from mesh import Refused
from mesh.errors import JoinRefused, TokenMalformed, TokenUsed
from mesh.identity import Authority, Principal, key_pem, new_key
from mesh.tokens import decode
from node.api.errors import DOMAIN
from node.folder import BootError
from node.system import SystemClock
from tests.node.small_mesh import small_mesh, until

TASK = {"name": "t", "subtasks": [{"id": "a", "skill": "echo", "input": 7}]}


async def test_a_task_submitted_through_a_follower_is_done_and_known_everywhere(
    tmp_path: Path,
) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1", worker_count=1)
        await mesh.grow("n2")
        follower = await mesh.grow("n3")
        assert follower.replica.view().role == "follower"

        async with mesh.client("n3") as client:
            task_id = await client.submit(TASK)
            assert await client.result(task_id, 20) == 7

        async with mesh.client("n2") as client:
            task = await client.get(task_id)
            kinds = [event.kind async for event in client.story(task_id)]
            watched = [event.kind async for event in client.watch(task_id)]
        assert task.ended_count == 1
        assert watched == kinds
        assert await mesh.stop("n1") == 0


async def test_with_the_first_node_gone_another_admits_a_new_one(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        await mesh.grow("n2")
        node = await mesh.grow("n3")
        await mesh.stop("n1")

        await until(
            lambda: node.replica.view().leader_id in {n.node_id for n in mesh.nodes.values()}
        )
        async with mesh.client("n3") as client:
            token = (await client.create_token()).token
        fourth = await mesh.start("n4", join_token=token)

        await until(lambda: fourth.node_id in node.replica.view().voters)


async def test_the_minority_reads_on_and_refuses_to_write(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        node = await mesh.grow("n2")
        await mesh.stop("n1")
        await until(lambda: not node.replica.view().writable)

        creds = mesh.credentials("n2").channel_credentials()
        async with mesh.channel("n2", creds) as channel:
            listed = await TasksStub(channel).List(ListTasksRequest(), timeout=5)
            assert listed.age_ms > 0
            from quorumesh.v1.mesh_pb2 import CreateTokenRequest

            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await MeshStub(channel).CreateToken(CreateTokenRequest(), timeout=3)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert b"RetryInfo" in bytes(
            dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
        )


async def test_strangers_and_wrong_roles_are_refused(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        ca = mesh.credentials("n1").ca_pem
        key = new_key()
        foreign = Authority.create("other").issue(key.public_key(), Principal("client", "eve"))
        for credentials in (
            grpc.ssl_channel_credentials(ca),
            grpc.ssl_channel_credentials(ca, key_pem(key), foreign),
        ):
            async with mesh.channel("n1", credentials) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await MeshStub(channel).Status(StatusRequest(), timeout=5)
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE

        async with mesh.client("n1") as client:
            text = (await client.create_token()).token
        token = decode(text, now_wall_ms=SystemClock().wall_ms())
        joiner = grpc.ssl_channel_credentials(ca, token.key_pem, token.certificate_pem)
        async with mesh.channel("n1", joiner) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await TasksStub(channel).List(ListTasksRequest(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert DOMAIN.encode() in bytes(
            dict(refused.value.trailing_metadata())["grpc-status-details-bin"]
        )


async def test_bad_and_used_tokens_and_unreachable_addresses_are_told(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        async with mesh.client("n1") as client:
            token = (await client.create_token()).token
            other = (await client.create_token()).token
        with pytest.raises(TokenMalformed):
            decode(token[:-5], now_wall_ms=0)
        await mesh.start("n2", join_token=token)

        from node.boot import boot
        from node.config import NodeConfig

        def config(name: str, **settings: str) -> NodeConfig:
            return NodeConfig(
                tmp_path / name, listen="127.0.0.1:0", writes_profile=False, **settings
            )

        now = SystemClock().wall_ms()
        with pytest.raises(TokenUsed):
            await boot(config("n3", join_token=token), wall_ms=now)
        with pytest.raises(JoinRefused, match=r"127\.0\.0\.1:9 "):
            await boot(config("n4", join_token=other, advertise="127.0.0.1:9"), wall_ms=now)


async def test_a_second_node_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        from node.folder import holding

        with pytest.raises(BootError, match="another node runs"), holding(tmp_path / "n1"):
            pass


async def test_a_bad_task_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        cycle = {
            "name": "c",
            "subtasks": [
                {"id": "a", "skill": "echo", "needs": ["b"]},
                {"id": "b", "skill": "echo", "needs": ["a"]},
            ],
        }
        async with mesh.client("n1") as client:
            with pytest.raises(Refused) as refused:
                await client.submit(cycle)
        assert refused.value.reason == "INVALID"

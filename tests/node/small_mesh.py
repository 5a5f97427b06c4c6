"""Nodes of one mesh in one process, over loopback, with the certificates they use in earnest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc

from consensus.errors import Damaged
from mesh.aio import AsyncClient
from mesh.calls import dial_with
from mesh.credentials import CHANNEL_TLS_OPTIONS, ClientCredentials
from node.api.errors import EXIT_DAMAGED
from node.config import NodeConfig
from node.runtime import Running, serve

WAIT_S = 30.0
LOOK_S = 0.02


class SmallMesh:
    """Starts nodes and stops them. Nothing is left when its block ends."""

    def __init__(self, root: Path, group: asyncio.TaskGroup) -> None:
        self.root = root
        self.group = group
        self.nodes: dict[str, Running] = {}
        self.ends: dict[str, asyncio.Task[int]] = {}
        self.damages: dict[str, Damaged] = {}  # what ended a node

    async def start(self, name: str, **settings: Any) -> Running:
        config = NodeConfig(
            data_dir=self.root / name,
            listen="127.0.0.1:0",
            name=name,
            **{"worker_count": 0, "writes_profile": False, **settings},
        )
        ready: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        end = self.group.create_task(self._serve(name, config, ready.set_result))
        self.ends[name] = end
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait({ready, end}, return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            del self.ends[name]
            if name in self.damages:
                raise self.damages.pop(name)
            end.result()
        self.nodes[name] = ready.result()
        return self.nodes[name]

    async def _serve(self, name: str, config: NodeConfig, ready: Callable[[Running], None]) -> int:
        # One node that ends must not end the group: the others are what is looked at then.
        try:
            return await serve(config, ready, handles_signals=False)
        except Damaged as damage:
            self.damages[name] = damage
            return EXIT_DAMAGED

    async def out_of_service(self, name: str) -> Damaged:
        """Wait until a running node has ended by itself; why."""
        async with asyncio.timeout(WAIT_S):
            assert await self.ends.pop(name) == EXIT_DAMAGED
        del self.nodes[name]
        return self.damages.pop(name)

    async def grow(self, name: str, **settings: Any) -> Running:
        """Let one more node join, and wait until it votes."""
        async with self.client("n1") as client:
            token = (await client.create_token()).token
        node = await self.start(name, join_token=token, **settings)
        await until(lambda: node.node_id in node.replica.view().voters)
        return node

    async def stop(self, name: str) -> int:
        self.nodes.pop(name).stop()
        return await self.ends.pop(name)

    def credentials(self, name: str) -> ClientCredentials:
        return ClientCredentials.load(self.root / name / "client")

    def client(self, name: str) -> AsyncClient:
        dial = dial_with(self.credentials(name).channel_credentials())
        return AsyncClient([self.nodes[name].address], dial=dial, timeout_s=10)

    def channel(self, name: str, credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        address = self.nodes[name].address
        return grpc.aio.secure_channel(address, credentials, options=CHANNEL_TLS_OPTIONS)


@contextlib.asynccontextmanager
async def small_mesh(root: Path) -> AsyncIterator[SmallMesh]:
    async with asyncio.TaskGroup() as group:
        mesh = SmallMesh(root, group)
        try:
            yield mesh
        finally:
            for node in mesh.nodes.values():
                node.stop()


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(int(WAIT_S / LOOK_S)):
        if is_so():
            return
        await asyncio.sleep(LOOK_S)
    raise TimeoutError(f"not within {WAIT_S:g} s")

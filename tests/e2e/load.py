"""A steady load on real nodes that remembers what the mesh promised. It runs beside the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress

from mesh import AsyncClient
from mesh.client_errors import MeshError
from tests.e2e.mesh_process import NodeProcess

SUBMITTERS_PER_NODE = 6
SLEEP_MS = 30  # every third task holds its slot for so long, so that some are always under way


class Load:
    """Submits small tasks through these nodes until stopped.

    `acknowledged`: tasks whose submit was answered, with their input. `completed`: tasks whose
    result was handed over, with it. What is in neither was never promised.
    """

    def __init__(self, nodes: Sequence[NodeProcess], *, name: str = "load") -> None:
        self.acknowledged: dict[str, object] = {}
        self.completed: dict[str, object] = {}
        self._name = name
        self._sending_count = 0
        self._nodes = list(nodes)
        self._stopped = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="load")

    def start(self) -> Load:
        self._thread.start()
        return self

    def in_flight_count(self) -> int:
        """Submits without an answer, and tasks acknowledged but not yet seen to end."""
        return self._sending_count + len(self.acknowledged) - len(self.completed)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._all())

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            workers = [
                group.create_task(self._submit_on(node, f"{self._name}.{node.name}.{at}"))
                for node in self._nodes
                for at in range(SUBMITTERS_PER_NODE)
            ]
            await self._stopped.wait()
            for worker in workers:
                worker.cancel()

    async def _submit_on(self, node: NodeProcess, name: str) -> None:
        async with AsyncClient([node.address], profile=node.profile, timeout_s=5) as client:
            for number in range(1_000_000):
                with suppress(MeshError):  # nothing was promised then
                    await self._one(client, f"{name}.{number}", number)

    async def _one(self, client: AsyncClient, name: str, number: int) -> None:
        slow = number % 3 == 0
        given = {"ms": SLEEP_MS} if slow else {"name": name}
        part = {"id": "only", "skill": "sleep" if slow else "echo", "input": given}
        self._sending_count += 1
        try:
            task_id = await client.submit({"name": name, "subtasks": [part]})
        finally:
            self._sending_count -= 1
        self.acknowledged[task_id] = given
        self.completed[task_id] = await client.result(task_id, 30)

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from mesh.aio import AsyncClient
from mesh.calls import dial_with
from tests.client.fake import Node, State, start_node


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def nodes(state: State) -> AsyncIterator[list[Node]]:
    made = [await start_node(state), await start_node(state)]
    yield made
    for node in made:
        await node.stop()


@pytest.fixture
async def client(nodes: list[Node]) -> AsyncIterator[AsyncClient]:
    addresses = [node.address for node in nodes]
    async with AsyncClient(addresses, dial=dial_with(None), timeout_s=10) as made:
        yield made

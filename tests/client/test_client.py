"""The client against real gRPC servers: what survives a lost node, a lost reply, a refusal."""

from __future__ import annotations

import asyncio
import time

import pytest
from quorumesh.v1 import values_pb2

import mesh
from mesh.aio import AsyncClient, _batches
from mesh.calls import Calls, dial_with
from mesh.client import Client
from mesh.client_errors import (
    DeadlineExceeded,
    Refused,
    TaskCancelled,
    TaskFailed,
    Unreachable,
)
from mesh.ids import id_bytes, id_text, uuid7
from tests.client.fake import Event, Node, State

ONE = {"subtasks": [{"id": "a", "skill": "echo", "input": 1}]}
QUICK = {**ONE, "name": "quick"}


async def test_submit_then_result_gives_the_output_as_data(client: AsyncClient) -> None:
    task_id = await client.submit(QUICK)

    assert await client.result(task_id, 5) == {"answer": 42}


async def test_submit_fails_over_to_the_next_address(
    client: AsyncClient, nodes: list[Node], state: State
) -> None:
    await nodes[0].stop()

    task_id = await client.submit(ONE)

    assert id_bytes(task_id) in state.tasks


async def test_a_submit_whose_reply_was_lost_is_sent_again_and_is_one_task(
    client: AsyncClient, nodes: list[Node], state: State
) -> None:
    nodes[0].faults.lose_replies = 1

    await client.submit(ONE)

    assert (state.submit_count, len(state.tasks)) == (2, 1)


async def test_unavailable_everywhere_is_waited_out(
    client: AsyncClient, nodes: list[Node], state: State
) -> None:
    for node in nodes:
        node.faults.unavailable_count = 3

    await client.submit(ONE)

    assert len(state.tasks) == 1


async def test_unreachable_names_every_address_when_the_deadline_has_passed() -> None:
    async with AsyncClient(
        ["127.0.0.1:1", "127.0.0.1:2"], dial=dial_with(None), timeout_s=0.5
    ) as client:
        with pytest.raises(Unreachable) as caught:
            await client.status()

    assert "127.0.0.1:1: connection refused; 127.0.0.1:2" in str(caught.value)


async def test_no_leader_is_unreachable_with_the_time_to_wait(
    client: AsyncClient, nodes: list[Node]
) -> None:
    for node in nodes:
        node.faults.unavailable_count = 1_000

    with pytest.raises(Unreachable) as caught:
        await client.submit(ONE, timeout_s=0.5)

    assert caught.value.retry_ms == 20
    assert "no leader" in str(caught.value)


async def test_a_node_that_hangs_is_given_up_for_another(
    client: AsyncClient, nodes: list[Node], state: State
) -> None:
    nodes[0].faults.hang = True

    await client.submit(ONE, timeout_s=8)

    nodes[0].faults.hang = False
    assert len(state.tasks) == 1


async def test_a_refusal_carries_its_reason_and_is_not_sent_again(
    client: AsyncClient, state: State
) -> None:
    with pytest.raises(Refused) as caught:
        await client.submit([{"id": "?", "skill": "echo"}])

    assert caught.value.reason == "INVALID"
    assert caught.value.message == "the id is not allowed"
    assert state.submit_count == 0


async def test_unknown_task_is_refused_not_found(client: AsyncClient) -> None:
    with pytest.raises(Refused, match="NOT_FOUND"):
        await client.get(id_text(uuid7()))


async def test_a_failed_and_a_cancelled_task_raise_their_own_errors(client: AsyncClient) -> None:
    failed = await client.submit({**ONE, "name": "broken"})
    cancelled = await client.submit(ONE)
    await client.cancel(cancelled)

    with pytest.raises(TaskFailed) as caught:
        await client.result(failed, 5)
    with pytest.raises(TaskCancelled):
        await client.result(cancelled, 5)
    with pytest.raises(Refused, match="FINISHED"):
        await client.cancel(cancelled)

    assert (caught.value.code, caught.value.message) == ("AGENT_ERROR", "it broke")


async def test_result_that_does_not_come_in_time_is_a_deadline(client: AsyncClient) -> None:
    task_id = await client.submit(ONE)

    with pytest.raises(DeadlineExceeded, match="has not ended within"):
        await client.result(task_id, 0.3)


async def test_result_goes_on_when_the_node_it_waits_at_is_lost(
    client: AsyncClient, nodes: list[Node], state: State
) -> None:
    task_id = await client.submit(ONE)
    waiting = asyncio.ensure_future(client.result(task_id, 20))
    await asyncio.sleep(0)

    await nodes[0].stop()
    state.end(id_bytes(task_id), values_pb2.TASK_SUCCEEDED)

    assert await waiting == {"answer": 42}


async def test_watch_goes_on_elsewhere_without_a_gap_or_a_double(
    client: AsyncClient, nodes: list[Node], state: State
) -> None:
    task_id = await client.submit(ONE)
    name = id_bytes(task_id)
    for subtask in "bcd":
        state.put(Event.CLAIMED, name, subtask)
    state.end(name, values_pb2.TASK_SUCCEEDED)
    nodes[0].faults.break_watch_after = 2
    nodes[1].faults.break_watch_after = 3

    seen = [event.revision async for event in client.watch(task_id)]

    assert seen == [1, 2, 3, 4, 5, 6]


async def test_watch_waits_for_a_node_that_has_not_applied_the_submit_yet(
    client: AsyncClient, nodes: list[Node]
) -> None:
    task_id = await client.submit(QUICK)
    nodes[0].faults.late_count = 2

    kinds = [event.kind async for event in client.watch(task_id)]

    assert kinds[-1] == Event.TASK_SUCCEEDED


async def test_watching_an_unknown_task_is_refused(client: AsyncClient, nodes: list[Node]) -> None:
    nodes[0].faults.late_count = 1

    with pytest.raises(Refused, match="NOT_FOUND"):
        [event async for event in client.watch(id_text(uuid7()))]


async def test_list_pages_and_stops_at_the_limit(client: AsyncClient) -> None:
    ids = [await client.submit(ONE) for _ in range(5)]

    everything = [id_text(task.task_id) async for task in client.list()]
    three = [id_text(task.task_id) async for task in client.list(limit=3)]

    assert everything == ids[::-1]
    assert three == ids[::-1][:3]


async def test_story_reads_every_page(client: AsyncClient) -> None:
    task_id = await client.submit(QUICK)

    kinds = [event.kind async for event in client.story(task_id)]

    assert kinds == [Event.SUBMITTED, Event.SUBTASK_SUCCEEDED, Event.TASK_SUCCEEDED]


async def test_submit_many_answers_each_in_order(client: AsyncClient, state: State) -> None:
    tasks = [ONE, {**ONE, "name": "bad"}, ONE]

    answers = [answer async for answer in client.submit_many(tasks)]

    assert [isinstance(answer, Refused) for answer in answers] == [False, True, False]
    assert len(state.tasks) == 2


def test_batches_hold_at_most_a_thousand_subtasks_and_keep_order() -> None:
    big = [{"id": f"s{at}", "skill": "echo"} for at in range(400)]

    sizes = [len(batch) for batch in _batches([big, big, big, big, big])]

    assert sizes == [2, 2, 1]


async def test_members_are_learnt_as_addresses(nodes: list[Node]) -> None:
    async with AsyncClient([nodes[0].address], dial=dial_with(None)) as client:
        await client.members()

        assert client.addresses == tuple(node.address for node in nodes)


async def test_addresses_are_bounded() -> None:
    calls = Calls(["h:1"], dial_with(None))

    calls.learn([f"h:{port}" for port in range(2, 300)])

    assert len(calls.addresses) == 256


async def test_the_synchronous_client_does_the_same(nodes: list[Node]) -> None:
    addresses = [node.address for node in nodes]

    def use() -> tuple[object, list[int], int]:
        with Client(addresses, dial=dial_with(None), timeout_s=10) as client:
            task_id = client.submit(QUICK)
            kinds = [event.kind for event in client.watch(task_id)]
            return client.result(task_id, 5), kinds, len(list(client.list()))

    output, kinds, count = await asyncio.to_thread(use)

    assert output == {"answer": 42}
    assert kinds[-1] == Event.TASK_SUCCEEDED
    assert count == 1


async def test_closing_the_synchronous_client_twice_is_fine(nodes: list[Node]) -> None:
    client = Client([nodes[0].address], dial=dial_with(None))

    await asyncio.to_thread(client.close)
    client.close()


def test_ids_are_version_7_and_carry_the_time() -> None:
    before_ms = time.time_ns() // 1_000_000

    raw = uuid7()

    assert raw[6] >> 4 == 7
    assert raw[8] >> 6 == 2
    assert before_ms <= int.from_bytes(raw[:6], "big") <= time.time_ns() // 1_000_000
    assert id_bytes(id_text(raw)) == raw
    with pytest.raises(ValueError, match="not a task id"):
        id_bytes("nonsense")


def test_the_public_face_is_pinned() -> None:
    assert sorted(mesh.__all__) == [
        *("Agent", "AgentError", "AsyncClient", "BadSpec", "Ballot", "Client", "Context"),
        *("DeadlineExceeded", "Final", "MeshError", "NeedFailure", "NeedOutput", "Refused"),
        *("Spawn", "Subtask", "TaskCancelled", "TaskFailed", "Unreachable", "Vote"),
        *("parse_spec", "spec_of"),
    ]
    assert all(hasattr(mesh, name) for name in mesh.__all__)

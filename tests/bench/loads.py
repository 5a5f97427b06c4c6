"""The loads that the bench puts on a mesh, as task descriptions and as measured runs of them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import TASK_SUCCEEDED, Value

from mesh import AsyncClient
from mesh.client_errors import MeshError, Refused

NO_OP = "echo"
TASK_SUBTASKS = 100  # subtasks of one task of the throughput load
SUBMIT_EVERY_S = 0.02
WAIT_S = 120.0
PENDING_MAX = 2_000  # submits of the fail-over load under way at once


@dataclass(frozen=True, slots=True)
class Flow:
    """One throughput run: what was done, in how long, for how much processor time."""

    subtasks: int
    seconds: float
    cpu_s: float


def flat(count: int, name: str) -> TaskSpec:
    """`count` subtasks that do nothing and need nothing."""
    value = Value(data=b"1")
    parts = [SubtaskSpec(id=f"s{at}", skill=NO_OP, input=value) for at in range(count)]
    return TaskSpec(name=name, subtasks=parts, band=4)


def chain(length: int) -> TaskSpec:
    """Each subtask needs the one before it."""
    value = Value(data=b"1")
    parts = [
        SubtaskSpec(id=f"s{at}", skill=NO_OP, input=value, needs=[f"s{at - 1}"] if at else [])
        for at in range(length)
    ]
    return TaskSpec(name=f"chain of {length}", subtasks=parts, band=4)


def fan(width: int) -> TaskSpec:
    """One subtask, then `width` that need it, then one that needs all of these."""
    value = Value(data=b"1")
    leaves = [f"leaf{at}" for at in range(width)]
    parts = [SubtaskSpec(id="root", skill=NO_OP, input=value)]
    parts += [SubtaskSpec(id=leaf, skill=NO_OP, input=value, needs=["root"]) for leaf in leaves]
    parts.append(SubtaskSpec(id="join", skill=NO_OP, input=value, needs=leaves))
    return TaskSpec(name=f"fan of {width}", subtasks=parts, band=4, output="join")


async def throughput(client: AsyncClient, subtasks: int, cpu_s: Callable[[], float]) -> Flow:
    """Submit that many no-op subtasks and wait until the last of them is acknowledged as done."""
    specs = [flat(TASK_SUBTASKS, f"flow {at}") for at in range(subtasks // TASK_SUBTASKS)]
    cpu_before_s, start = cpu_s(), time.perf_counter()
    waits = []
    async with asyncio.TaskGroup() as group:
        async for submitted in client.submit_many(specs, timeout_s=WAIT_S):
            if isinstance(submitted, Refused):
                raise submitted
            waits.append(group.create_task(_succeeded(client, submitted)))
    seconds = time.perf_counter() - start
    return Flow(len(specs) * TASK_SUBTASKS, seconds, cpu_s() - cpu_before_s)


async def timed(client: AsyncClient, spec: TaskSpec) -> float:
    """Seconds from the submit of a task until its result is here."""
    start = time.perf_counter()
    task_id = await client.submit(spec)
    await _succeeded(client, task_id)
    return time.perf_counter() - start


async def write_gap(client: AsyncClient, kill: Callable[[], None], *, within_s: float) -> float:
    """Kill the leader while a client submits every 20 ms; the longest time without an answer.

    Counted from the last acknowledged submit before the kill to the first after it.
    """
    acknowledged: list[float] = []
    kill_at = 0.0

    async def one(number: int) -> None:
        try:
            await client.submit(flat(1, f"write {number}"), timeout_s=within_s)
        except MeshError:
            return  # it shows as a longer gap
        acknowledged.append(time.perf_counter())

    async with asyncio.TaskGroup() as group:
        writes: list[asyncio.Task[None]] = []
        for number in range(PENDING_MAX):
            writes.append(group.create_task(one(number)))
            await asyncio.sleep(SUBMIT_EVERY_S)
            if kill_at == 0.0 and number == 25:
                kill_at = time.perf_counter()
                await asyncio.to_thread(kill)
            if kill_at and _answered_since(acknowledged, kill_at + 0.1) >= 25:
                break
    before = [at for at in acknowledged if at <= kill_at]
    around = [*before[-1:], *(at for at in acknowledged if at > kill_at)]
    assert len(around) > 1, f"no write was acknowledged within {within_s:g} s of the kill"
    return max(later - earlier for earlier, later in itertools.pairwise(around))


def _answered_since(acknowledged: list[float], moment: float) -> int:
    return sum(at > moment for at in acknowledged)


async def _succeeded(client: AsyncClient, task_id: str) -> None:
    task = await client.ended(task_id, WAIT_S)
    assert task.state == TASK_SUCCEEDED, f"{task.name}: {task.failure.code} {task.failure.message}"

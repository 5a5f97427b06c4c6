"""Sequential clients that submit, read and cancel tasks through all nodes, and record it as it was.

An operation without an answer is recorded as unknown and its process never speaks again; the
client goes on as a new process, and tries again elsewhere as that one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from quorumesh.v1.tasks_pb2 import (
    CancelTaskRequest,
    GetTaskReply,
    GetTaskRequest,
    SubmitRequest,
    TaskSpec,
)
from quorumesh.v1.tasks_pb2_grpc import TasksStub
from quorumesh.v1.values_pb2 import (
    TASK_CANCELLED,
    TASK_FAILED,
    TASK_RUNNING,
    TASK_SUCCEEDED,
    TaskState,
)

from mesh.ids import id_text
from mesh.profile import load_profile
from mesh.specs import spec_of
from tests.torture.history import History, Operation, now_ns

CALL_S = 2.0
TRIES = 4
PAUSE_S = (0.05, 0.25)
RETRY_S = (0.1, 0.3)
OPERATIONS_PER_TASK_MAX = 16
TASKS_REMEMBERED_MAX = 48
SUBTASK = "only"
RECORDED_SKILL = "recorded"
CHANNEL_OPTIONS = (
    ("grpc.ssl_target_name_override", "quorumesh"),
    ("grpc.default_authority", "quorumesh"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 300),
    ("grpc.use_local_subchannel_pool", 1),
)
STATES: dict[TaskState.ValueType, str] = {
    TASK_RUNNING: "running",
    TASK_SUCCEEDED: "succeeded",
    TASK_FAILED: "failed",
    TASK_CANCELLED: "cancelled",
}
REFUSED = frozenset({"ALREADY_EXISTS", "FINISHED", "NOT_FOUND"})
# The API promises that nothing was written; the checker holds it to that.
NOTHING_DONE = frozenset({"UNAVAILABLE", "OVERLOADED", "RESOURCE_EXHAUSTED"})

# What gRPC says of a call that no connection ever carried.
NO_CONNECTION = "failed to connect to all addresses"


@dataclass(slots=True, eq=False)
class Task:
    """One task as its clients know it."""

    task_id: bytes
    spec: TaskSpec
    output: bytes | None  # what it must give, where that is known from its input
    operation_count: int = 0

    @property
    def key(self) -> str:
        return f"task:{id_text(self.task_id)}"


@dataclass(slots=True)
class Promises:
    """What the mesh has acknowledged and is to be held to at the end."""

    submitted: dict[bytes, Task] = field(default_factory=dict)
    cancelled: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Target:
    """A node as clients see it."""

    name: str
    address: str


class Clients:
    """Keeps a number of clients busy until cancelled."""

    def __init__(self, targets: Sequence[Target], profile: Path, history: History) -> None:
        self.promises = Promises()
        self._targets = list(targets)
        self._profile = profile
        self._history = history
        self._recent: deque[Task] = deque(maxlen=TASKS_REMEMBERED_MAX)
        self._stubs: dict[str, TasksStub] = {}

    async def run(self, *, client_count: int, seed: int, stop: asyncio.Event) -> None:
        """Let them work until `stop`; each ends the operation that it is about."""
        credentials = load_profile(self._profile).channel_credentials()
        channels = []
        for target in self._targets:
            channel = grpc.aio.secure_channel(target.address, credentials, CHANNEL_OPTIONS)
            channels.append(channel)
            self._stubs[target.name] = TasksStub(channel)
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(client_count):
                    rng = random.Random(f"{seed}.{number}")
                    home = self._targets[number % len(self._targets)]
                    group.create_task(_Client(self, home.name, rng).run(stop))
        finally:
            for channel in channels:
                await channel.close()

    def new_task(self, rng: random.Random) -> Task:
        task = make_task(rng)
        self._recent.append(task)
        return task

    def known_task(self, rng: random.Random) -> Task | None:
        some = [one for one in self._recent if one.operation_count < OPERATIONS_PER_TASK_MAX]
        return rng.choice(some) if some else None

    def elsewhere(self, name: str, rng: random.Random) -> str:
        return rng.choice([target.name for target in self._targets if target.name != name])

    def stub(self, name: str) -> TasksStub:
        return self._stubs[name]

    def note(self, operation: Operation) -> None:
        self._history.note(operation)

    def new_process(self) -> int:
        return self._history.new_process()


class _Client:
    def __init__(self, clients: Clients, home: str, rng: random.Random) -> None:
        self._clients = clients
        self._home = home
        self._rng = rng
        self._process = clients.new_process()

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._act(stop)
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))

    async def _act(self, stop: asyncio.Event) -> None:
        choice = self._rng.random()
        known = None if choice < 0.45 else self._clients.known_task(self._rng)
        if known is None:
            task = self._clients.new_task(self._rng)
            await self._insist(task, self._submit, stop)
        elif choice < 0.52:
            await self._insist(known, self._submit, stop)
        elif choice < 0.54:
            # Another task under a name that is taken.
            other = Task(known.task_id, make_task(self._rng).spec, None)
            known.operation_count += 1
            await self._submit(other, self._home)
        elif choice < 0.62:
            await self._insist(known, self._cancel, stop)
        else:
            await self._insist(known, self._get, stop)

    async def _insist(
        self, task: Task, act: Callable[[Task, str], Awaitable[bool]], stop: asyncio.Event
    ) -> None:
        """Do it, again and elsewhere while there is no answer."""
        node = self._home
        for _ in range(TRIES):
            task.operation_count += 1
            if await act(task, node) or stop.is_set():
                return
            node = self._clients.elsewhere(node, self._rng)
            await asyncio.sleep(self._rng.uniform(*RETRY_S))

    async def _submit(self, task: Task, node: str) -> bool:
        request = SubmitRequest(task_id=task.task_id, spec=task.spec)

        async def call() -> dict[str, object]:
            await self._clients.stub(node).Submit(request, timeout=CALL_S)
            self._clients.promises.submitted.setdefault(task.task_id, task)
            return {}

        spec = digest_of(task.spec.SerializeToString(deterministic=True))
        return await self._record("submit", task, node, {"spec": spec}, call)

    async def _cancel(self, task: Task, node: str) -> bool:
        async def call() -> dict[str, object]:
            await self._clients.stub(node).Cancel(
                CancelTaskRequest(task_id=task.task_id), timeout=CALL_S
            )
            self._clients.promises.cancelled.add(task.task_id)
            return {}

        return await self._record("cancel", task, node, {}, call)

    async def _get(self, task: Task, node: str) -> bool:
        request = GetTaskRequest(task_id=task.task_id, linearizable=True, with_outputs=True)

        async def call() -> dict[str, object]:
            try:
                reply = await self._clients.stub(node).Get(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                if reason_of(error) == "NOT_FOUND":
                    return {"state": "absent", "output": None}
                raise
            return seen(reply)

        return await self._record("get", task, node, {}, call)

    async def _record(
        self,
        op: str,
        task: Task,
        node: str,
        args: Mapping[str, object],
        call: Callable[[], Awaitable[dict[str, object]]],
    ) -> bool:
        """Make the call and write it down. Whether it was answered for good.

        A call for which there was not even a connection was never made: it is not written down.
        """
        call_ns, return_ns = now_ns(), None
        result, value = "ok", {}
        was_made = True
        try:
            value = await call()
            return_ns = now_ns()
        except grpc.aio.AioRpcError as error:
            reason = reason_of(error)
            if reason in REFUSED | NOTHING_DONE:
                result, value, return_ns = "refused", {"reason": reason}, now_ns()
            else:
                result, value = "unknown", {"code": error.code().name, "reason": reason}
                was_made = NO_CONNECTION not in (error.details() or "")
        except asyncio.CancelledError:
            result = "unknown"
            raise
        finally:
            if was_made:
                whom = (self._process, node, op, task.key, args)
                self._clients.note(Operation(*whom, result, value, call_ns, return_ns))
            if result == "unknown" and was_made:
                self._process = self._clients.new_process()
        return result == "ok" or value.get("reason") in REFUSED


def make_task(rng: random.Random) -> Task:
    """A small task: its input comes back, or it sleeps a little, or a recording worker does it."""
    choice = rng.random()
    if choice < 0.5:
        skill, given = "echo", {"word": f"{rng.getrandbits(64):016x}"}
    elif choice < 0.65:
        skill, given = "sleep", {"ms": rng.randrange(20, 400)}
    else:
        skill, given = RECORDED_SKILL, {"word": f"{rng.getrandbits(64):016x}"}
    spec = spec_of({"name": skill, "subtasks": [{"id": SUBTASK, "skill": skill, "input": given}]})
    output = spec.subtasks[0].input.data if skill == "echo" else None
    return Task(uuid7_of(rng), spec, output)


def uuid7_of(rng: random.Random) -> bytes:
    """A task's name that depends on the seed alone."""
    raw = bytearray(rng.randbytes(16))
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return bytes(raw)


def seen(reply: GetTaskReply) -> dict[str, object]:
    state = STATES[reply.task.state]
    output = digest_of(reply.task.output.data) if state == "succeeded" else None
    return {"state": state, "output": output}


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason that the node gives, as its API promises; empty: it gave none."""
    status = rpc_status.from_call(error)
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason)
    return ""


def output_of(word: Mapping[str, object]) -> bytes:
    return json.dumps(word, sort_keys=True, separators=(",", ":")).encode()

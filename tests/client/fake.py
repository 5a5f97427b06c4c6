"""An in-memory mesh behind real gRPC servers: several addresses, one state, faults on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from quorumesh.v1 import (
    locks_pb2,
    locks_pb2_grpc,
    mesh_pb2,
    mesh_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
    values_pb2,
)

from mesh.client_errors import DOMAIN

Event = tasks_pb2.TaskEvent


@dataclass
class State:
    """What all addresses of the fake mesh share."""

    tasks: dict[bytes, tasks_pb2.TaskInfo] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    submit_count: int = 0
    addresses: list[str] = field(default_factory=list)
    leaders: dict[str, bool] = field(default_factory=dict)

    def put(self, kind: Event.Kind.ValueType, task_id: bytes, subtask: str = "") -> None:
        revision = len(self.events) + 1
        self.events.append(Event(kind=kind, task_id=task_id, subtask=subtask, revision=revision))

    def end(self, task_id: bytes, state: values_pb2.TaskState.ValueType) -> None:
        task = self.tasks[task_id]
        task.state = state
        if state == values_pb2.TASK_SUCCEEDED:
            task.output.data = b'{"answer": 42}'
            self.put(Event.SUBTASK_SUCCEEDED, task_id, "a")
            self.put(Event.TASK_SUCCEEDED, task_id)
        elif state == values_pb2.TASK_FAILED:
            task.failure.code, task.failure.message = "AGENT_ERROR", "it broke"
            self.put(Event.TASK_FAILED, task_id)
        else:
            self.put(Event.TASK_CANCELLED, task_id)


@dataclass
class Faults:
    """What one address does wrong."""

    unavailable_count: int = 0  # calls still to be answered UNAVAILABLE
    lose_replies: int = 0  # calls still to be carried out, then answered UNAVAILABLE
    break_watch_after: int = 0  # events after which a watch breaks; 0: never
    late_count: int = 0  # watches that do not know the task yet
    hang: bool = False


class Tasks(tasks_pb2_grpc.TasksServicer):
    def __init__(self, state: State, faults: Faults) -> None:
        self.state = state
        self.faults = faults

    async def Submit(self, request, context):
        await self._fault(context)
        if not request.spec.subtasks[0].id.isalnum():
            await refuse(context, code_pb2.INVALID_ARGUMENT, "INVALID", "the id is not allowed")
        self._keep(request)
        await self._lose(context)
        return tasks_pb2.SubmitReply(task_id=request.task_id, revision=len(self.state.events))

    async def SubmitMany(self, request, context):
        await self._fault(context)
        results = []
        for one in request.submits:
            if one.spec.name == "bad":
                results.append(
                    tasks_pb2.SubmitResult(
                        task_id=one.task_id, reason=values_pb2.INVALID, message="a cycle"
                    )
                )
            else:
                self._keep(one)
                results.append(tasks_pb2.SubmitResult(task_id=one.task_id, revision=1))
        return tasks_pb2.SubmitManyReply(results=results)

    async def Get(self, request, context):
        await self._fault(context)
        return tasks_pb2.GetTaskReply(task=await self._task(request.task_id, context))

    async def List(self, request, context):
        await self._fault(context)
        rows = list(reversed(self.state.tasks.values()))
        at = int(request.page_token or b"0")
        size = min(request.page_size, 2)
        more = str(at + size).encode() if at + size < len(rows) else b""
        return tasks_pb2.ListTasksReply(tasks=rows[at : at + size], next_page_token=more)

    async def Watch(self, request, context) -> AsyncIterator[tasks_pb2.WatchTaskReply]:
        at, sent = request.after_revision, 0
        if self.faults.late_count:
            self.faults.late_count -= 1
            await refuse(context, code_pb2.NOT_FOUND, "NOT_FOUND", "no such task")
        while True:
            await self._fault(context)
            for event in self.state.events[at:]:
                at = event.revision
                if request.task_id in (b"", event.task_id):
                    yield tasks_pb2.WatchTaskReply(events=[event], revision=event.revision)
                    sent += 1
                    if sent == self.faults.break_watch_after:
                        await context.abort(grpc.StatusCode.UNAVAILABLE, "going down")
            await asyncio.sleep(0.01)

    async def Result(self, request, context):
        await self._fault(context)
        task = await self._task(request.task_id, context)
        while task.state == values_pb2.TASK_RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # a poll is enough for a fake
        return tasks_pb2.ResultReply(task=task)

    async def Cancel(self, request, context):
        task = await self._task(request.task_id, context)
        if task.state != values_pb2.TASK_RUNNING:
            await refuse(context, code_pb2.FAILED_PRECONDITION, "FINISHED", "it has ended")
        self.state.end(request.task_id, values_pb2.TASK_CANCELLED)
        return tasks_pb2.CancelTaskReply(revision=1)

    async def Story(self, request, context):
        events = [one for one in self.state.events if one.task_id == request.task_id]
        page = [one for one in events if one.revision > request.after_revision][:1]
        more = page[-1].revision if page and page[-1].revision < events[-1].revision else 0
        return tasks_pb2.StoryReply(events=page, next_after_revision=more)

    def _keep(self, request) -> None:
        self.state.submit_count += 1
        if request.task_id in self.state.tasks:
            return
        self.state.tasks[request.task_id] = tasks_pb2.TaskInfo(
            task_id=request.task_id,
            name=request.spec.name,
            state=values_pb2.TASK_RUNNING,
            subtask_count=len(request.spec.subtasks),
            subtasks=[
                tasks_pb2.SubtaskInfo(id=one.id, skill=one.skill, state=values_pb2.READY)
                for one in request.spec.subtasks
            ],
        )
        self.state.put(Event.SUBMITTED, request.task_id)
        if request.spec.name == "quick":
            self.state.end(request.task_id, values_pb2.TASK_SUCCEEDED)
        elif request.spec.name == "broken":
            self.state.end(request.task_id, values_pb2.TASK_FAILED)

    async def _task(self, task_id, context):
        if task_id not in self.state.tasks:
            await refuse(context, code_pb2.NOT_FOUND, "NOT_FOUND", "no such task")
        return self.state.tasks[task_id]

    async def _fault(self, context) -> None:
        while self.faults.hang:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        if self.faults.unavailable_count:
            self.faults.unavailable_count -= 1
            await refuse(context, code_pb2.UNAVAILABLE, "", "no leader", retry_ms=20)

    async def _lose(self, context) -> None:
        if self.faults.lose_replies:
            self.faults.lose_replies -= 1
            await refuse(context, code_pb2.UNAVAILABLE, "", "outcome unknown", retry_ms=1)


class Mesh(mesh_pb2_grpc.MeshServicer):
    def __init__(self, state: State, name: str) -> None:
        self.state = state
        self.name = name

    async def Status(self, request, context):
        return mesh_pb2.StatusReply(
            mesh_id="m", node_id=self.name, name=self.name, role="leader", leader_id="n0",
            writable=True, version="0.1.0", revision=7, digest=b"\x01\x02",
            members=self._members(),
            workers=[mesh_pb2.WorkerStatus(name="w0", node_id=self.name, slots=4, open=True)],
        )  # fmt: skip

    async def Members(self, request, context):
        return mesh_pb2.MembersReply(members=self._members())

    async def CreateToken(self, request, context):
        return mesh_pb2.CreateTokenReply(token="qm-token", expires_wall_ms=request.ttl_ms)

    async def Digest(self, request, context):
        return mesh_pb2.DigestReply(revision=7, chain=b"c", full=b"f")

    def _members(self):
        return [
            mesh_pb2.Member(
                node_id=f"n{at}", name=f"n{at}", address=address, voter=True, alive=True
            )
            for at, address in enumerate(self.state.addresses)
        ]


class Locks(locks_pb2_grpc.LocksServicer):
    async def List(self, request, context):
        lock = locks_pb2.LockInfo(name="t/a", holder="n0/w0", fence=5, lease_ms_left=900)
        return locks_pb2.ListLocksReply(locks=[lock])


@dataclass
class Node:
    """One address of the fake mesh."""

    server: grpc.aio.Server
    address: str
    faults: Faults

    async def stop(self) -> None:
        await self.server.stop(0)


async def start_node(state: State) -> Node:
    faults = Faults()
    server = grpc.aio.server()
    tasks_pb2_grpc.add_TasksServicer_to_server(Tasks(state, faults), server)
    mesh_pb2_grpc.add_MeshServicer_to_server(Mesh(state, f"n{len(state.addresses)}"), server)
    locks_pb2_grpc.add_LocksServicer_to_server(Locks(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    state.addresses.append(f"127.0.0.1:{port}")
    return Node(server, f"127.0.0.1:{port}", faults)


async def refuse(context, code, reason, message, *, retry_ms=None) -> None:
    """End the call with a `google.rpc.Status` as nodes do."""
    status = status_pb2.Status(code=code, message=message)
    details = []
    if reason:
        details.append(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if retry_ms is not None:
        delay = duration_pb2.Duration(nanos=retry_ms * 1_000_000)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))

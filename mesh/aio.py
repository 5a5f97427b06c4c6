"""The asynchronous client of a mesh. Any node will do: it fails over to others, and sends again
what may have been lost. Replies are the messages of `quorumesh.v1`, as they came.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from types import TracebackType
from typing import Self, TypeAlias, TypeVar

import grpc
from quorumesh.v1 import locks_pb2, mesh_pb2, tasks_pb2, values_pb2

from mesh.calls import Calls, Dial, Services, dial_with
from mesh.client_errors import (
    DeadlineExceeded,
    MeshError,
    Refused,
    TaskCancelled,
    TaskFailed,
    Unreachable,
)
from mesh.ids import id_bytes, id_text, uuid7
from mesh.profile import load_profile
from mesh.specs import data_of, spec_of

TIMEOUT_S = 15.0  # of calls that do not wait for work
RESULT_TIMEOUT_S = 3_600.0
RESULT_TRY_S = 10.0  # how long one node is asked to hold a call for a result
BATCH_SUBTASKS_MAX = 1_000
BATCH_BYTES_MAX = 2 * 1024 * 1024
PAGE_ROWS = 500
PEERS_TIMEOUT_S = 2.0
LATE_NODES_MAX = 8

Task: TypeAlias = tasks_pb2.TaskSpec | Mapping[str, object] | Sequence[object]
_Request = TypeVar("_Request")
_Reply = TypeVar("_Reply")
_ENDED = (values_pb2.TASK_SUCCEEDED, values_pb2.TASK_FAILED, values_pb2.TASK_CANCELLED)
_LAST_EVENTS = (
    tasks_pb2.TaskEvent.TASK_SUCCEEDED,
    tasks_pb2.TaskEvent.TASK_FAILED,
    tasks_pb2.TaskEvent.TASK_CANCELLED,
)


class AsyncClient:
    """A client of one mesh, for one event loop.

    Without arguments it uses the profile of this host (see `mesh.profile`). With `addresses` it
    dials those, with `credentials` from `grpc.ssl_channel_credentials`; `dial` replaces the way a
    channel is opened. Every method raises only `MeshError`s, or `ValueError` for bad arguments.
    """

    def __init__(
        self,
        addresses: Sequence[str] | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        profile: str | os.PathLike[str] | None = None,
        dial: Dial | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.timeout_s = timeout_s
        if dial is None and credentials is None:
            found = load_profile(profile)
            addresses = addresses or found.addresses
            credentials = found.channel_credentials()
        self._calls = Calls(list(addresses or ()), dial or dial_with(credentials))
        self._peers_known = False
        self._written = 0  # the revision of the last own write: any node shows at least that

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Calls that still run are cancelled."""
        await self._calls.close()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where it may send a call: those given, then those learnt from the members."""
        return self._calls.addresses

    # Tasks

    async def submit(
        self, task: Task, *, task_id: str | None = None, timeout_s: float | None = None
    ) -> str:
        """Submit a task and return its id, once the ledger holds it.

        Sending it again under the same `task_id` is safe: it is the same task. Refused: INVALID
        (a cycle, an unknown need …), VALUE_TOO_LARGE, OVERLOADED, ALREADY_EXISTS (the id is
        another task's).
        """
        name = id_bytes(task_id) if task_id else uuid7()
        request = tasks_pb2.SubmitRequest(task_id=name, spec=spec_of(task))
        reply = await self._unary(lambda at: at.tasks.Submit, request, timeout_s)
        self._written = max(self._written, reply.revision)
        return id_text(name)

    async def submit_many(
        self, tasks: Iterable[Task], *, timeout_s: float | None = None
    ) -> AsyncIterator[str | Refused]:
        """Submit tasks in batches, and yield for each, in order, its id or why it was refused."""
        for batch in _batches(tasks):
            request = tasks_pb2.SubmitManyRequest(submits=batch)
            reply = await self._unary(lambda at: at.tasks.SubmitMany, request, timeout_s)
            for result in reply.results:
                self._written = max(self._written, result.revision)
                if result.reason:
                    yield Refused(values_pb2.Reason.Name(result.reason), result.message)
                else:
                    yield id_text(result.task_id)

    async def get(
        self,
        task_id: str,
        *,
        subtasks: bool = True,
        outputs: bool = False,
        linearizable: bool = False,
    ) -> tasks_pb2.TaskInfo:
        """Return a task as the answering node knows it. Refused: NOT_FOUND."""
        request = tasks_pb2.GetTaskRequest(
            task_id=id_bytes(task_id),
            with_subtasks=subtasks,
            with_outputs=outputs,
            linearizable=linearizable,
            at_least_revision=self._written,
        )
        reply = await self._unary(lambda at: at.tasks.Get, request)
        return reply.task

    async def list(
        self, *, state: str = "", limit: int | None = None
    ) -> AsyncIterator[tasks_pb2.TaskInfo]:
        """Yield tasks, newest first; `state` is running, succeeded, failed or cancelled."""
        wanted = _state_of(state)
        token, left = b"", limit
        while left is None or left > 0:
            request = tasks_pb2.ListTasksRequest(
                state=wanted,
                page_token=token,
                page_size=min(PAGE_ROWS, left or PAGE_ROWS),
                at_least_revision=self._written,
            )
            reply = await self._unary(lambda at: at.tasks.List, request)
            for task in reply.tasks[:left]:
                yield task
            left = None if left is None else left - len(reply.tasks)
            token = reply.next_page_token
            if not token:
                return

    async def watch(
        self,
        task_id: str | None = None,
        *,
        after_revision: int = 0,
        timeout_s: float | None = None,
    ) -> AsyncIterator[tasks_pb2.TaskEvent]:
        """Yield the events of a task until it has ended, or those of all tasks without end.

        Goes on from the last revision after fail-over: nothing is missed or given twice, except
        PROGRESS, which may be lost. DeadlineExceeded after `timeout_s`; None: never.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        name = id_bytes(task_id) if task_id else b""
        seen = after_revision

        def start(at: Services) -> AsyncIterator[tasks_pb2.WatchTaskReply]:
            request = tasks_pb2.WatchTaskRequest(task_id=name, after_revision=seen)
            left_s = None if deadline is None else deadline - loop.time()
            if left_s is not None and left_s <= 0:
                raise DeadlineExceeded(f"the watch was to end within {timeout_s:g} s")
            call = at.tasks.Watch(request, timeout=left_s)
            return call.__aiter__()

        await self._learn_peers()
        for late in range(LATE_NODES_MAX + 1):
            try:
                async for reply in self._calls.stream(start, patience_s=self.timeout_s):
                    for event in reply.events:
                        yield event
                        if name and event.kind in _LAST_EVENTS:
                            return
                    seen = max(seen, reply.revision)
                return
            except Refused as refused:
                # The node failed over to may not have applied the submit yet: wait until it has.
                if not (task_id and refused.reason == "NOT_FOUND") or late == LATE_NODES_MAX:
                    raise
                await self.get(task_id, subtasks=False)

    async def result(self, task_id: str, timeout_s: float = RESULT_TIMEOUT_S) -> object:
        """Wait until the task has ended, and return its output as Python data.

        Raises TaskFailed, TaskCancelled, or DeadlineExceeded when it has not ended in time.
        """
        task = await self.ended(task_id, timeout_s)
        match task.state:
            case values_pb2.TASK_FAILED:
                raise TaskFailed(task_id, task.failure.code, task.failure.message)
            case values_pb2.TASK_CANCELLED:
                raise TaskCancelled(task_id)
        return data_of(task.output)

    async def ended(self, task_id: str, timeout_s: float = RESULT_TIMEOUT_S) -> tasks_pb2.TaskInfo:
        """Wait until the task has ended in whatever way, and return it with its output."""
        loop = asyncio.get_running_loop()
        heard, deadline = loop.time(), loop.time() + timeout_s
        request = tasks_pb2.ResultRequest(
            task_id=id_bytes(task_id), at_least_revision=self._written
        )
        await self._learn_peers()
        while True:
            try:
                reply = await self._calls.unary(
                    lambda at: at.tasks.Result,
                    request,
                    timeout_s=min(max(deadline - loop.time(), 0.001), RESULT_TRY_S),
                    try_s=RESULT_TRY_S,
                )
                heard = loop.time()
                if reply.task.state in _ENDED:
                    return reply.task
            except DeadlineExceeded:
                heard = loop.time()
            except Unreachable:
                if loop.time() - heard > self.timeout_s:
                    raise
            if loop.time() >= deadline - 0.01:
                raise DeadlineExceeded(f"task {task_id} has not ended within {timeout_s:g} s")

    async def cancel(self, task_id: str) -> None:
        """Cancel a task. Refused: NOT_FOUND, FINISHED."""
        request = tasks_pb2.CancelTaskRequest(task_id=id_bytes(task_id))
        reply = await self._unary(lambda at: at.tasks.Cancel, request)
        self._written = max(self._written, reply.revision)

    async def story(self, task_id: str) -> AsyncIterator[tasks_pb2.TaskEvent]:
        """Yield everything that happened to a task so far, in order, from the ledger."""
        after = 0
        while True:
            request = tasks_pb2.StoryRequest(
                task_id=id_bytes(task_id), after_revision=after, page_size=PAGE_ROWS
            )
            reply = await self._unary(lambda at: at.tasks.Story, request)
            for event in reply.events:
                yield event
            after = reply.next_after_revision
            if not after:
                return

    # The mesh

    async def status(self) -> mesh_pb2.StatusReply:
        """Return how the answering node sees the mesh."""
        return await self._unary(lambda at: at.mesh.Status, mesh_pb2.StatusRequest())

    async def members(self, *, timeout_s: float | None = None) -> Sequence[mesh_pb2.Member]:
        """Return all nodes of the mesh, ordered by id."""
        reply = await self._unary(lambda at: at.mesh.Members, mesh_pb2.MembersRequest(), timeout_s)
        self._calls.learn([member.address for member in reply.members])
        return tuple(reply.members)

    async def locks(self) -> AsyncIterator[locks_pb2.LockInfo]:
        """Yield every claim that is held now: what, by whom, its fence, its lease."""
        token = b""
        while True:
            request = locks_pb2.ListLocksRequest(page_size=PAGE_ROWS, page_token=token)
            reply = await self._unary(lambda at: at.locks.List, request)
            for lock in reply.locks:
                yield lock
            token = reply.next_page_token
            if not token:
                return

    async def create_token(self, ttl_ms: int = 0) -> mesh_pb2.CreateTokenReply:
        """Make a one-use token with which one more node may join. 0 ms means 1 h, the most."""
        request = mesh_pb2.CreateTokenRequest(ttl_ms=ttl_ms)
        return await self._unary(lambda at: at.mesh.CreateToken, request)

    async def digest(self, at_least_revision: int = 0) -> mesh_pb2.DigestReply:
        """Return the answering node's digests of its ledger."""
        request = mesh_pb2.DigestRequest(at_least_revision=at_least_revision)
        return await self._unary(lambda at: at.mesh.Digest, request)

    # Private

    async def _unary(
        self,
        method: Callable[[Services], grpc.aio.UnaryUnaryMultiCallable[_Request, _Reply]],
        request: _Request,
        timeout_s: float | None = None,
    ) -> _Reply:
        return await self._calls.unary(method, request, timeout_s=timeout_s or self.timeout_s)

    async def _learn_peers(self) -> None:
        """Before the first long call: know where to go when the node that holds it dies."""
        if not self._peers_known:
            self._peers_known = True
            with contextlib.suppress(MeshError):
                await self.members(timeout_s=PEERS_TIMEOUT_S)


def _batches(tasks: Iterable[Task]) -> Iterator[Sequence[tasks_pb2.SubmitRequest]]:
    """Cut into what one request may carry. A task too large for it goes alone."""
    batch: list[tasks_pb2.SubmitRequest] = []
    subtask_count = byte_count = 0
    for task in tasks:
        request = tasks_pb2.SubmitRequest(task_id=uuid7(), spec=spec_of(task))
        size = request.ByteSize()
        more = subtask_count + len(request.spec.subtasks)
        if batch and (more > BATCH_SUBTASKS_MAX or byte_count + size > BATCH_BYTES_MAX):
            yield batch
            batch, subtask_count, byte_count = [], 0, 0
        batch.append(request)
        subtask_count += len(request.spec.subtasks)
        byte_count += size
    if batch:
        yield batch


def _state_of(name: str) -> values_pb2.TaskState.ValueType:
    if not name:
        return values_pb2.TASK_STATE_UNSPECIFIED
    full = name.upper() if name.upper().startswith("TASK_") else f"TASK_{name.upper()}"
    if full not in values_pb2.TaskState.keys():  # noqa: SIM118  (not a mapping)
        raise ValueError(f"{name!r} is no state: running, succeeded, failed or cancelled")
    return values_pb2.TaskState.Value(full)

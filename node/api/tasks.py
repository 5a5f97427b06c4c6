"""The gRPC service `Tasks`: requests become commands, ledger rows replies, events streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from quorumesh.v1.ledger_pb2 import Cancel, Command, Submit
from quorumesh.v1.tasks_pb2 import (
    CancelTaskReply,
    CancelTaskRequest,
    GetTaskReply,
    GetTaskRequest,
    ListTasksReply,
    ListTasksRequest,
    ResultReply,
    ResultRequest,
    StoryReply,
    StoryRequest,
    SubmitManyReply,
    SubmitManyRequest,
    SubmitReply,
    SubmitRequest,
    SubmitResult,
    TaskEvent,
    TaskInfo,
    WatchTaskReply,
    WatchTaskRequest,
)
from quorumesh.v1.tasks_pb2_grpc import TasksServicer
from quorumesh.v1.values_pb2 import TASK_RUNNING, Reason

from consensus.ledger import OutOfRange, Reader
from node.api.errors import Refusal
from node.api.feed import LAST_EVENTS, Feed, Watcher
from node.api.guard import caller
from node.api.proposing import Context, Proposer, ReplicaPort, time_left_ms
from node.api.reading import SUBTASKS_INLINE_MAX, LongReads

TASK_ID_BYTES_MAX = 64
SUBTASKS_PER_REQUEST_MAX = 1_000
SUBMITS_PER_REQUEST_MAX = 1_000
SPEC_BYTES_MAX = 850_000  # one submit has to fit into one log entry
PAGE_ROWS_DEFAULT = 100
PAGE_ROWS_MAX = 1_000
READ_REVISIONS = 64  # read from the ledger at once while a watcher catches up
READ_EVENTS = 256  # likewise, of one task
TASK_BYTES_MAX = 63 << 20  # of one reply, all outputs included
SUBTASKS_PER_PART = 128

Whole = TypeVar("Whole", GetTaskReply, ResultReply)
RESULT_MS_DEFAULT = 60_000


class TasksService(TasksServicer):
    """Serves `Tasks` on any node. Reads are local and carry their revision and age."""

    def __init__(
        self, replica: ReplicaPort, proposer: Proposer, feed: Feed, reads: LongReads
    ) -> None:
        self._replica = replica
        self._proposer = proposer
        self._feed = feed
        self._reads = reads

    async def Submit(self, request: SubmitRequest, context: Context) -> SubmitReply:
        """Submit a task. Sending the same again is safe, also after an unknown outcome."""
        command = _submit(request)
        outcome = await self._proposer.propose_one(command, context)
        return SubmitReply(task_id=request.task_id, revision=outcome.revision)

    async def SubmitMany(self, request: SubmitManyRequest, context: Context) -> SubmitManyReply:
        """Submit tasks together, each with a result of its own, in the order asked."""
        _check_batch(request.submits)
        results: list[SubmitResult] = []
        commands: list[Command] = []
        waiting: list[SubmitResult] = []
        for one in request.submits:
            result = SubmitResult(task_id=one.task_id)
            results.append(result)
            try:
                commands.append(_submit(one))
                waiting.append(result)
            except Refusal as refusal:
                result.reason = Reason.Value(refusal.reason)
                result.message = refusal.message
        if commands:
            outcomes = await self._proposer.propose(commands, context)
            for result, outcome in zip(waiting, outcomes, strict=True):
                result.revision = outcome.revision
                result.reason = outcome.reason
                result.message = outcome.message
        return SubmitManyReply(results=results)

    async def Get(self, request: GetTaskRequest, context: Context) -> GetTaskReply:
        """One task as this node knows it, at least as of the revision asked for."""
        await self._proposer.catch_up(
            context,
            at_least_revision=request.at_least_revision,
            linearizable=request.linearizable,
        )
        reply = GetTaskReply(age_ms=self._replica.view().leader_age_ms)
        return await self._whole(
            request.task_id,
            reply,
            subtasks=request.with_subtasks,
            outputs=request.with_outputs,
        )

    async def List(self, request: ListTasksRequest, context: Context) -> ListTasksReply:
        """A page of tasks, newest first."""
        await self._proposer.catch_up(context, at_least_revision=request.at_least_revision)
        rows = page_rows(request.page_size)

        def page(reader: Reader) -> ListTasksReply:
            tasks, token = reader.list_tasks(
                state=request.state, page_size=rows, page_token=request.page_token
            )
            return ListTasksReply(tasks=tasks, next_page_token=token, revision=reader.revision())

        with known_token():
            reply = await self._reads.ask(page)
        reply.age_ms = self._replica.view().leader_age_ms
        return reply

    async def Watch(
        self, request: WatchTaskRequest, context: Context
    ) -> AsyncIterator[WatchTaskReply]:
        """Events after a revision, then those to come; of one task until it has ended.

        OUT_OF_RANGE when events after the revision are no longer kept.
        """
        with self._feed.watching(request.task_id) as watcher:
            after = request.after_revision
            if request.task_id:
                self._task(request.task_id)
            elif not after:
                after = self._replica.view().revision
            async for reply in self._follow(watcher, after):
                yield reply

    async def _follow(self, watcher: Watcher, after: int) -> AsyncIterator[WatchTaskReply]:
        while True:
            if watcher.is_behind:
                # From here the watcher collects what is new, so that nothing falls in between.
                watcher.catch_up()
                while True:
                    page = await self._reread(watcher.task_id, after)
                    after = max(after, page.upto)
                    if page.events:
                        yield WatchTaskReply(events=page.events, revision=after)
                    if page.is_over:
                        return
                    if page.is_last:
                        break
            for batch in watcher.take():
                if batch.revision and batch.revision <= after:
                    continue
                after = max(after, batch.revision)
                yield WatchTaskReply(events=batch.events, revision=after)
                if watcher.task_id and any(event.kind in LAST_EVENTS for event in batch.events):
                    return
            await watcher.wait()

    async def _reread(self, task_id: bytes, after: int) -> _Page:
        try:
            if task_id:
                return await self._reads.ask(lambda reader: _task_page(reader, task_id, after))
            return await self._reads.ask(lambda reader: _mesh_page(reader, after))
        except OutOfRange as error:
            raise Refusal("OUT_OF_RANGE", f"{error}; watch from there") from error

    async def Result(self, request: ResultRequest, context: Context) -> ResultReply:
        """Wait until the task has ended, and give it with its output."""
        await self._proposer.catch_up(context, at_least_revision=request.at_least_revision)
        timeout_ms = time_left_ms(context, default_ms=RESULT_MS_DEFAULT)
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                while True:
                    with self._feed.ending(request.task_id) as ended:
                        if self._task(request.task_id).state != TASK_RUNNING:
                            break
                        await ended
        except TimeoutError as error:
            raise Refusal("DEADLINE_EXCEEDED", "the task has not ended yet; ask again") from error
        return await self._whole(request.task_id, ResultReply(), outputs=True)

    async def Cancel(self, request: CancelTaskRequest, context: Context) -> CancelTaskReply:
        """End a task now; its agents are told to stop. FINISHED when it had ended already."""
        _check_task_id(request.task_id)
        command = Command(cancel=Cancel(task_id=request.task_id, principal=caller.get()))
        outcome = await self._proposer.propose_one(command, context)
        return CancelTaskReply(revision=outcome.revision)

    async def Story(self, request: StoryRequest, context: Context) -> StoryReply:
        """All that happened to one task, in order, in pages of whole revisions."""
        self._task(request.task_id)
        rows = page_rows(request.page_size)
        events, following = await self._reads.ask(
            lambda reader: reader.story(
                request.task_id, after_revision=request.after_revision, page_size=rows
            )
        )
        return StoryReply(events=events, next_after_revision=following)

    def _task(self, task_id: bytes) -> TaskInfo:
        return _found(self._replica.reader.task(task_id))

    async def _whole(
        self, task_id: bytes, reply: Whole, *, subtasks: bool = False, outputs: bool = False
    ) -> Whole:
        """The reply with a task, what was asked for beside it, and the revision of all of it."""

        def read(reader: Reader) -> TaskInfo:
            reply.revision = reader.revision()
            return _found(reader.task(task_id, with_subtasks=subtasks, with_outputs=outputs))

        if self._task(task_id).subtask_count <= SUBTASKS_INLINE_MAX:
            reply.task.CopyFrom(read(self._replica.reader))
            return reply
        return cast(Whole, await self._reads.ask(lambda reader: _packed(reply, read(reader))))


@dataclass(frozen=True, slots=True)
class _Page:
    """Events kept in the ledger after a revision, whole revisions at a time."""

    events: Sequence[TaskEvent]
    upto: int  # go on from here
    is_last: bool  # nothing was kept above `upto` when this was read
    is_over: bool  # the task had ended, and this holds its last event


def _mesh_page(reader: Reader, after: int) -> _Page:
    events, upto = reader.events_after(after, limit=READ_REVISIONS)
    return _Page(events, upto, is_last=upto <= after or upto >= reader.revision(), is_over=False)


def _task_page(reader: Reader, task_id: bytes, after: int) -> _Page:
    task = _found(reader.task(task_id))
    events, following = reader.story(task_id, after_revision=after, page_size=READ_EVENTS)
    is_over = task.state != TASK_RUNNING and not following
    upto = following or reader.revision()
    return _Page(events, upto, is_last=not following, is_over=is_over)


def _found(task: TaskInfo | None) -> TaskInfo:
    if task is None:
        raise Refusal("NOT_FOUND", "no such task on this mesh (or it is forgotten by now)")
    return task


def _packed(reply: GetTaskReply | ResultReply, task: TaskInfo) -> bytes:
    """The bytes of a reply with a large task; the guard sends them as they are. For a thread.

    Made of parts, for serialising all in one call would hold up the loop from any thread. Parsers
    merge them: repeated fields add up, and so do embedded messages that come more than once.
    """
    parts: list[bytes] = []
    for at in range(0, len(task.subtasks), SUBTASKS_PER_PART):
        part = type(reply)()
        part.task.subtasks.extend(task.subtasks[at : at + SUBTASKS_PER_PART])
        parts.append(part.SerializeToString())
    task.ClearField("subtasks")
    reply.task.CopyFrom(task)
    parts.append(reply.SerializeToString())
    size_bytes = sum(map(len, parts))
    if size_bytes > TASK_BYTES_MAX:
        raise Refusal(
            "VALUE_TOO_LARGE",
            f"the task with all that was asked for has {size_bytes:,} bytes; at most "
            f"{TASK_BYTES_MAX:,} go into one reply: ask without outputs",
        )
    return b"".join(parts)


def page_rows(page_size: int) -> int:
    """Rows of a page that asks for so many; refuses more than a page may have."""
    if page_size > PAGE_ROWS_MAX:
        raise Refusal("INVALID", f"page_size {page_size}: at most {PAGE_ROWS_MAX:,}")
    return page_size or PAGE_ROWS_DEFAULT


@contextlib.contextmanager
def known_token() -> Iterator[None]:
    """Refuse a page token that no page gave."""
    try:
        yield
    except ValueError as error:
        raise Refusal("INVALID", str(error)) from error


def _check_task_id(task_id: bytes) -> None:
    if not 1 <= len(task_id) <= TASK_ID_BYTES_MAX:
        raise Refusal("INVALID", f"task_id must have 1 to {TASK_ID_BYTES_MAX} bytes (a UUIDv7: 16)")


def _check_batch(submits: Sequence[SubmitRequest]) -> None:
    if not submits or len(submits) > SUBMITS_PER_REQUEST_MAX:
        raise Refusal("INVALID", f"submits: 1 to {SUBMITS_PER_REQUEST_MAX:,} in one request")
    count = sum(len(one.spec.subtasks) for one in submits)
    # A single task may be larger than what several may be together.
    if len(submits) > 1 and count > SUBTASKS_PER_REQUEST_MAX:
        raise Refusal(
            "INVALID", f"{count:,} subtasks in one request: at most {SUBTASKS_PER_REQUEST_MAX:,}"
        )


def _submit(request: SubmitRequest) -> Command:
    _check_task_id(request.task_id)
    # Deterministic, so that the same task sent again through another node is the same bytes.
    spec = request.spec.SerializeToString(deterministic=True)
    if len(spec) > SPEC_BYTES_MAX:
        raise Refusal(
            "VALUE_TOO_LARGE",
            f"the task has {len(spec):,} bytes, at most {SPEC_BYTES_MAX:,}: split it, or let a "
            "subtask spawn the rest",
        )
    return Command(submit=Submit(task_id=request.task_id, spec=spec, principal=caller.get()))

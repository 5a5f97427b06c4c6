"""The gRPC service `Tasks`: requests become commands, ledger rows replies, events streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence

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

from consensus.ledger import OutOfRange
from node.api.errors import Refusal
from node.api.feed import LAST_EVENTS, Feed, Watcher
from node.api.guard import caller
from node.api.proposing import Context, Proposer, ReplicaPort, time_left_ms

TASK_ID_BYTES_MAX = 64
SUBTASKS_PER_REQUEST_MAX = 1_000
SUBMITS_PER_REQUEST_MAX = 1_000
SPEC_BYTES_MAX = 850_000  # one submit has to fit into one log entry
PAGE_ROWS_DEFAULT = 100
PAGE_ROWS_MAX = 1_000
READ_REVISIONS = 64  # read from the ledger at once while a watcher catches up
READ_EVENTS = 256  # likewise, of one task
RESULT_MS_DEFAULT = 60_000


class TasksService(TasksServicer):
    """Serves `Tasks` on any node. Reads are local and carry their revision and age."""

    def __init__(self, replica: ReplicaPort, proposer: Proposer, feed: Feed) -> None:
        self._replica = replica
        self._proposer = proposer
        self._feed = feed

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
        task = self._task(
            request.task_id, subtasks=request.with_subtasks, outputs=request.with_outputs
        )
        view = self._replica.view()
        return GetTaskReply(task=task, revision=view.revision, age_ms=view.leader_age_ms)

    async def List(self, request: ListTasksRequest, context: Context) -> ListTasksReply:
        """A page of tasks, newest first."""
        await self._proposer.catch_up(context, at_least_revision=request.at_least_revision)
        with known_token():
            tasks, token = self._replica.reader.list_tasks(
                state=request.state,
                page_size=page_rows(request.page_size),
                page_token=request.page_token,
            )
        view = self._replica.view()
        return ListTasksReply(
            tasks=tasks, next_page_token=token, revision=view.revision, age_ms=view.leader_age_ms
        )

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
                async for reply in self._reread(watcher.task_id, after):
                    after = max(after, reply.revision)
                    if reply.events:
                        yield reply
                if watcher.task_id and self._task(watcher.task_id).state != TASK_RUNNING:
                    return
            for batch in watcher.take():
                if batch.revision and batch.revision <= after:
                    continue
                after = max(after, batch.revision)
                yield WatchTaskReply(events=batch.events, revision=after)
                if watcher.task_id and any(event.kind in LAST_EVENTS for event in batch.events):
                    return
            await watcher.wait()

    async def _reread(self, task_id: bytes, after: int) -> AsyncIterator[WatchTaskReply]:
        """Events kept in the ledger after a revision, whole revisions at a time."""
        while True:
            events, upto = self._events_after(task_id, after)
            yield WatchTaskReply(events=events, revision=upto)
            if upto <= after or upto >= self._replica.reader.revision():
                return
            after = upto
            await asyncio.sleep(0)

    def _events_after(self, task_id: bytes, after: int) -> tuple[Sequence[TaskEvent], int]:
        reader = self._replica.reader
        if task_id:
            events, following = reader.story(task_id, after_revision=after, page_size=READ_EVENTS)
            return events, following or reader.revision()
        try:
            return reader.events_after(after, limit=READ_REVISIONS)
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
        task = self._task(request.task_id, outputs=True)
        return ResultReply(task=task, revision=self._replica.view().revision)

    async def Cancel(self, request: CancelTaskRequest, context: Context) -> CancelTaskReply:
        """End a task now; its agents are told to stop. FINISHED when it had ended already."""
        _check_task_id(request.task_id)
        command = Command(cancel=Cancel(task_id=request.task_id, principal=caller.get()))
        outcome = await self._proposer.propose_one(command, context)
        return CancelTaskReply(revision=outcome.revision)

    async def Story(self, request: StoryRequest, context: Context) -> StoryReply:
        """All that happened to one task, in order, in pages of whole revisions."""
        self._task(request.task_id)
        events, following = self._replica.reader.story(
            request.task_id,
            after_revision=request.after_revision,
            page_size=page_rows(request.page_size),
        )
        return StoryReply(events=events, next_after_revision=following)

    def _task(self, task_id: bytes, *, subtasks: bool = False, outputs: bool = False) -> TaskInfo:
        task = self._replica.reader.task(task_id, with_subtasks=subtasks, with_outputs=outputs)
        if task is None:
            raise Refusal("NOT_FOUND", "no such task on this mesh (or it is forgotten by now)")
        return task


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

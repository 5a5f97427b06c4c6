"""A worker that writes down every claim it was given and every completion it sent.

It is a worker in the mesh' eyes, but a bad one: now and then it drops its stream while it holds
claims, or sits on them, and completes later under the fence it had. Some other worker holds the
claim by then, and the late completion must be refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from quorumesh.v1.values_pb2 import Reason, Value
from quorumesh.v1.workers_pb2 import (
    Completion,
    FromWorker,
    Grant,
    Settled,
    ToWorker,
    WorkerHello,
)
from quorumesh.v1.workers_pb2_grpc import WorkersStub

from mesh.ids import id_text
from tests.torture.clients import RECORDED_SKILL, digest_of, output_of
from tests.torture.history import History, Operation, now_ns

SLOTS = 24
HOLD_S = (0.01, 0.15)
LATE_S = 9.0  # three leases
DROP_CHANCE = 0.02  # per grant: the stream is dropped with all that is held
ABSENT_S = (0.1, 0.6)
WELCOME_S = 10.0
RETRY_S = 0.1
ANSWER_S = 5.0
TRIES_MAX = 100  # each over a stream of its own, or after 5 s without an answer

Key = tuple[int, int]


@dataclass(slots=True)
class Effects:
    """Completions that were accepted: by subtask, the outputs and fences."""

    accepted: dict[str, set[tuple[int, str]]] = field(default_factory=dict)
    stale_refused_count: int = 0
    late_refused_count: int = 0  # of those, held for three leases or more: a forced hand-over
    fences: dict[str, set[int]] = field(default_factory=dict)  # of all grants, by subtask

    @property
    def hand_over_count(self) -> int:
        """How often a claim went to another holder."""
        return sum(len(fences) - 1 for fences in self.fences.values())

    def count(self, reason: Reason.ValueType, *, held_s: float) -> None:
        """A completion was answered."""
        is_stale = reason == Reason.STALE_FENCE
        self.stale_refused_count += is_stale
        self.late_refused_count += is_stale and held_s >= LATE_S


@dataclass(frozen=True, slots=True)
class Seat:
    """A node whose socket a worker may use."""

    name: str
    socket: Path


class RecordingWorker:
    """One worker session. Goes on through the next node when its own is gone."""

    def __init__(
        self,
        seats: Sequence[Seat],
        history: History,
        *,
        home: int,
        rng: random.Random,
        effects: Effects,
    ) -> None:
        self._seats = list(seats)
        self._home = home
        self._at = home
        self._history = history
        self._rng = rng
        self._effects = effects
        self._session = rng.randbytes(16)
        self._first_hello_ns = 0
        self._known: set[Key] = set()
        self._answers: dict[Key, asyncio.Future[Settled]] = {}
        self._outgoing: asyncio.Queue[Completion] = asyncio.Queue(maxsize=1_024)
        self._drop = asyncio.Event()
        self._is_welcome = asyncio.Event()
        self._go_on = asyncio.Event()
        self._go_on.set()
        self._holding_count = 0

    @property
    def holding_count(self) -> int:
        """Claims that it sits on."""
        return self._holding_count

    @property
    def node(self) -> str:
        return self._seats[self._at].name

    def hold_back(self) -> None:
        """Complete nothing from now on."""
        self._go_on.clear()

    def go_on(self) -> None:
        """Complete all that is held, under whatever fence it was given."""
        self._go_on.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as jobs:
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError):
                    await self._connected(jobs)
                self._lose_answers()
                if self._drop.is_set():
                    self._drop.clear()
                    await asyncio.sleep(self._rng.uniform(*ABSENT_S))
                else:
                    # Home again as soon as it answers: each node is to have a worker.
                    is_home = self._at == self._home
                    step = self._rng.randrange(1, len(self._seats)) if is_home else 0
                    self._at = (self._home + step) % len(self._seats)
                    await asyncio.sleep(RETRY_S)

    async def _connected(self, jobs: asyncio.TaskGroup) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self._seats[self._at].socket}") as channel:
            call = WorkersStub(channel).Work()
            hello = WorkerHello(
                session=self._session, name="recorder", skills=[RECORDED_SKILL], slots=SLOTS
            )
            self._first_hello_ns = self._first_hello_ns or now_ns()
            async with asyncio.timeout(WELCOME_S):
                await call.write(FromWorker(hello=hello))
                first = await call.read()
            if not isinstance(first, ToWorker):
                await call.code()
                return
            sender = asyncio.ensure_future(self._send(call))
            dropper = asyncio.ensure_future(self._drop_when_told(call))
            self._is_welcome.set()
            try:
                self._hear(first, jobs)
                while isinstance(message := await call.read(), ToWorker):
                    self._hear(message, jobs)
            except asyncio.CancelledError:
                # A call that was cancelled here reads like a task that was.
                if (mine := asyncio.current_task()) is None or mine.cancelling():
                    raise
            finally:
                self._is_welcome.clear()
                sender.cancel()
                dropper.cancel()
                await asyncio.gather(sender, dropper, return_exceptions=True)

    async def _send(self, call: grpc.aio.StreamStreamCall[FromWorker, ToWorker]) -> None:
        while True:
            completion = await self._outgoing.get()
            await call.write(FromWorker(completions=[completion]))

    async def _drop_when_told(self, call: grpc.aio.StreamStreamCall[FromWorker, ToWorker]) -> None:
        await self._drop.wait()
        call.cancel()

    def _hear(self, message: ToWorker, jobs: asyncio.TaskGroup) -> None:
        for answer in message.settled:
            waiting = self._answers.pop((answer.subtask_ref, answer.fence), None)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)
        for grant in message.grants:
            key = (grant.subtask_ref, grant.fence)
            if key not in self._known:
                self._known.add(key)
                jobs.create_task(self._job(grant))

    async def _job(self, grant: Grant) -> None:
        """Hold a claim for a while and complete it, until there is an answer."""
        subtask = f"{id_text(grant.task_id)}/{grant.subtask}"
        process = self._history.new_process()
        granted_ns = now_ns()
        given = {"session": self._session.hex()}
        value = {"fence": grant.fence}
        self._note(
            process, "grant", subtask, given, ("ok", value, self._first_hello_ns, granted_ns)
        )
        self._effects.fences.setdefault(subtask, set()).add(grant.fence)
        if self._rng.random() < DROP_CHANCE:
            self._drop.set()
        await asyncio.sleep(self._rng.uniform(*HOLD_S))
        self._holding_count += 1
        try:
            await self._go_on.wait()
        finally:
            self._holding_count -= 1
        data = output_of({"fence": grant.fence, "subtask": subtask})
        for _ in range(TRIES_MAX):
            # Who gave up while no node answers would keep its claim: its session's lease is renewed.
            await self._is_welcome.wait()
            reason = await self._complete(process, subtask, grant, data)
            if reason is not None:
                self._effects.count(reason, held_s=(now_ns() - granted_ns) / 1e9)
                return
            process = self._history.new_process()
        raise RuntimeError(f"{subtask} was completed {TRIES_MAX} times, and never answered")

    async def _complete(
        self, process: int, subtask: str, grant: Grant, data: bytes
    ) -> Reason.ValueType | None:
        """Send a completion and write down what came of it. None: no answer."""
        key = (grant.subtask_ref, grant.fence)
        answer: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self._answers[key] = answer
        args = {"fence": grant.fence, "output": digest_of(data)}
        call_ns = now_ns()
        told: tuple[str, dict[str, object], int, int | None] = ("unknown", {}, call_ns, None)
        try:
            completion = Completion(
                subtask_ref=grant.subtask_ref, fence=grant.fence, output=Value(data=data)
            )
            await self._outgoing.put(completion)
            async with asyncio.timeout(ANSWER_S):
                settled = await answer
            if settled.reason == Reason.REASON_UNSPECIFIED:
                told = ("ok", {}, call_ns, now_ns())
                accepted = self._effects.accepted.setdefault(subtask, set())
                accepted.add((grant.fence, digest_of(data)))
            else:
                reason = Reason.Name(settled.reason)
                told = ("refused", {"reason": reason}, call_ns, now_ns())
            return settled.reason
        except (TimeoutError, ConnectionError):
            return None
        finally:
            self._answers.pop(key, None)
            self._note(process, "complete", subtask, args, told)

    def _lose_answers(self) -> None:
        """The stream is gone, and with it the answers to what was sent over it."""
        for waiting in self._answers.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError("the stream broke"))

    def _note(
        self,
        process: int,
        op: str,
        subtask: str,
        args: dict[str, object],
        told: tuple[str, dict[str, object], int, int | None],
    ) -> None:
        result, value, call_ns, return_ns = told
        key = f"claim:{subtask}"
        self._history.note(
            Operation(process, self.node, op, key, args, result, value, call_ns, return_ns)
        )

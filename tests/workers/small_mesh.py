"""A replica port in memory for tests of workers: claims and fences as the ledger has them, no log.

It grants in submission order, any skill to any worker that has it, and retries what failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import msgspec
from quorumesh.v1.ledger_pb2 import Command, HeldClaim, Outcome
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.values_pb2 import Failure, Reason, Value
from quorumesh.v1.workers_pb2 import Completion, Grant
from quorumesh.v1.workers_pb2_grpc import add_WorkersServicer_to_server

from consensus.errors import OutcomeUnknown
from consensus.ledger import Applied, GrantRef, RevokeRef
from node.api.sessions import Sessions
from node.api.workers import WorkersService
from node.supervisor import Supervisor, WorkerSpec

LEASE_MS = 3_000
WAIT_S_MAX = 20.0


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@dataclass(slots=True)
class Work:
    """One subtask."""

    ref: int
    skill: str
    input: bytes
    timeout_ms: int = 0
    attempts_max: int = 3
    state: str = "ready"
    fence: int = 0
    attempt: int = 0
    failed_count: int = 0
    lost_count: int = 0
    session: bytes = b""
    completion: Completion | None = None
    failure: Failure | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def output(self) -> object:
        assert self.completion is not None, self.failure
        return msgspec.json.decode(self.completion.output.data)


@dataclass(slots=True)
class Session:
    epoch: int
    skills: frozenset[str]
    slots: int = 0
    held: int = 0
    sequence: int = 0


class SmallReplica:
    """The port that `Sessions` wants. `lose_next` answers are lost after having taken effect."""

    node_id = "n1"

    def __init__(self) -> None:
        self.work: dict[int, Work] = {}
        self.sessions: dict[bytes, Session] = {}
        self.observers: list[Sessions] = []
        self.commands: list[Command] = []
        self.proposal_count = 0
        self.lose_next = 0
        self.revision = 0
        self.fence = 0
        self.applied = self._fresh()

    def _fresh(self) -> Applied:
        self.revision += 1
        return Applied(self.revision, now_ms(), [], [], [], [], [])

    @property
    def reader(self) -> SmallReplica:
        return self

    def counted_now_ms(self) -> int:
        return now_ms()

    def submit(self, skill: str, value: object = None, **more: int) -> Work:
        data = msgspec.json.encode(value)
        work = Work(ref=len(self.work) + 1, skill=skill, input=data, **more)
        self.work[work.ref] = work
        self.finish_entry()
        return work

    def cancel(self, work: Work) -> None:
        self._release(work)
        self.applied.revokes.append(RevokeRef(work.session, work.ref, work.fence, "cancelled"))
        self._end(work, "cancelled")
        self.finish_entry()

    async def propose(self, commands: Sequence[Command], *, timeout_ms: int) -> list[Outcome]:
        self.proposal_count += 1
        await asyncio.sleep(0)
        self.commands += commands
        outcomes = [self._apply(command) for command in commands]
        self.finish_entry()
        if self.lose_next > 0:
            self.lose_next -= 1
            raise OutcomeUnknown("the answer was lost")
        return outcomes

    def finish_entry(self) -> None:
        for work in self.work.values():
            if work.state == "ready":
                self._grant(work)
        applied, self.applied = self.applied, self._fresh()
        for observer in self.observers:
            observer.entry_applied(applied)

    def grants(self, refs: Sequence[GrantRef]) -> list[Grant]:
        return [self._grant_message(self.work[ref.subtask_ref]) for ref in refs]

    def held(self, session: bytes) -> list[HeldClaim]:
        mine = [w for w in self.work.values() if w.state == "held" and w.session == session]
        return [HeldClaim(subtask_ref=w.ref, fence=w.fence) for w in mine]

    def _grant_message(self, work: Work) -> Grant:
        return Grant(
            subtask_ref=work.ref,
            fence=work.fence,
            task_id=work.ref.to_bytes(16, "big"),
            subtask=f"s{work.ref}",
            skill=work.skill,
            attempt=work.attempt,
            input=Value(data=work.input),
            timeout_ms=work.timeout_ms,
            lease_ms_left=LEASE_MS,
        )

    def _grant(self, work: Work) -> None:
        for key, session in self.sessions.items():
            if work.skill in session.skills and session.held < session.slots:
                self.fence += 1
                session.held += 1
                work.state, work.session, work.fence = "held", key, self.fence
                work.attempt += 1
                self.applied.grants.append(GrantRef(key, session.epoch, work.ref, work.fence))
                return

    def _release(self, work: Work) -> None:
        if work.state == "held":
            self.sessions[work.session].held -= 1

    def _end(self, work: Work, state: str) -> None:
        work.state = state
        work.ended.set()

    def _apply(self, command: Command) -> Outcome:
        match command.WhichOneof("kind"):
            case "open_session":
                return self._open(command)
            case "claim":
                claim = command.claim
                session = self.sessions[claim.session]
                if session.epoch != claim.epoch:
                    return Outcome(reason=Reason.STALE_EPOCH)
                if claim.sequence > session.sequence:
                    session.sequence, session.slots = claim.sequence, claim.slots
            case "close_session":
                self._close(command.close_session.session, command.close_session.epoch)
            case "complete" | "fail":
                return self._report(command)
        return Outcome()

    def _open(self, command: Command) -> Outcome:
        wish = command.open_session
        before = self.sessions.get(wish.session)
        epoch = before.epoch + 1 if before else 1
        held = [w for w in self.work.values() if w.state == "held" and w.session == wish.session]
        self.sessions[wish.session] = Session(epoch, frozenset(wish.skills), held=len(held))
        claims = [HeldClaim(subtask_ref=w.ref, fence=w.fence) for w in held]
        return Outcome(epoch=epoch, held=claims)

    def _close(self, key: bytes, epoch: int) -> None:
        session = self.sessions[key]
        if session.epoch != epoch:
            return
        session.slots = 0
        for work in self.work.values():
            if work.state == "held" and work.session == key:
                self._release(work)
                work.lost_count += 1
                work.state = "ready"

    def _report(self, command: Command) -> Outcome:
        is_complete = command.HasField("complete")
        report = command.complete.completion if is_complete else command.fail.report
        work = self.work[report.subtask_ref]
        if work.fence != report.fence or work.state == "ready":
            return Outcome(reason=Reason.STALE_FENCE)
        if work.state != "held":
            return Outcome()
        if is_complete and command.complete.completion.HasField("spawn"):
            return Outcome(reason=Reason.INVALID, message="the join is unknown")
        self._release(work)
        if is_complete:
            work.completion = command.complete.completion
            self._end(work, "succeeded")
            return Outcome()
        work.failure = command.fail.report.failure
        work.failed_count += 1
        if command.fail.report.final or work.failed_count >= work.attempts_max:
            self._end(work, "failed")
        else:
            work.state = "ready"
        return Outcome()


@dataclass(slots=True)
class SmallNode:
    replica: SmallReplica
    sessions: Sessions
    progress: list[TaskEvent]
    supervisor: Supervisor
    folder: Path

    async def ended(self, *works: Work) -> None:
        async with asyncio.timeout(WAIT_S_MAX):
            for work in works:
                await work.ended.wait()

    async def until(self, condition: object) -> None:
        assert callable(condition)
        async with asyncio.timeout(WAIT_S_MAX):
            while not condition():  # noqa: ASYNC110 - conditions span processes
                await asyncio.sleep(0.02)


@asynccontextmanager
async def small_node(
    folder: Path, *, agents: tuple[str, ...] = (), slots: int = 8, **more: object
) -> AsyncIterator[SmallNode]:
    """One node's worker side over a Unix socket, with one real worker process."""
    replica = SmallReplica()
    progress: list[TaskEvent] = []
    sessions = Sessions(
        replica, lease_ms=LEASE_MS, monotonic_ms=now_ms, on_progress=progress.append
    )
    replica.observers.append(sessions)
    server = grpc.aio.server()
    add_WorkersServicer_to_server(WorkersService(sessions, node_id="n1"), server)
    address = f"unix:{folder}/worker.sock"
    server.add_insecure_port(address)
    await server.start()
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    spec = WorkerSpec(
        name="w0",
        connect=address,
        agents=agents,
        slots=slots,
        environment=environment,
        **more,  # type: ignore[arg-type]
    )
    supervisor = Supervisor([spec], log_folder=folder, drain_ms=1_000)
    tasks = [asyncio.ensure_future(sessions.run()), asyncio.ensure_future(supervisor.run())]
    try:
        yield SmallNode(replica, sessions, progress, supervisor, folder)
    finally:
        await supervisor.stop()
        await server.stop(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

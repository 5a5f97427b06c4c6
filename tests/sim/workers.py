"""Workers that are attached to a node, lose it, pause longer than their lease and answer late.

A worker obeys the grants that its node passes on; what it completes under an old fence must have no
effect, and it says so if it was told otherwise.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import (
    Claim,
    CloseSession,
    Command,
    Complete,
    Fail,
    OpenSession,
    Outcome,
    Renew,
    SessionEpoch,
)
from quorumesh.v1.tasks_pb2 import SubtaskSpec
from quorumesh.v1.values_pb2 import Failure, Value
from quorumesh.v1.workers_pb2 import Completion, FailureReport, Spawn, Vote

from consensus.ledger import Applied
from tests.sim.checks import Checks
from tests.sim.clients import Asking
from tests.sim.node import Process, SimNode
from tests.sim.world import Violation, World

RENEW_MS = (700, 1_500)
WORK_MS = (5, 400)
LATE_MS = (3_200, 9_000)  # longer than a lease
SLOTS = 3


@dataclass(slots=True)
class Worker:
    """One worker session, whatever nodes it goes through."""

    name: str
    world: World
    asking: Asking
    checks: Checks
    chance: random.Random = field(default_factory=random.Random)
    node: SimNode | None = None
    process: Process | None = None
    epoch: int = 0
    nonce: int = 0
    sequence: int = 0
    is_opening: bool = False
    quiet_until_ms: int = 0
    seen: set[int] = field(default_factory=set)
    stale_count: int = 0
    effect_count: int = 0

    def begin(self) -> None:
        self.chance = random.Random(f"{self.world.seed} worker {self.name}")
        self.checks.listeners.append(self._applied)
        self._tend()

    @property
    def _session(self) -> bytes:
        return self.name.encode()

    def pause(self, ms: int) -> None:
        """Nothing is renewed or offered for so long; what is under way answers late."""
        self.quiet_until_ms = max(self.quiet_until_ms, self.world.now_ms + ms)

    def _tend(self) -> None:
        self.world.after_ms(self.chance.randrange(*RENEW_MS), self._tend)
        if self.world.now_ms < self.quiet_until_ms:
            return
        process = self.process
        is_attached = process is not None and process.is_alive and not process.core.is_removed
        if not is_attached or self.chance.random() < 0.01:
            self._attach()
        elif self.epoch:
            self._renew()

    def _attach(self) -> None:
        up = self.asking.up()
        if not up or self.is_opening:
            return
        self.node = self.chance.choice(up)
        self.process, self.epoch, self.sequence = self.node.process, 0, 0
        self.nonce += 1
        self.is_opening = True
        opening = OpenSession(
            session=self._session,
            node_id=self.node.node_id,
            name=self.name,
            skills=["s", "t"] if self.name != "w0" else ["s"],
            nonce=self.nonce,
        )

        def opened(process: Process, outcomes: list[Outcome]) -> None:
            self.is_opening = False
            self.epoch = outcomes[0].epoch
            for held in outcomes[0].held:
                self._granted(held.subtask_ref, held.fence)
            self._renew()

        self.asking.ask([Command(open_session=opening)], opened, through=self.node)

    def _renew(self) -> None:
        self.sequence += 1
        slots = 0 if self.chance.random() < 0.03 else SLOTS
        claim = Claim(session=self._session, epoch=self.epoch, sequence=self.sequence, slots=slots)
        sessions = [SessionEpoch(session=self._session, epoch=self.epoch)]
        commands = [Command(renew=Renew(sessions=sessions)), Command(claim=claim)]
        epoch = self.epoch

        def renewed(process: Process, outcomes: list[Outcome]) -> None:
            is_stale = any(o.reason == values_pb2.STALE_EPOCH for o in outcomes)
            # When its node does not answer it goes on through one that does.
            if self.epoch == epoch and (is_stale or process is not self.process):
                self.process = None

        self.asking.ask(commands, renewed, through=self.node)
        if self.chance.random() < 0.004:
            close = CloseSession(session=self._session, epoch=self.epoch)
            self.asking.ask([Command(close_session=close)], lambda process, outcomes: None)

    def _applied(self, process: Process, applied: Applied) -> None:
        if process is self.process and self.world.now_ms >= self.quiet_until_ms:
            for grant in applied.grants:
                if grant.session == self._session:
                    self._granted(grant.subtask_ref, grant.fence)

    def _granted(self, ref: int, fence: int) -> None:
        if fence in self.seen:
            return
        self.seen.add(fence)
        kind, work_ms = self.chance.random(), self.chance.randrange(*WORK_MS)
        if kind < 0.02:
            return  # its agent hangs: a time-out or the end of the session takes the subtask back
        if kind < 0.07:
            work_ms = self.chance.randrange(*LATE_MS)
        command = self._result(ref, fence)
        self.world.after_ms(work_ms, functools.partial(self._report, ref, fence, command))
        if self.chance.random() < 0.1:
            again_ms = work_ms + self.chance.randrange(1, 3_000)
            self.world.after_ms(again_ms, functools.partial(self._report, ref, fence, command))

    def _result(self, ref: int, fence: int) -> Command:
        kind = self.chance.random()
        if kind < 0.08:
            failure = Failure(code="AGENT_ERROR", message="it did not work")
            report = FailureReport(subtask_ref=ref, fence=fence, failure=failure)
            return Command(fail=Fail(report=report))
        output = Value(data=f"{fence}".encode())
        spawn = Spawn()
        # What was spawned spawns nothing itself: it lies in the upper numbers of its task.
        if kind < 0.13 and ref & 0xFFFFF <= 4:
            parts = [SubtaskSpec(id="p", skill="s", timeout_ms=5_000)]
            parts.append(SubtaskSpec(id="j", skill="s", needs=["p"], timeout_ms=5_000))
            spawn = Spawn(subtasks=parts, join="j")
            completion = Completion(subtask_ref=ref, fence=fence, spawn=spawn)
        else:
            vote = Vote(label=self.chance.choice("xy"))
            completion = Completion(subtask_ref=ref, fence=fence, output=output, vote=vote)
        return Command(complete=Complete(completion=completion))

    def _report(self, ref: int, fence: int, command: Command) -> None:
        if self.world.now_ms < self.quiet_until_ms:
            left_ms = self.quiet_until_ms - self.world.now_ms + 1
            self.world.after_ms(left_ms, functools.partial(self._report, ref, fence, command))
            return
        is_old = self.checks.fence_of.get(ref, fence) > fence
        has_counted = self.checks.done_by.get(ref) == fence

        def answered(process: Process, outcomes: list[Outcome]) -> None:
            reason = outcomes[0].reason
            if reason == values_pb2.STALE_FENCE:
                self.stale_count += 1
            if not command.HasField("complete") or reason:
                return
            if is_old and not has_counted:
                raise Violation(f"the late result of {ref} under {fence} was accepted")
            self.effect_count += 1
            has_spawned = command.complete.completion.HasField("spawn")
            self.checks.told_effect(ref, fence, has_spawned=has_spawned)

        self.asking.ask([command], answered, through=self.node)

"""Clients that submit, cancel and read, and ask again elsewhere when nobody answers.

A client believes what it is told: what was acknowledged must be there for every linearizable read
that begins afterwards, and what was said to be unwritten must never appear.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import Barrier, Cancel, Command, Outcome, Submit
from quorumesh.v1.tasks_pb2 import BallotSpec, RetryPolicy, SubtaskSpec, TaskSpec

from consensus.errors import ConsensusError, Unavailable
from tests.sim.checks import SHORT_LIVED, Checks
from tests.sim.node import Process, SimNode
from tests.sim.world import Violation, World

ANSWER_MS = (300, 4_000)
KNOWN_TASKS_MAX = 40  # of one client
RETAIN_MS = (2_000, 3_600_000)
SKILLS = ("s", "t")

Then = Callable[[Process, list[Outcome]], None]


class Asking:
    """Brings commands to the mesh through any node until it knows what became of them."""

    def __init__(self, world: World, nodes: dict[str, SimNode]) -> None:
        self.world, self.nodes = world, nodes
        self.chance = random.Random(f"{world.seed} asking")
        self.open_count = 0

    def up(self) -> list[SimNode]:
        """The nodes that a client would find at work."""
        return [n for n in self.nodes.values() if n.is_up and not n.core.is_removed]

    def ask(
        self,
        commands: list[Command],
        then: Then,
        *,
        gave_up: Callable[[], None] | None = None,
        through: SimNode | None = None,
    ) -> None:
        """`then` gets the outcomes; with `gave_up` a clear "not written" may end it instead.

        `through` is asked first, and any other node afterwards.
        """
        self.open_count += 1
        is_over: list[bool] = []

        def again() -> None:
            self.ask(commands, then)

        def done(result: list[Outcome] | ConsensusError) -> None:
            if is_over:
                return
            is_over.append(True)
            self.open_count -= 1
            if not isinstance(result, ConsensusError) and not process.node.is_rotten:
                then(process, result)
            elif gave_up is not None and isinstance(result, Unavailable):
                gave_up()
            else:
                self.world.after_ms(self.chance.randrange(10, 200), again)

        wait_ms = self.chance.randrange(*ANSWER_MS)
        # A node that dies answers nobody: its client goes on elsewhere.
        self.world.after_ms(wait_ms + 500, lambda: done(ConsensusError("no answer")))
        up = self.up()
        node = through if through is not None and through.is_up else None
        node = node or (self.chance.choice(up) if up else None)
        if node is None or node.process is None:
            return
        process = node.process
        process.call(lambda: self._propose(process, commands, wait_ms, done))

    def _propose(
        self,
        process: Process,
        commands: list[Command],
        wait_ms: int,
        done: Callable[[list[Outcome] | ConsensusError], None],
    ) -> None:
        deadline_ms = process.node.clock.monotonic_ms() + wait_ms
        try:
            process.core.propose(commands, deadline_ms=deadline_ms, done=done)
        except Unavailable as full:
            done(full)


@dataclass(slots=True)
class Known:
    """What one client knows for sure of one task."""

    task_id: bytes
    state: int = 0  # its final state; 0: not known to have ended


@dataclass(slots=True)
class Client:
    """One person at a time: the next request begins when the last has ended."""

    number: int
    world: World
    asking: Asking
    checks: Checks
    pause_ms: float
    end_ms: int
    chance: random.Random = field(default_factory=random.Random)
    known: list[Known] = field(default_factory=list)
    unwritten: list[bytes] = field(default_factory=list)
    count: int = 0
    read_count: int = 0

    def begin(self) -> None:
        self.chance = random.Random(f"{self.world.seed} client {self.number}")
        self._next()

    def _next(self) -> None:
        self.world.after_ms(self.chance.expovariate(1 / self.pause_ms) + 1, self._act)

    def _act(self) -> None:
        if self.world.now_ms >= self.end_ms:
            return
        kind = self.chance.random()
        if kind < 0.25 and self.known:
            self._read()
        elif kind < 0.32 and self.known:
            self._cancel(self.chance.choice(self.known))
        else:
            self._submit()

    def _submit(self) -> None:
        self.count += 1
        is_short = self.chance.random() < 0.3
        mark = SHORT_LIVED if is_short else b"."
        task_id = mark + (self.number << 32 | self.count).to_bytes(15, "big")
        spec = random_spec(self.chance, RETAIN_MS[0] if is_short else RETAIN_MS[1])
        command = Command(submit=Submit(task_id=task_id, spec=spec.SerializeToString()))

        def accepted(process: Process, outcomes: list[Outcome]) -> None:
            if outcomes[0].reason:
                raise Violation(f"a fresh task was refused: {outcomes[0]}")
            # Sent again after it has been forgotten, a short-lived task begins anew.
            if not is_short:
                self.checks.told_accepted(task_id, outcomes[0].revision)
                if all(known.task_id != task_id for known in self.known):
                    self.known = [*self.known[-KNOWN_TASKS_MAX + 1 :], Known(task_id)]
            if self.chance.random() < 0.15:
                self.asking.ask([command], accepted)  # it does not remember that it was told
            else:
                self._next()

        def refused() -> None:
            self.checks.told_refused(task_id)
            self.unwritten.append(task_id)
            self._next()

        self.asking.ask([command], accepted, gave_up=refused)

    def check_unwritten(self) -> None:
        for task_id in self.unwritten:
            self.checks.told_refused(task_id)

    def _cancel(self, known: Known) -> None:
        def answered(process: Process, outcomes: list[Outcome]) -> None:
            match outcomes[0].reason:
                case values_pb2.REASON_UNSPECIFIED:
                    self._learn(known, 4)
                case values_pb2.FINISHED:
                    if known.state == 4:
                        raise Violation("a cancelled task has finished")
                case _:
                    raise Violation(f"a known task cannot be cancelled: {outcomes[0]}")
            self._next()

        self.asking.ask([Command(cancel=Cancel(task_id=known.task_id))], answered)

    def _read(self) -> None:
        """Linearizable: a barrier through any node, then that node's own ledger."""
        sample = self.chance.sample(self.known, min(4, len(self.known)))
        before = [(known, known.state) for known in sample]

        def reached(process: Process, outcomes: list[Outcome]) -> None:
            self.read_count += 1
            for known, state in before:
                query = "SELECT state FROM task WHERE task_id=?"
                row = process.core.ledger.connection.execute(query, (known.task_id,)).fetchone()
                if row is None:
                    raise Violation(f"an acknowledged task is not at {process.node.node_id}")
                if state and row[0] != state:
                    raise Violation(f"a task that had ended as {state} is read as {row[0]}")
                if row[0] != 1:
                    self._learn(known, row[0])
            self._next()

        self.asking.ask([Command(barrier=Barrier())], reached)

    def _learn(self, known: Known, state: int) -> None:
        if known.state and known.state != state:
            raise Violation(f"a task ended as {known.state} and then as {state}")
        known.state = state


def random_spec(chance: random.Random, retain_ms: int) -> TaskSpec:
    """A small graph: one to four subtasks, some in need of others, now and then a ballot."""
    retry = RetryPolicy(max_attempts=chance.choice((2, 5)), backoff_ms=chance.choice((50, 400)))
    subtasks = [
        SubtaskSpec(
            id=f"a{at}",
            skill=chance.choice(SKILLS),
            timeout_ms=chance.choice((2_000, 4_000, 8_000)),
            retry=retry,
            needs=[f"a{need}" for need in range(at) if chance.random() < 0.5],
        )
        for at in range(chance.choice((1, 1, 1, 2, 4)))
    ]
    ballots = []
    if chance.random() < 0.1:
        ballots.append(BallotSpec(id="vote", hear_all=chance.random() < 0.5, plurality=True))
        for at in range(3):
            subtasks.append(SubtaskSpec(id=f"v{at}", skill="s", ballot="vote", timeout_ms=4_000))
    return TaskSpec(
        name="t",
        subtasks=subtasks,
        ballots=ballots,
        output="a0",
        deadline_ms=chance.choice((0, 0, 0, 20_000)),
        retain_ms=retain_ms,
    )

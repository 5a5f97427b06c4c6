"""Runs the desk's skills through a real ledger, in memory and in one thread: no node, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from quorumesh.v1.ledger_pb2 import (
    Bootstrap,
    Claim,
    CloseSession,
    Command,
    Complete,
    Entry,
    Fail,
    OpenSession,
    Outcome,
    Proposal,
    Submit,
)
from quorumesh.v1.tasks_pb2 import TaskEvent, TaskInfo
from quorumesh.v1.workers_pb2 import Grant

from consensus.ledger import APPLY_VERSION, Applied, Ledger, invariants
from examples.support_desk.agents import desk
from mesh import AgentError, Context, spec_of
from mesh.worker_calls import arguments, completion_of, failure_of

STEPS_MAX = 10_000
NODES = {"n1": "node-1", "n2": "node-2", "n3": "node-3"}


class DeskWorld:
    """A ledger and one worker per node. Grants are done in the order in which they were given."""

    def __init__(self, *, slots: int = 4) -> None:
        self.ledger = Ledger.open(":memory:")
        self.index = 0
        self.granted: deque[Grant] = deque()
        self.sessions: dict[str, tuple[bytes, int]] = {}
        self.do(
            Command(bootstrap=Bootstrap(mesh_id="m", node_id="n1", name="node-1", address="a:1"))
        )
        for node_id in NODES:
            session = node_id.encode() * 8
            opening = OpenSession(
                session=session,
                node_id=node_id,
                name="worker-1",
                skills=sorted(desk.skills),
                nonce=1,
            )
            epoch = self.do(Command(open_session=opening)).epoch
            self.sessions[node_id] = (session, epoch)
            self.do(Command(claim=Claim(session=session, epoch=epoch, sequence=1, slots=slots)))

    def do(self, command: Command, *, later_ms: int = 0) -> Outcome:
        """Apply one command as one entry, and take up what it grants."""
        self.index += 1
        entry = Entry(
            apply_version=APPLY_VERSION,
            counted_ms=self.ledger.counted_ms + 1 + later_ms,
            wall_ms=1_700_000_000_000 + self.index * 10,
            proposals=[Proposal(command=command)],
        )
        applied = self.ledger.apply(self.index, 1, entry)
        self._take(applied)
        return applied.outcomes[0]

    def submit(self, skill: str, given: Any, *, name: str = "ask") -> bytes:
        """Submit a task of one subtask. Returns the task's id."""
        return self.submit_spec({"subtasks": [{"id": name, "skill": skill, "input": given}]})

    def submit_spec(self, task: Any) -> bytes:
        """Submit a task as people write it. Returns its id."""
        spec = spec_of(task)
        task_id = self.index.to_bytes(16, "big")
        outcome = self.do(Command(submit=Submit(task_id=task_id, spec=spec.SerializeToString())))
        assert not outcome.reason, outcome.message
        return task_id

    def run(self, *, until: Callable[[Grant], bool] = lambda grant: False) -> Grant | None:
        """Do granted work until there is none left, or until a grant that one waits for."""
        for _ in range(STEPS_MAX):
            if not self.granted:
                return None
            grant = self.granted.popleft()
            if until(grant):
                return grant
            if self._is_current(grant):
                self.do(self.result_of(grant))
        raise AssertionError("the task does not end")

    def result_of(self, grant: Grant) -> Command:
        """What a worker would report for a grant."""
        skill = desk.skills[grant.skill]
        context = Context(grant)
        try:
            result = skill.function(**arguments(skill, grant, context))
            return Command(complete=Complete(completion=completion_of(grant, context, result)))
        except AgentError as error:
            return Command(fail=Fail(report=failure_of(grant, error)))

    def lose(self, node_id: str) -> None:
        """The node is gone: its claims are given to others."""
        session, epoch = self.sessions[node_id]
        self.do(Command(close_session=CloseSession(session=session, epoch=epoch)))

    def task(self, task_id: bytes) -> TaskInfo:
        info = self.ledger.reader().task(task_id, with_subtasks=True, with_outputs=True)
        assert info is not None
        assert invariants.violations(self.ledger.connection) == []
        return info

    def story(self, task_id: bytes) -> list[TaskEvent]:
        events: list[TaskEvent] = []
        after = 0
        for _ in range(STEPS_MAX):
            page, after = self.ledger.reader().story(task_id, after_revision=after)
            events += page
            if not after:
                return events
        raise AssertionError("the story does not end")

    def _take(self, applied: Applied) -> None:
        self.granted.extend(self.ledger.reader().grants(applied.grants))

    def _is_current(self, grant: Grant) -> bool:
        held = (
            h for session, _ in self.sessions.values() for h in self.ledger.reader().held(session)
        )
        return any(h.subtask_ref == grant.subtask_ref and h.fence == grant.fence for h in held)

"""A ledger in memory, driven by commands in a few words, checked after every entry."""

from __future__ import annotations

from collections.abc import Callable

from quorumesh.v1.ledger_pb2 import (
    Cancel,
    Claim,
    CloseSession,
    Command,
    Complete,
    Entry,
    Fail,
    OpenSession,
    Outcome,
    Proposal,
    Renew,
    SessionEpoch,
    Submit,
    Suspect,
)
from quorumesh.v1.tasks_pb2 import BallotSpec, RetryPolicy, SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Failure, Label, Reason, Value
from quorumesh.v1.workers_pb2 import Completion, FailureReport, Spawn, Vote

from consensus.ledger import Applied, GrantRef, Ledger, Reader, invariants


class World:
    """One ledger and the log that made it."""

    def __init__(self, path: str = ":memory:") -> None:
        self.ledger = Ledger.open(path)
        self.log: list[Entry] = []
        self.now_ms = 0
        self.grants: dict[str, GrantRef] = {}
        self.fences: dict[int, GrantRef] = {}
        self.sequence = 0
        self.seen: Callable[[Applied], None] = lambda applied: None

    @property
    def reader(self) -> Reader:
        return self.ledger.reader()

    def apply(self, *commands: Command) -> Applied:
        entry = entry_of(*commands, now_ms=self.now_ms)
        self.log.append(entry)
        applied = self.ledger.apply(self.ledger.applied_index + 1, 1, entry)
        self.seen(applied)
        self.fences.update((grant.fence, grant) for grant in applied.grants)
        for event in applied.events:
            for grant in applied.grants:
                if event.subtask_ref == grant.subtask_ref:
                    self.grants[event.subtask] = grant
        assert invariants.violations(self.ledger.connection) == []
        return applied

    def grant(self, subtask: str, fence: str = "") -> GrantRef:
        """The last grant of a subtask, or that of a fence."""
        return self.fences[int(fence)] if fence else self.grants[subtask]

    def one(self, command: Command) -> Outcome:
        return self.apply(command).outcomes[0]

    def wait(self, ms: int) -> Applied:
        self.now_ms += ms
        return self.apply()

    def submit(self, name: str, *subtasks: SubtaskSpec, **more: object) -> Outcome:
        ballots = more.pop("ballots", [])
        spec = TaskSpec(name=name, subtasks=subtasks, ballots=ballots, **more)  # type: ignore[arg-type]
        return self.one(submit_command(name, spec))

    def work(self, name: str = "w", *, slots: int = 1, skills: str = "s", node: str = "n1") -> int:
        """Open a session and offer slots; returns its epoch."""
        self.sequence += 1
        opened = self.one(open_command(name, skills, node=node, nonce=self.sequence))
        self.claim(name, opened.epoch, slots)
        return opened.epoch

    def claim(self, name: str, epoch: int, slots: int) -> Applied:
        return self.apply(self.claim_command(name, epoch, slots))

    def claim_command(self, name: str, epoch: int, slots: int) -> Command:
        self.sequence += 1
        return claim_command(name, epoch, self.sequence, slots)

    def complete(self, subtask: str, data: str = '"out"', **more: object) -> Outcome:
        return self.one(complete_command(self.grants[subtask], data, **more))

    def fail(self, subtask: str, *, final: bool = False) -> Outcome:
        return self.one(fail_command(self.grants[subtask], final=final))

    def states(self, name: str) -> dict[str, str]:
        info = self.reader.task(name.encode(), with_subtasks=True)
        assert info is not None
        from quorumesh.v1.values_pb2 import SubtaskState

        return {s.id: SubtaskState.Name(s.state) for s in info.subtasks}


def sub(name: str, *needs: str, **more: object) -> SubtaskSpec:
    more.setdefault("skill", "s")
    return SubtaskSpec(id=name, needs=needs, **more)  # type: ignore[arg-type]


def entry_of(*commands: Command, now_ms: int = 0) -> Entry:
    return Entry(
        apply_version=1,
        counted_ms=now_ms,
        wall_ms=now_ms,
        proposals=[Proposal(command=command) for command in commands],
    )


def submit_command(name: str, spec: TaskSpec) -> Command:
    return Command(submit=Submit(task_id=name.encode(), spec=spec.SerializeToString()))


def open_command(name: str, skills: str, *, node: str = "n1", nonce: int = 1) -> Command:
    return Command(
        open_session=OpenSession(
            session=name.encode(), node_id=node, name=name, skills=skills.split(), nonce=nonce
        )
    )


def claim_command(name: str, epoch: int, sequence: int, slots: int) -> Command:
    return Command(claim=Claim(session=name.encode(), epoch=epoch, sequence=sequence, slots=slots))


def complete_command(grant: GrantRef, data: str, **more: object) -> Command:
    return Command(
        complete=Complete(
            completion=Completion(
                subtask_ref=grant.subtask_ref,
                fence=grant.fence,
                output=Value(data=data.encode()),
                **more,  # type: ignore[arg-type]
            )
        )
    )


def fail_command(grant: GrantRef, *, final: bool = False) -> Command:
    report = FailureReport(
        subtask_ref=grant.subtask_ref,
        fence=grant.fence,
        failure=Failure(code="AGENT_ERROR", message="boom"),
        final=final,
    )
    return Command(fail=Fail(report=report))


__all__ = [
    "BallotSpec",
    "Cancel",
    "CloseSession",
    "Command",
    "Label",
    "Reason",
    "Renew",
    "RetryPolicy",
    "SessionEpoch",
    "Spawn",
    "Suspect",
    "Vote",
    "World",
    "claim_command",
    "complete_command",
    "entry_of",
    "fail_command",
    "open_command",
    "sub",
    "submit_command",
]

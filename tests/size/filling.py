"""Makes ledgers of many tasks by applying entries to them, without a mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from quorumesh.v1.ledger_pb2 import (
    Claim,
    CloseSession,
    Command,
    Complete,
    Entry,
    OpenSession,
    Outcome,
    Proposal,
    Submit,
)
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Value
from quorumesh.v1.workers_pb2 import Completion

from consensus.ledger import APPLY_VERSION, Applied, GrantRef, Ledger

SKILL = "filled"  # nobody else offers it
SLOTS = 4_096
BULK_TASKS = 250  # submitted, and as many completed, in one entry
CHECKPOINT_ENTRIES = 500
SESSION = b"filling".ljust(16, b".")
VALUE = Value(data=b'{"document": "%s"}' % (b"x" * 64))


@dataclass
class Filling:
    """A ledger that is given tasks of one subtask each, which a worker of its own completes."""

    path: Path
    _granted: list[GrantRef] = field(default_factory=list)

    def __enter__(self) -> Filling:
        self.ledger = Ledger.open(str(self.path))
        assert self.ledger.voters(), "a mesh founds its ledger; this only fills it"
        self._term = self.ledger.applied_term
        self._node_id = min(self.ledger.voters())
        self._number = self.ledger.applied_index << 32
        opened = OpenSession(
            session=SESSION, node_id=self._node_id, name="f", skills=[SKILL], nonce=self._number
        )
        [outcome] = self.apply(Command(open_session=opened))
        self._epoch = outcome.epoch
        offer = Claim(session=SESSION, epoch=self._epoch, sequence=1, slots=SLOTS)
        self.apply(Command(claim=offer))
        return self

    def __exit__(self, *_: object) -> None:
        if self._granted:
            self.apply(*self._completions())
        self.apply(Command(close_session=CloseSession(session=SESSION, epoch=self._epoch)))
        assert self.ledger.checkpoint(), "the checkpoint met a reader"
        self.ledger.close()

    def add_tasks(self, count: int, say: Callable[[int], None]) -> None:
        """Many at a time: each entry submits some and completes those of the one before."""
        done = 0
        while done < count:
            some = min(BULK_TASKS, count - done)
            self.apply(*self._completions(), *[self._submit() for _ in range(some)])
            done += some
            if done % (BULK_TASKS * 100) == 0:
                say(done)

    def add_entries(self, count: int, say: Callable[[int], None]) -> int:
        """One command an entry, submits and completions in turn; returns how many tasks came."""
        for number in range(count):
            self.apply(*(self._completions() if self._granted else [self._submit()]))
            if (number + 1) % 25_000 == 0:
                say(number + 1)
        return (count + 1) // 2

    def apply(self, *commands: Command) -> list[Outcome]:
        ledger = self.ledger
        entry = Entry(
            apply_version=APPLY_VERSION,
            counted_ms=ledger.counted_ms,  # no time passes, so that no lease runs out
            wall_ms=0,
            proposals=[Proposal(command=command) for command in commands],
        )
        applied: Applied = ledger.apply(ledger.applied_index + 1, self._term, entry)
        refused = [outcome for outcome in applied.outcomes if outcome.reason]
        assert not refused, refused[0]
        self._granted += applied.grants
        if ledger.applied_index % CHECKPOINT_ENTRIES == 0:
            assert ledger.checkpoint(), "the checkpoint met a reader"
        return applied.outcomes

    def _submit(self) -> Command:
        self._number += 1
        subtask = SubtaskSpec(id="a", skill=SKILL, input=VALUE)
        spec = TaskSpec(name=f"filled {self._number}", subtasks=[subtask])
        name = self._number.to_bytes(16, "big")
        return Command(
            submit=Submit(task_id=name, spec=spec.SerializeToString(), principal="client:filling")
        )

    def _completions(self) -> list[Command]:
        granted, self._granted = self._granted, []
        return [
            Command(
                complete=Complete(
                    completion=Completion(
                        subtask_ref=grant.subtask_ref, fence=grant.fence, output=VALUE
                    )
                )
            )
            for grant in granted
        ]

"""Proposals of this node on their way into the log, and the forming of entries from them.

A command waits here until the ledger of this node has applied it. Outcomes are matched by
(incarnation, sequence) written inside the entry, never by log index. When the leader or the term
changes, what was sent and has no outcome is sent again: every ledger command is idempotent by name,
so one that has had its effect has none when it arrives again. One that was refused may have an effect
when it arrives again, so only the refusal of the copy that was sent last is an outcome.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import Command, Outcome, Proposal

from consensus.errors import ConsensusError, OutcomeUnknown, Unavailable

PROPOSALS_WAITING_MAX = 50_000
PROPOSALS_BYTES_MAX = 128 << 20  # of all that waits; the last batch taken in may go beyond it
ENTRY_UNITS_MAX = 1_000
ENTRY_BYTES_MAX = 900_000
FINISHED_KEPT_MAX = 1_000  # finished batches that the heap of deadlines may hold beside open ones
UNIT_BYTES = 160  # a submit counts one unit for each so many bytes of its task, about a subtask

Done = Callable[[list[Outcome] | ConsensusError], None]


@dataclass(slots=True)
class Batch:
    """Commands proposed together; `done` is called once, with all outcomes or an error."""

    deadline_ms: int
    first_sequence: int
    done: Done
    outcomes: list[Outcome | None]
    open_count: int
    was_sent: bool = False
    is_over: bool = False


@dataclass(slots=True)
class Waiting:
    proposal: Proposal
    batch: Batch
    position: int
    units: int
    size_bytes: int
    is_sent: bool = False
    sent_count: int = 0


@dataclass(slots=True)
class Proposals:
    """The proposals of one process. Its owner sends what `take_unsent` gives."""

    incarnation: int
    _sequence: int = 0
    _waiting: dict[int, Waiting] = field(default_factory=dict)
    _unsent: deque[int] = field(default_factory=deque)
    _batches: list[tuple[int, int, Batch]] = field(default_factory=list)  # a heap by deadline
    _open_count: int = 0  # batches that still wait
    _unfit: list[int] = field(default_factory=list)
    _waiting_bytes: int = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, commands: Sequence[Command], *, deadline_ms: int, done: Done) -> None:
        """Take commands in. `done` is called later, never from here.

        One that no entry can hold never gets near the log: its outcome is VALUE_TOO_LARGE.
        """
        assert commands
        first = self._sequence + 1
        batch = Batch(deadline_ms, first, done, [None] * len(commands), len(commands))
        for position, command in enumerate(commands):
            self._sequence += 1
            proposal = Proposal(
                incarnation=self.incarnation, sequence=self._sequence, command=command, attempt=1
            )
            waiting = Waiting(proposal, batch, position, *cost(proposal))
            self._waiting[self._sequence] = waiting
            self._waiting_bytes += waiting.size_bytes
            if waiting.size_bytes > ENTRY_BYTES_MAX:
                waiting.is_sent = True
                self._unfit.append(self._sequence)
            else:
                self._unsent.append(self._sequence)
        heapq.heappush(self._batches, (deadline_ms, first, batch))
        self._open_count += 1

    def has_room(self, count: int) -> bool:
        if self._waiting_bytes > PROPOSALS_BYTES_MAX:
            return False
        return len(self._waiting) + count <= PROPOSALS_WAITING_MAX

    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def take_unsent(
        self, *, units_max: int, bytes_max: int, at_least_one: bool = True
    ) -> list[Proposal]:
        """The next proposals to send, in order; marked as sent. By default one even if too large."""
        taken: list[Proposal] = []
        units = size = 0
        while self._unsent:
            waiting = self._waiting.get(self._unsent[0])
            if waiting is None or waiting.is_sent:
                self._unsent.popleft()
                continue
            more_units, more_bytes = waiting.units, waiting.size_bytes
            is_too_much = units + more_units > units_max or size + more_bytes > bytes_max
            if is_too_much and (taken or not at_least_one):
                break
            self._unsent.popleft()
            waiting.is_sent = waiting.batch.was_sent = True
            waiting.sent_count += 1
            waiting.proposal.attempt = waiting.sent_count
            units, size = units + more_units, size + more_bytes
            taken.append(waiting.proposal)
        return taken

    def put_back(self, sequences: Iterable[int]) -> None:
        """These were refused before they reached a log: send them again, and count them as unsent."""
        for sequence in sequences:
            waiting = self._waiting.get(sequence)
            if waiting is not None and waiting.is_sent:
                waiting.is_sent = False
                self._unsent.append(sequence)

    def resend_all(self) -> None:
        """The leader changed: whatever has no outcome yet is sent again, in order."""
        unfit = set(self._unfit)
        self._unsent = deque(sequence for sequence in self._waiting if sequence not in unfit)
        for sequence in self._unsent:
            self._waiting[sequence].is_sent = False

    def applied(self, proposal: Proposal, outcome: Outcome) -> None:
        """This node's ledger applied a proposal, its own or another's. A second arrival finds nobody waiting.

        Invariant: the copies of a proposal are applied in the order in which they were sent, so after
        the last one none can have an effect. To one leader they go over one ordered link, and one that
        was sent in an earlier term is never appended in a later.
        """
        if proposal.incarnation != self.incarnation:
            return
        waiting = self._waiting.get(proposal.sequence)
        if waiting is not None and outcome.reason and proposal.attempt < waiting.sent_count:
            return
        self.settle(proposal.sequence, outcome)

    def settle(self, sequence: int, outcome: Outcome) -> None:
        """This is the outcome, and the last one."""
        waiting = self._waiting.pop(sequence, None)
        if waiting is None:
            return
        self._waiting_bytes -= waiting.size_bytes
        batch = waiting.batch
        batch.outcomes[waiting.position] = outcome
        batch.open_count -= 1
        if batch.open_count == 0 and not batch.is_over:
            batch.is_over = True
            self._open_count -= 1
            batch.done([outcome for outcome in batch.outcomes if outcome is not None])

    def expire(self, now_ms: int) -> None:
        """Give up on batches whose deadline has passed, and on commands that no entry can hold."""
        unfit, self._unfit = self._unfit, []
        for sequence in unfit:
            self.settle(sequence, too_large())
        late: list[Batch] = []
        while self._batches and (self._batches[0][2].is_over or self._batches[0][0] <= now_ms):
            batch = heapq.heappop(self._batches)[2]
            if not batch.is_over:
                self._drop(batch)
                late.append(batch)
        if len(self._batches) > 2 * self._open_count + FINISHED_KEPT_MAX:
            self._batches = [item for item in self._batches if not item[2].is_over]
            heapq.heapify(self._batches)
        for batch in late:
            batch.done(self._late_error(batch))

    def fail_all(self, error: ConsensusError) -> None:
        """The node stops: nobody waits any longer."""
        batches = [batch for _, _, batch in sorted(self._batches) if not batch.is_over]
        self._batches.clear()
        for batch in batches:
            self._drop(batch)
        for batch in batches:
            batch.done(OutcomeUnknown(str(error)) if batch.was_sent else error)

    def refuse_unsent(self, error: ConsensusError) -> None:
        """This node can write nothing now: what it never sent is surely not written, and is told so."""
        unsent = [one for _, _, one in sorted(self._batches) if not (one.is_over or one.was_sent)]
        for batch in unsent:
            self._drop(batch)
        for batch in unsent:
            batch.done(error)

    def _drop(self, batch: Batch) -> None:
        batch.is_over = True
        self._open_count -= 1
        for sequence in range(batch.first_sequence, batch.first_sequence + len(batch.outcomes)):
            waiting = self._waiting.pop(sequence, None)
            if waiting is not None:
                self._waiting_bytes -= waiting.size_bytes

    @staticmethod
    def _late_error(batch: Batch) -> ConsensusError:
        if batch.was_sent:
            return OutcomeUnknown("sent to the log, but its outcome did not come back in time")
        return Unavailable("no leader that can commit; nothing was written")


def too_large() -> Outcome:
    message = f"a command has at most {ENTRY_BYTES_MAX:,} bytes: store large values elsewhere"
    return Outcome(reason=values_pb2.VALUE_TOO_LARGE, message=message)


def cost(proposal: Proposal) -> tuple[int, int]:
    """Units of work and bytes of a proposal, as entries are bounded by them."""
    size = proposal.ByteSize()
    kind = proposal.command.WhichOneof("kind")
    if kind == "submit":
        return 1 + size // UNIT_BYTES, size
    if kind == "complete":
        return 1 + len(proposal.command.complete.completion.spawn.subtasks), size
    return 1, size


def cost_of(proposals: Sequence[Proposal]) -> tuple[int, int]:
    """Units and bytes of several."""
    costs = [cost(proposal) for proposal in proposals]
    return sum(units for units, _ in costs), sum(size for _, size in costs)

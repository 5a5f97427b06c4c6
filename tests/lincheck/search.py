"""Looks for one order of operations that explains a history of one key.

Wing and Gong's search (Testing and Verifying Concurrent Objects, 1993) over a linked list of calls
and returns, with Lowe's memory of configurations seen (Testing for Linearizability, 2017). Departs
from both in two ways that the models allow (see models.py): an operation that fits and leaves the
state as it is is taken at once and never tried later; an optional operation is tried only where it
changes the state, since otherwise it may as well not have happened yet.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tests.lincheck.history import Operation
from tests.lincheck.models import Model, State, model_of

CONFIGURATIONS_MAX = 500_000  # remembered per key
STEPS_PER_LOOK = 4_096  # between looks at the clock


class Answer(Enum):
    FOUND = "an order was found"
    NONE = "no order explains it"
    TOO_LONG = "the time ran out"
    TOO_MANY = "it has more configurations than may be remembered"


@dataclass(frozen=True, slots=True)
class Found:
    """What the search came to. Where it got furthest: the state there, and who could not follow."""

    answer: Answer
    state: State
    stuck: Operation | None
    placed_count: int
    configuration_count: int


@dataclass(frozen=True, slots=True)
class _Choice:
    op: int
    state: State  # before it
    is_forced: bool


def find_order(
    operations: Sequence[Operation],
    optional: Sequence[bool],
    *,
    until_s: float,
    configurations_max: int = CONFIGURATIONS_MAX,
) -> Found:
    """Search one key's history; optional operations may be left out. until_s: monotonic time."""
    search = _Search(model_of(operations[0].key), operations, optional)
    return search.run(until_s, configurations_max)


class _Search:
    """Events are numbered by time from 1; 0 is the head of the list, the last one its end."""

    def __init__(
        self, model: Model, operations: Sequence[Operation], optional: Sequence[bool]
    ) -> None:
        self.model = model
        self.operations = operations
        self.optional = optional
        self.op_of: list[int] = [-1]
        self.is_call: list[bool] = [False]
        self.call_of = [0] * len(operations)
        self.return_of = [0] * len(operations)  # 0: never returns
        for _, is_return, op in self._events():
            (self.return_of if is_return else self.call_of)[op] = len(self.op_of)
            self.op_of.append(op)
            self.is_call.append(not is_return)
        count = len(self.op_of)
        self.op_of.append(-1)
        self.is_call.append(False)
        self.following = [*range(1, count + 1), 0]
        self.previous = [0, *range(count)]
        self.state = model.initial
        self.placed = 0  # bits of the operations that are in the order
        self.choices: list[_Choice] = []
        self.due_count = sum(not each for each in optional)  # must still be placed
        self.furthest = (-1, model.initial, -1)

    def _events(self) -> list[tuple[int, bool, int]]:
        """At equal times calls come first: the two may have overlapped."""
        events = [(each.call_ns, False, op) for op, each in enumerate(self.operations)]
        for op, each in enumerate(self.operations):
            if not self.optional[op]:
                assert each.return_ns is not None
                events.append((each.return_ns, True, op))
        return sorted(events)

    def run(self, until_s: float, configurations_max: int) -> Found:
        seen: set[tuple[int, State]] = set()
        self._take_neutral()
        event, step_count = self.following[0], 0
        while self.due_count:
            step_count += 1
            if step_count % STEPS_PER_LOOK == 0 and time.monotonic() > until_s:
                return self._found(Answer.TOO_LONG, len(seen))
            if self.is_call[event]:
                after = self._follow(event)
                if after is None or (self._with(event), after) in seen:
                    event = self.following[event]
                    continue
                if len(seen) >= configurations_max:
                    return self._found(Answer.TOO_MANY, len(seen))
                seen.add((self._with(event), after))
                self._place(self.op_of[event], after, is_forced=False)
                self._take_neutral()
                event = self.following[0]
                continue
            if len(self.choices) > self.furthest[0]:
                self.furthest = (len(self.choices), self.state, self.op_of[event])
            undone = self._undo()
            if undone is None:
                return self._found(Answer.NONE, len(seen))
            event = self.following[self.call_of[undone]]
        self.furthest = (len(self.choices), self.state, -1)
        return self._found(Answer.FOUND, len(seen))

    def _follow(self, event: int) -> State | None:
        op = self.op_of[event]
        after = self.model.step(self.state, self.operations[op])
        return None if self.optional[op] and after == self.state else after

    def _with(self, event: int) -> int:
        return self.placed | 1 << self.op_of[event]

    def _take_neutral(self) -> None:
        """Place all that may come now and changes nothing."""
        event = self.following[0]
        while self.is_call[event]:
            op = self.op_of[event]
            following = self.following[event]
            if not self.optional[op] and self._changes_nothing(op):
                if following == self.return_of[op]:
                    following = self.following[following]
                self._place(op, self.state, is_forced=True)
            event = following

    def _changes_nothing(self, op: int) -> bool:
        return self.model.step(self.state, self.operations[op]) == self.state

    def _place(self, op: int, after: State, *, is_forced: bool) -> None:
        self.choices.append(_Choice(op, self.state, is_forced))
        self.placed |= 1 << op
        self.state = after
        self.due_count -= not self.optional[op]
        for event in (self.call_of[op], self.return_of[op]):
            if event:
                self.following[self.previous[event]] = self.following[event]
                self.previous[self.following[event]] = self.previous[event]

    def _undo(self) -> int | None:
        """Take back up to the last choice that had others beside it; which one it was."""
        while self.choices:
            choice = self.choices.pop()
            for event in (self.return_of[choice.op], self.call_of[choice.op]):
                if event:
                    self.following[self.previous[event]] = event
                    self.previous[self.following[event]] = event
            self.placed ^= 1 << choice.op
            self.state = choice.state
            self.due_count += not self.optional[choice.op]
            if not choice.is_forced:
                return choice.op
        return None

    def _found(self, answer: Answer, configuration_count: int) -> Found:
        placed_count, state, op = self.furthest
        stuck = self.operations[op] if op >= 0 else None
        return Found(answer, state, stuck, placed_count, configuration_count)

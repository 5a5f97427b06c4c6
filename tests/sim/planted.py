"""Bugs planted on purpose, each of which the simulator must catch: `scripts/sim --planted NAME`.

To add one: write a context manager that swaps one function or method of the production code for a
broken one and puts it back, give it the bug's name with `@plants("name")`, and say in its docstring
what it breaks. The swap has to be at the place where production looks the name up: a method on its
class, a function in the module that calls it (`swapped(core, "checkpoint_at_once", broken)` when
core.py imported it by name). `tests/sim/test_planted.py` then demands that it be caught within 200
seeds. What belongs to the engine lies in planted_engine.py, what belongs to the ledger in
planted_ledger.py. This is the one place where replacing code is right: a planted bug is that by nature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from quorumesh.v1.ledger_pb2 import Outcome, Proposal, Submit

from consensus.core import Core
from consensus.engine.outbox import Outbox
from consensus.leadership import Leadership
from consensus.ledger import machine, tasks
from consensus.ledger.store import Store
from consensus.ports import Link

Plant = Callable[[], AbstractContextManager[None]]
_PLANTS: dict[str, Plant] = {}
_WEIGHTS: dict[str, dict[str, int]] = {}


def plants(name: str, **weights: int) -> Callable[[Plant], Plant]:
    """Register a planted bug under this name; `weights` of faults that bring it to light sooner."""

    def register(plant: Plant) -> Plant:
        _PLANTS[name], _WEIGHTS[name] = plant, weights
        return plant

    return register


@contextmanager
def swapped(owner: Any, name: str, broken: Any) -> Iterator[None]:
    """Within the block `owner.name` is the broken one."""
    sound = owner.__dict__[name]
    setattr(owner, name, broken)
    try:
        yield
    finally:
        setattr(owner, name, sound)


@contextmanager
def swapped_item(table: dict[str, Any], key: str, broken: Any) -> Iterator[None]:
    """Within the block `table[key]` is the broken one."""
    sound = table[key]
    table[key] = broken
    try:
        yield
    finally:
        table[key] = sound


@plants("say-before-sync")
def say_before_sync() -> AbstractContextManager[None]:
    """Frames leave at once, whatever they say of entries that no disk holds yet."""

    def send(self: Any, peer: str, frame: Any, *, needs_offset: int, synced_offset: int) -> bool:
        link: Link = self._link
        return link.send(peer, frame)

    return swapped(Outbox, "send", send)


@plants("drop-idempotency")
def drop_idempotency() -> AbstractContextManager[None]:
    """A task that is sent again is refused as if somebody else had taken its name."""
    sound = tasks.submit

    def submit(store: Store, command: Submit) -> Outcome:
        if store.find_task(command.task_id, command.tenant) is not None:
            command.task_id += b"'"
        return sound(store, command)

    return swapped_item(machine._HANDLERS, "submit", submit)


@plants("match-outcomes-by-log-index")
@contextmanager
def match_outcomes_by_log_index() -> Iterator[None]:
    """Who appended a proposal gets the outcome of whatever is applied at that index in the end."""
    appended: dict[tuple[int, int], list[int]] = {}
    sound_append, sound_apply = Leadership._append, Core.apply

    def append(self: Leadership, proposals: Sequence[Proposal]) -> None:
        sound_append(self, proposals)
        incarnation = self._core.proposals.incarnation
        appended[incarnation, self._timer_index] = [
            p.sequence for p in proposals if p.incarnation == incarnation
        ]

    def apply(self: Core, index: int, term: int, command: bytes) -> None:
        sequences = appended.pop((self.proposals.incarnation, index), [])
        sound_apply(self, index, term, command)
        outcome = Outcome(revision=index)
        for sequence in sequences:
            self.proposals.settle(sequence, outcome)

    with swapped(Leadership, "_append", append), swapped(Core, "apply", apply):
        yield


def names() -> tuple[str, ...]:
    """All planted bugs, those of the engine and of the ledger among them."""
    from tests.sim import planted_engine, planted_ledger  # they register themselves here

    assert planted_engine and planted_ledger
    return tuple(sorted(_PLANTS))


def weights_of(name: str | None) -> dict[str, int]:
    """The weights of faults under which this planted bug is looked for, where not the usual ones."""
    return _WEIGHTS.get(name or "", {})


def switched_on(name: str | None) -> AbstractContextManager[None]:
    """The planted bug of this name, for as long as the block lasts; none for None."""
    return _PLANTS[name]() if name in names() else nullcontext()


__all__ = ["names", "plants", "swapped", "swapped_item", "switched_on", "weights_of"]

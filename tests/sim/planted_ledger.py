"""Planted bugs of the ledger and of what time does to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from quorumesh.v1.ledger_pb2 import Command, Entry, Outcome
from quorumesh.v1.workers_pb2 import Completion

from consensus.core import Core
from consensus.leadership import Leadership
from consensus.ledger import claims, machine, sessions
from consensus.ledger.records import CLAIMED, Session, Subtask
from consensus.ledger.store import Store
from consensus.proposals import Proposals
from tests.sim.planted import plants, swapped, swapped_item


@plants("expire-by-wall-clock")
def expire_by_wall_clock() -> AbstractContextManager[None]:
    """Leases and deadlines are compared with the clock on each node's own wall."""
    sound = Core.apply

    def apply(self: Any, index: int, term: int, command: bytes) -> None:
        if command[0] == 0:
            entry = Entry.FromString(command[1:])
            entry.counted_ms = max(0, self.wall_ms() - 1_700_000_000_000)
            command = command[:1] + entry.SerializeToString()
        sound(self, index, term, command)

    return swapped(Core, "apply", apply)


@plants("reuse-a-fence")
@contextmanager
def reuse_a_fence() -> Iterator[None]:
    """A lease that ran out gives its fence back."""
    sound = sessions.expire

    def expire(store: Store, session: Session) -> None:
        sound(store, session)
        store.meta.fence -= 1

    from consensus.ledger import timers

    with swapped(timers, "expire", expire):
        yield


@plants("take-any-fence")
def take_any_fence() -> AbstractContextManager[None]:
    """A result is taken from whoever brings it while the subtask is claimed by anybody."""
    sound = claims._check_claim

    def check(store: Store, subtask: Subtask, fence: int, what: str) -> None:
        if subtask.state != CLAIMED:
            sound(store, subtask, fence, what)

    return swapped(claims, "_check_claim", check)


@plants("lost-spawn")
def lost_spawn() -> AbstractContextManager[None]:
    """The completion that spawns is taken, what it spawns is not."""
    sound = claims.complete

    def complete(store: Store, completion: Completion) -> Outcome:
        completion.ClearField("spawn")
        return sound(store, completion)

    return swapped(claims, "complete", complete)


@plants("lost-cancel")
def lost_cancel() -> AbstractContextManager[None]:
    """A cancellation is accepted and forgotten."""

    def cancel(store: Store, command: Any) -> Outcome:
        return Outcome(revision=store.meta.applied_index)

    return swapped_item(machine._HANDLERS, "cancel", cancel)


@plants("read-without-barrier")
def read_without_barrier() -> AbstractContextManager[None]:
    """A barrier is answered at once, from whatever this node happens to hold."""
    sound = Core.propose

    def propose(self: Any, commands: list[Command], *, deadline_ms: int, done: Any) -> None:
        if all(command.HasField("barrier") for command in commands):
            done([Outcome(revision=self.applied_index) for _ in commands])
            return
        sound(self, commands, deadline_ms=deadline_ms, done=done)

    return swapped(Core, "propose", propose)


@plants("answer-before-commit")
@contextmanager
def answer_before_commit() -> Iterator[None]:
    """The leader tells its own clients that a command is done as soon as it has appended it."""
    sound = Leadership._append

    def append(self: Any, proposals: Any) -> None:
        sound(self, proposals)
        own: Proposals = self._core.proposals
        for proposal in proposals:
            if proposal.incarnation == own.incarnation and proposal.command.HasField("submit"):
                own.settle(proposal.sequence, Outcome(revision=self._core.engine.last_index))

    with swapped(Leadership, "_append", append):
        yield

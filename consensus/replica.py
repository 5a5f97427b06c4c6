"""The replica on an asyncio loop: what a node proposes through, reads from and listens to."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from quorumesh.v1.ledger_pb2 import Command, Outcome

from consensus.barriers import Barriers
from consensus.core import TICK_MS, Core, Observer, Ports, ReplicaConfig
from consensus.errors import ConsensusError, Unavailable
from consensus.ledger import Applied, Ledger, Reader
from consensus.ports import Background
from consensus.view import ReplicaView

REVISION_WAITERS_MAX = 10_000


class Replica:
    """One node's copy of the ledger and its way into the log. Opened by `run()`, closed by cancelling it.

    Raises Damaged from the constructor when the folder cannot be trusted.
    """

    def __init__(self, config: ReplicaConfig, ports: Ports) -> None:
        self._clock = ports.clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn_due = False
        self._is_over = False
        self._broken: asyncio.Future[None] | None = None
        self._revision_waiters: list[tuple[int, int, asyncio.Future[None]]] = []
        self._waiter_ids = itertools.count()
        background = _Guarded(ports.background, self._break)
        syncs = _Guarded(ports.syncs or ports.background, self._break)
        guarded = replace(ports, background=background, syncs=syncs)
        self.core = Core(config, guarded, on_wake=self._wake)
        self._barriers = Barriers(self.core)
        self.core.observe(self)

    @property
    def node_id(self) -> str:
        return self.core.config.node_id

    @property
    def ledger(self) -> Ledger:
        return self.core.ledger

    @property
    def reader(self) -> Reader:
        """Read-only queries on the ledger in force. Ask for it each time: an install replaces it."""
        return self.core.reader

    def view(self) -> ReplicaView:
        return self.core.view()

    def counted_now_ms(self) -> int:
        """The mesh's counted time, as estimated here and now."""
        return self.core.counted.now_ms()

    def subscribe(self, observer: Observer) -> None:
        """Be told of every entry applied here, in log order, on the loop."""
        self.core.observe(observer)

    async def run(self) -> None:
        """Drive the replica until cancelled. A bug in it ends this with the bug's exception."""
        self._loop = asyncio.get_running_loop()
        self._broken = self._loop.create_future()
        periodic = self._loop.call_later(0, self._periodic)
        try:
            await self._broken
        finally:
            periodic.cancel()
            self._loop, self._is_over = None, True
            self._fail_waiters(Unavailable("this node is stopping"))
            self._barriers.close()
            self.core.close()

    def _periodic(self) -> None:
        if self._loop is not None:
            self._loop.call_later(TICK_MS / 1_000, self._periodic)
            # Not a turn at once: another one that is due already would go on beside it, and while
            # there is much to apply ever more of them would run before the loop has its turn.
            self._wake()

    def _wake(self) -> None:
        if not self._turn_due and self._loop is not None:
            self._turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_due = False
        if self._loop is None:
            return
        try:
            self.core.turn()
            self._barriers.expire()
        except BaseException as bug:
            self._break(bug)

    def _break(self, bug: BaseException) -> None:
        """A bug is not handled here: it ends run(), and so the node. Bugs stop loudly."""
        if self._broken is None:
            raise bug
        self._loop, self._is_over = None, True
        if not self._broken.done():
            self._broken.set_exception(bug)

    async def propose(self, commands: Sequence[Command], *, timeout_ms: int) -> list[Outcome]:
        """Bring commands into the log; their outcomes, in order, once this node has applied them.

        Raises Unavailable when nothing was written, OutcomeUnknown when that is not known: then send
        the very same commands again.
        """
        self.core.refuse_diverged()
        if self._is_over:
            raise Unavailable("this node has stopped")
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

        def done(result: list[Outcome] | ConsensusError) -> None:
            if future.done():
                return
            if isinstance(result, ConsensusError):
                future.set_exception(result)
            else:
                future.set_result(result)

        deadline_ms = self._clock.monotonic_ms() + timeout_ms
        self.core.propose(commands, deadline_ms=deadline_ms, done=done)
        return await future

    async def add_voter(self, node_id: str, *, timeout_ms: int) -> None:
        """Give a member a vote as soon as it has caught up. Idempotent; any node may be asked.

        Returns once this node's ledger shows it. Raises ChangeRefused or Unavailable when nothing
        was changed, OutcomeUnknown when that is not known: then ask again.
        """
        await self._changed(partial(self.core.membership.add_voter, node_id), timeout_ms)

    async def remove_voter(self, node_id: str, *, timeout_ms: int) -> None:
        """Remove a node from the mesh for good; its id is never admitted again. As add_voter."""
        await self._changed(partial(self.core.membership.remove_voter, node_id), timeout_ms)

    async def replace_voter(self, old: str, new: str, *, timeout_ms: int) -> None:
        """Give `new` a vote, then remove `old`. As add_voter."""
        await self._changed(partial(self.core.membership.replace_voter, old, new), timeout_ms)

    async def _changed(self, ask: Callable[..., None], timeout_ms: int) -> None:
        if self._is_over:
            raise Unavailable("this node has stopped")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: ConsensusError | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(None)

        ask(deadline_ms=self._clock.monotonic_ms() + timeout_ms, done=done)
        await future

    async def barrier(self, *, timeout_ms: int) -> int:
        """A revision that covers every write acknowledged anywhere before this call (linearizable).

        Raises Unavailable or OutcomeUnknown when none is known within this call's own time.
        """
        return await self._barriers.wait(timeout_ms=timeout_ms)

    async def wait_revision(self, revision: int, *, timeout_ms: int) -> None:
        """Return once this node has applied the revision; Unavailable if it has not in time."""
        if self.ledger.applied_index >= revision:
            return
        if self._is_over:
            raise Unavailable("this node has stopped")
        if len(self._revision_waiters) >= REVISION_WAITERS_MAX:
            self._forget_waiters()
        if len(self._revision_waiters) >= REVISION_WAITERS_MAX:
            raise Unavailable("too many readers wait for a revision")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._revision_waiters, (revision, next(self._waiter_ids), future))
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                await future
        except TimeoutError as error:
            raise Unavailable(f"revision {revision} has not reached this node yet") from error

    def entry_applied(self, applied: Applied) -> None:
        self._release_waiters(applied.revision)

    def ledger_replaced(self) -> None:
        self._release_waiters(self.ledger.applied_index)

    def _release_waiters(self, revision: int) -> None:
        while self._revision_waiters and self._revision_waiters[0][0] <= revision:
            _, _, future = heapq.heappop(self._revision_waiters)
            if not future.done():
                future.set_result(None)

    def _forget_waiters(self) -> None:
        """Those that gave up leave; a revision that never comes would keep them for ever."""
        self._revision_waiters = [w for w in self._revision_waiters if not w[2].done()]
        heapq.heapify(self._revision_waiters)

    def _fail_waiters(self, error: ConsensusError) -> None:
        for _, _, future in self._revision_waiters:
            if not future.done():
                future.set_exception(error)
        self._revision_waiters.clear()


class _Guarded:
    """A background whose ends are part of the replica: a bug in one ends it too."""

    def __init__(self, background: Background, on_bug: Callable[[BaseException], None]) -> None:
        self._background = background
        self._on_bug = on_bug

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def guarded(error: BaseException | None) -> None:
            try:
                done(error)
            except BaseException as bug:
                self._on_bug(bug)

        self._background.run(work, guarded)

"""Linearizable reads: a reader waits for a barrier in the log, and readers of one turn share an entry.

Each reader has its own deadline: who gives up early ends nobody else's read, and who may wait long
is not cut short by whoever came first. It reads nothing itself.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import Barrier, Command, Outcome

from consensus.errors import ConsensusError, Unavailable

if TYPE_CHECKING:
    from consensus.core import Core

BARRIER_READERS_MAX = 10_000

Answer = asyncio.Future[int]


class Barriers:
    """The readers of one replica. On its loop; `expire` is called with each of its turns."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._joining: list[tuple[int, Answer]] = []  # of this turn of the loop, with deadlines
        self._waiting: list[tuple[int, int, Answer]] = []  # a heap by deadline; some are answered
        self._open_count = 0  # readers that have not returned
        self._ids = itertools.count()
        self._is_closed = False

    async def wait(self, *, timeout_ms: int) -> int:
        """The revision of a barrier that was asked for after this call. Unavailable: not in time."""
        if self._is_closed:
            raise Unavailable("this node has stopped")
        if self._open_count >= BARRIER_READERS_MAX:
            raise Unavailable("too many readers wait for a barrier")
        self._open_count += 1
        try:
            return await self._join(self._core.now_ms() + timeout_ms)
        finally:
            self._open_count -= 1

    def _join(self, deadline_ms: int) -> Answer:
        # Swept once in so many readers, so that none of them pays for all.
        if len(self._waiting) >= 2 * BARRIER_READERS_MAX:
            self._waiting = [one for one in self._waiting if not one[2].done()]
            heapq.heapify(self._waiting)
        loop = asyncio.get_running_loop()
        answer: Answer = loop.create_future()
        heapq.heappush(self._waiting, (deadline_ms, next(self._ids), answer))
        # Later readers need a later entry: this one may be ordered before what they must see.
        if not self._joining:
            loop.call_soon(self._ask)
        self._joining.append((deadline_ms, answer))
        return answer

    def _ask(self) -> None:
        readers, self._joining = self._joining, []
        answers = [answer for _, answer in readers]

        def done(result: list[Outcome] | ConsensusError) -> None:
            for answer in answers:
                _settle(answer, result)

        if self._is_closed:
            done(Unavailable("this node has stopped"))
            return
        deadline_ms = max(deadline_ms for deadline_ms, _ in readers)
        try:
            self._core.propose([Command(barrier=Barrier())], deadline_ms=deadline_ms, done=done)
        except ConsensusError as refused:
            done(refused)

    def expire(self) -> None:
        """Whose deadline has passed waits no longer; those who share its barrier do."""
        now_ms = self._core.now_ms()
        while self._waiting and (self._waiting[0][2].done() or self._waiting[0][0] <= now_ms):
            _, _, answer = heapq.heappop(self._waiting)
            _settle(answer, Unavailable("no barrier came back in time: the read is not confirmed"))

    def close(self) -> None:
        """The node stops: who joined last is told so; the others hear it from the proposals."""
        self._is_closed = True


def _settle(answer: Answer, result: list[Outcome] | ConsensusError) -> None:
    if answer.done():
        return  # its reader gave up
    if isinstance(result, ConsensusError):
        answer.set_exception(result)
    else:
        answer.set_result(result[0].revision)

"""Hands what the ledger changed to those who watch, without a query per watcher.

Soft state only: whoever falls behind is told so and reads on from the ledger by revision.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from quorumesh.v1.tasks_pb2 import TaskEvent

from consensus.errors import Unavailable
from consensus.ledger import Applied

WATCHERS_MAX = 10_000
BATCHES_WAITING_MAX = 256  # revisions that wait for one watcher; more: it reads them again
EVENTS_WAITING_MAX = 4_096  # events in them
LAST_EVENTS = frozenset({TaskEvent.TASK_SUCCEEDED, TaskEvent.TASK_FAILED, TaskEvent.TASK_CANCELLED})


@dataclass(frozen=True, slots=True)
class Batch:
    """The events of one revision for one watcher, in order. Soft ones have revision 0."""

    revision: int
    events: tuple[TaskEvent, ...]


class Watcher:
    """One stream's share of the feed. `is_behind`: read on from the ledger instead."""

    def __init__(self, task_id: bytes) -> None:
        self.task_id = task_id
        self.is_behind = True
        self._batches: deque[Batch] = deque()
        self._event_count = 0
        self._wake = asyncio.Event()

    def put(self, batch: Batch) -> None:
        if self.is_behind and batch.revision:
            self._wake.set()
            return
        if (
            len(self._batches) >= BATCHES_WAITING_MAX
            or self._event_count + len(batch.events) > EVENTS_WAITING_MAX
        ):
            if batch.revision:
                self.fall_behind()
            return
        self._batches.append(batch)
        self._event_count += len(batch.events)
        self._wake.set()

    def fall_behind(self) -> None:
        """Nothing is lost: what waits here is read again from the ledger."""
        self._batches.clear()
        self._event_count = 0
        self.is_behind = True
        self._wake.set()

    def catch_up(self) -> None:
        """From here on, batches are put in again. Call it before reading the ledger."""
        self._batches.clear()
        self._event_count = 0
        self.is_behind = False

    def take(self) -> list[Batch]:
        taken = list(self._batches)
        self._batches.clear()
        self._event_count = 0
        return taken

    async def wait(self) -> None:
        """Return when there is something to take, or it has fallen behind."""
        if not self._batches and not self.is_behind:
            self._wake.clear()
            await self._wake.wait()


class Feed:
    """Observes the replica, and serves all watchers and waiters of this node."""

    def __init__(self) -> None:
        self._watchers: dict[bytes, list[Watcher]] = {}  # an empty task id: all tasks
        self._watcher_count = 0
        self._enders: dict[bytes, list[asyncio.Future[None]]] = {}
        self._ender_count = 0

    @property
    def watcher_count(self) -> int:
        return self._watcher_count + self._ender_count

    @contextmanager
    def watching(self, task_id: bytes) -> Iterator[Watcher]:
        """A watcher of one task, or of all with an empty id. Raises Unavailable: too many."""
        self._check_room()
        watcher = Watcher(task_id)
        self._watchers.setdefault(task_id, []).append(watcher)
        self._watcher_count += 1
        try:
            yield watcher
        finally:
            self._watcher_count -= 1
            others = self._watchers[task_id]
            others.remove(watcher)
            if not others:
                del self._watchers[task_id]

    @contextmanager
    def ending(self, task_id: bytes) -> Iterator[asyncio.Future[None]]:
        """A future that is done when the task may have ended. Look again then."""
        self._check_room()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._enders.setdefault(task_id, []).append(future)
        self._ender_count += 1
        try:
            yield future
        finally:
            self._ender_count -= 1
            others = self._enders[task_id]
            others.remove(future)
            if not others:
                del self._enders[task_id]

    def _check_room(self) -> None:
        if self.watcher_count >= WATCHERS_MAX:
            raise Unavailable("too many watch through this node; try another", retry_ms=1_000)

    def entry_applied(self, applied: Applied) -> None:
        events = applied.events
        if not events or not (self._watchers or self._enders):
            return
        everyone = self._watchers.get(b"")
        if everyone:
            whole = Batch(applied.revision, tuple(events))
            for watcher in everyone:
                watcher.put(whole)
        by_task: dict[bytes, list[TaskEvent]] = {}
        for event in events:
            if event.kind in LAST_EVENTS:
                self._release(event.task_id)
            if event.task_id in self._watchers:
                by_task.setdefault(event.task_id, []).append(event)
        for task_id, its in by_task.items():
            batch = Batch(applied.revision, tuple(its))
            for watcher in self._watchers[task_id]:
                watcher.put(batch)

    def ledger_replaced(self) -> None:
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.fall_behind()
        for task_id in list(self._enders):
            self._release(task_id)

    def soft(self, event: TaskEvent) -> None:
        """Progress: given to whoever watches now, dropped where there is no room."""
        batch = Batch(0, (event,))
        for key in (event.task_id, b""):
            for watcher in self._watchers.get(key, ()):
                watcher.put(batch)

    def _release(self, task_id: bytes) -> None:
        for future in self._enders.get(task_id, ()):
            if not future.done():
                future.set_result(None)

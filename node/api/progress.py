"""Soft progress, from this node's workers to those who watch here. It may be lost; results not."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from types import TracebackType

from quorumesh.v1.tasks_pb2 import TaskEvent

EVENTS_KEPT_MAX = 64  # per subscriber; the oldest go first
SUBSCRIBERS_MAX = 10_000


class ProgressFull(Exception):
    """There are SUBSCRIBERS_MAX subscribers already."""


class Subscription:
    """What one watcher has not read yet. Use it as a context: leaving ends it."""

    def __init__(self, hub: ProgressHub, task_id: bytes) -> None:
        self._hub = hub
        self.task_id = task_id
        self._events: deque[TaskEvent] = deque(maxlen=EVENTS_KEPT_MAX)
        self._wake = asyncio.Event()

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hub.unsubscribe(self)

    def push(self, event: TaskEvent) -> None:
        self._events.append(event)
        self._wake.set()

    def drain(self) -> list[TaskEvent]:
        """All that has come since the last call, oldest first."""
        events = list(self._events)
        self._events.clear()
        self._wake.clear()
        return events

    async def next(self) -> list[TaskEvent]:
        """Wait until there is something, then give all of it."""
        await self._wake.wait()
        return self.drain()


@dataclass(frozen=True, slots=True)
class ProgressStats:
    subscriber_count: int
    published_count: int


class ProgressHub:
    """Hands each progress event to those who watch its task, or all tasks (an empty task id)."""

    def __init__(self) -> None:
        self._subscribers: dict[bytes, list[Subscription]] = {}
        self._subscriber_count = 0
        self._published_count = 0

    def subscribe(self, task_id: bytes) -> Subscription:
        """Watch one task, or all with an empty id. Raises ProgressFull."""
        if self._subscriber_count >= SUBSCRIBERS_MAX:
            raise ProgressFull
        subscription = Subscription(self, task_id)
        self._subscribers.setdefault(task_id, []).append(subscription)
        self._subscriber_count += 1
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End it. Again: nothing happens."""
        those = self._subscribers.get(subscription.task_id, [])
        if subscription in those:
            those.remove(subscription)
            self._subscriber_count -= 1
        if not those:
            self._subscribers.pop(subscription.task_id, None)

    def publish(self, event: TaskEvent) -> None:
        self._published_count += 1
        for key in {event.task_id, b""}:
            for subscription in self._subscribers.get(key, ()):
                subscription.push(event)

    def stats(self) -> ProgressStats:
        return ProgressStats(self._subscriber_count, self._published_count)

"""What is seen from outside while a mesh works: load and its gaps, bytes on disk, holds of the loops."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from mesh import AsyncClient
from mesh.client_errors import MeshError
from tests.bench.loads import flat
from tests.e2e.mesh_process import NodeProcess

SUBMIT_EVERY_S = 0.02
PENDING_MAX = 500
LOOK_S = 0.05
WAIT_S = 120.0
BUCKETS_KEPT_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Hold:
    """The loop did not run for so long; `starved_ms` of it no processor was free for it.

    Of the rest it ran for `cpu_ms`, and waited for something else: the disk, another thread. Only one
    thread runs Python at a time: for `others_starved_ms` another one, at the most, waited for a
    processor. For `gc_ms` whichever thread collected garbage, the loop's or another.
    """

    at_s: float
    held_ms: float
    starved_ms: float
    cpu_ms: float
    others_starved_ms: float
    gc_ms: float
    stack: str

    @property
    def own_ms(self) -> float:
        """Less the lack of processors; another thread's, only as far as the loop did not run itself."""
        waited_ms = max(0.0, self.held_ms - self.starved_ms - self.cpu_ms)
        return max(0.0, self.held_ms - self.starved_ms - min(self.others_starved_ms, waited_ms))


def holds_of(path: Path, *, since_s: float = 0.0, until_s: float = float("inf")) -> list[Hold]:
    """The holds that a probed node wrote down in a stretch of monotonic time, longest first."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    holds = [Hold(**json.loads(line)) for line in lines if line.endswith("}")]
    inside = [hold for hold in holds if since_s <= hold.at_s <= until_s]
    return sorted(inside, key=lambda hold: -hold.own_ms)


@dataclass
class Load:
    """Submits tasks of a few subtasks at an even pace through a node, and waits for each to end."""

    node: NodeProcess
    rate: int
    acknowledged_s: deque[float] = field(default_factory=lambda: deque(maxlen=BUCKETS_KEPT_MAX))
    ended_s: deque[float] = field(default_factory=lambda: deque(maxlen=BUCKETS_KEPT_MAX))
    failed_count: int = 0
    _begun: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def subtasks_each(self) -> int:
        return max(1, round(self.rate * SUBMIT_EVERY_S))

    async def run(self) -> None:
        """Until cancelled. What finds no room is left out and shows in the rate."""
        pending: set[asyncio.Task[None]] = set()
        start_s = time.monotonic()
        async with (
            AsyncClient([self.node.address], profile=self.node.profile, timeout_s=WAIT_S) as client,
            asyncio.TaskGroup() as group,
        ):
            for number in itertools.count():
                if len(pending) < PENDING_MAX:
                    task = group.create_task(self._one(client, number))
                    pending.add(task)
                    task.add_done_callback(pending.discard)
                # By the clock and not from one to the next, so that the pace is the one asked for.
                await asyncio.sleep(start_s + (number + 1) * SUBMIT_EVERY_S - time.monotonic())

    async def _one(self, client: AsyncClient, number: int) -> None:
        try:
            task_id = await client.submit(flat(self.subtasks_each, f"load {number}"))
            self.acknowledged_s.append(time.monotonic())
            await client.ended(task_id, WAIT_S)
            self.ended_s.append(time.monotonic())
            self._begun.set()
        except MeshError:
            self.failed_count += 1

    async def has_begun(self) -> None:
        """Returns once the first task has ended; TimeoutError when none does."""
        async with asyncio.timeout(WAIT_S):
            await self._begun.wait()

    def gap_s(self, since_s: float, until_s: float) -> float:
        """The longest time between two acknowledged submits."""
        inside = [at for at in self.acknowledged_s if since_s <= at <= until_s]
        pairs = itertools.pairwise([since_s, *inside, until_s])
        return max(later - earlier for earlier, later in pairs)

    def done_per_s(self, since_s: float, until_s: float) -> float:
        """Subtasks of ended tasks per second."""
        count = sum(since_s <= at <= until_s for at in self.ended_s)
        return count * self.subtasks_each / (until_s - since_s)


class Bytes:
    """Looks at the journal and the write-ahead logs of nodes all the time; keeps the largest seen."""

    def __init__(self, nodes: list[NodeProcess]) -> None:
        self._nodes = nodes
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.journal_bytes = 0
        self.wal_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(LOOK_S):
            for node in self._nodes:
                state = node.data / "state"
                journal = _bytes(list((state / "journal").glob("*.journal")))
                self.journal_bytes = max(self.journal_bytes, journal)
                for wal in state.glob("ledger-*/*-wal"):
                    self.wal_bytes = max(self.wal_bytes, _bytes([wal]))


def _bytes(paths: list[Path]) -> int:
    count = 0
    for path in paths:
        with contextlib.suppress(OSError):
            count += path.stat().st_size
    return count

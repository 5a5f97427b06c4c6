"""Clients and recording workers on a thread of their own, beside the faults."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.e2e.mesh_process import NodeProcess
from tests.torture.clients import Clients, Promises, Target
from tests.torture.history import History
from tests.torture.worker import Effects, RecordingWorker, Seat

CLIENTS_PER_NODE = 5
JOIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What load to make."""

    seed: int
    client_count: int


class Load:
    """Runs until stopped: first the clients stop, then, when no task is left, the workers."""

    def __init__(self, nodes: Sequence[NodeProcess], history: History, wish: Wish) -> None:
        self.effects = Effects()
        self._wish = wish
        targets = [Target(node.name, node.address) for node in nodes]
        self._clients = Clients(targets, nodes[0].profile, history)
        self._seats = [Seat(node.name, node.data / "worker.sock") for node in nodes]
        self._history = history
        self._workers: list[RecordingWorker] = []
        self._clients_stop = asyncio.Event()
        self._workers_stop = asyncio.Event()
        self._clients_over = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="load")
        self._broken: BaseException | None = None

    @property
    def promises(self) -> Promises:
        return self._clients.promises

    def start(self) -> Load:
        self._thread.start()
        return self

    def check(self) -> None:
        """Raise what broke the load itself, so that a run without load is not taken for one."""
        if self._broken is not None:
            raise self._broken

    def stop_clients(self) -> None:
        """Let every client end its operation. Workers go on."""
        self._call(self._clients_stop.set)
        assert self._clients_over.wait(JOIN_S), "the clients do not end"
        self.check()

    def stop(self) -> None:
        self._call(self._clients_stop.set)
        self._call(self._workers_stop.set)
        self._thread.join(JOIN_S)
        assert not self._thread.is_alive(), "the load does not end"
        self.check()

    @property
    def workers(self) -> list[RecordingWorker]:
        return list(self._workers)

    def hold_back(self, workers: Sequence[RecordingWorker]) -> None:
        """These complete nothing from now on."""
        for worker in workers:
            self._call(worker.hold_back)

    def go_on(self, workers: Sequence[RecordingWorker]) -> None:
        """These complete what they hold."""
        for worker in workers:
            self._call(worker.go_on)

    def _call(self, what: Callable[[], None]) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(what)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._all())
        except BaseException as error:
            self._broken = error
        finally:
            self._clients_over.set()

    async def _all(self) -> None:
        for home in range(len(self._seats)):
            rng = random.Random(f"{self._wish.seed}.worker.{home}")
            worker = RecordingWorker(
                self._seats, self._history, home=home, rng=rng, effects=self.effects
            )
            self._workers.append(worker)
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(worker.run()) for worker in self._workers]
            await self._clients.run(
                client_count=self._wish.client_count,
                seed=self._wish.seed,
                stop=self._clients_stop,
            )
            self._clients_over.set()
            await self._workers_stop.wait()
            for one in running:
                one.cancel()

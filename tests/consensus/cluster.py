"""A few real replica cores in one process over virtual time: links, disk syncs and clocks are ports.

No sleeping: `run` moves virtual time on until a condition holds, and fails at a bound.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from quorumesh.v1.ledger_pb2 import Bootstrap, Command, Outcome
from quorumesh.v1.peer_pb2 import Frame

from consensus.core import TICK_MS, Core, Ports, ReplicaConfig
from consensus.engine.disk import Disk
from consensus.errors import ConsensusError
from consensus.ledger import invariants
from consensus.ports import LinkHandler

NAMES = tuple(f"n{number}" for number in range(1, 21))

Result = list[Outcome] | ConsensusError


class World:
    """Virtual time and whatever is to happen in it, in one order for one seed."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.now_us = 1_000_000
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._ids = itertools.count()

    def after(self, delay_us: int, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_us + delay_us, next(self._ids), act))

    def run(self, until: Callable[[], bool], *, ms_max: int = 30_000) -> None:
        end_us = self.now_us + ms_max * 1_000
        while not until():
            assert self._events and self._events[0][0] <= end_us, f"not within {ms_max} ms"
            self.now_us, _, act = heapq.heappop(self._events)
            act()

    def run_for(self, ms: int) -> None:
        end_us = self.now_us + ms * 1_000
        while self._events and self._events[0][0] <= end_us:
            self.now_us, _, act = heapq.heappop(self._events)
            act()
        self.now_us = end_us

    def monotonic_ms(self) -> int:
        return self.now_us // 1_000

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.now_us // 1_000


class Wires:
    """Who is connected to whom. Frames travel as bytes, in order, 200 to 900 µs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends: dict[str, MemoryEnd] = {}
        self.cuts: set[frozenset[str]] = set()
        self.live: dict[frozenset[str], int] = {}
        self._arrival_us: dict[tuple[str, str], int] = {}

    def connect_what_may(self) -> None:
        for one, other in itertools.combinations(sorted(self.ends), 2):
            pair = frozenset((one, other))
            wanted = other in self.ends[one].peers and one in self.ends[other].peers
            if pair not in self.live and pair not in self.cuts and wanted:
                self.live[pair] = next(self.world._ids)
                self.ends[one].tell_up(other)
                self.ends[other].tell_up(one)

    def disconnect(self, one: str, other: str) -> None:
        if self.live.pop(frozenset((one, other)), None) is not None:
            for here, there in ((one, other), (other, one)):
                if here in self.ends:
                    self.ends[here].tell_down(there)

    def cut(self, one: str, other: str) -> None:
        self.cuts.add(frozenset((one, other)))
        self.disconnect(one, other)

    def heal(self) -> None:
        self.cuts.clear()
        self.world.after(5_000, self.connect_what_may)

    def send(self, source: str, target: str, frame: Frame) -> bool:
        pair = frozenset((source, target))
        connection = self.live.get(pair)
        if connection is None:
            return False
        data = frame.SerializeToString()
        arrival_us = self.world.now_us + self.world.rng.randrange(200, 900)
        arrival_us = max(arrival_us, self._arrival_us.get((source, target), 0) + 1)
        self._arrival_us[source, target] = arrival_us

        def arrive() -> None:
            if self.live.get(pair) == connection:
                self.ends[target].handler.frame_received(source, Frame.FromString(data))

        self.world.after(arrival_us - self.world.now_us, arrive)
        return True


class MemoryEnd:
    """One node's end of the wires: a Link."""

    handler: LinkHandler

    def __init__(self, wires: Wires, node_id: str) -> None:
        self.wires, self.node_id = wires, node_id
        self.peers: set[str] = set()
        wires.ends[node_id] = self

    def bind(self, handler: LinkHandler) -> None:
        self.handler = handler

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        self.peers = set(addresses) - {self.node_id}
        self.wires.world.after(1_000, self.wires.connect_what_may)

    def send(self, peer: str, frame: Frame) -> bool:
        return self.wires.send(self.node_id, peer, frame)

    def is_up(self, peer: str) -> bool:
        return frozenset((self.node_id, peer)) in self.wires.live

    def tell_up(self, peer: str) -> None:
        self.handler.link_up(peer)

    def tell_down(self, peer: str) -> None:
        self.handler.link_down(peer)


class AtOnce:
    """Blocking work done on the spot."""

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        error: BaseException | None = None
        try:
            work()
        except (OSError, ConsensusError, sqlite3.Error) as failure:
            error = failure
        done(error)


@dataclass(slots=True)
class LateBackground:
    """Blocking work is done when its virtual time has come; a dead owner hears nothing."""

    world: World
    is_alive: bool = True
    delay_us: tuple[int, int] = (100, 400)

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def finish() -> None:
            if self.is_alive:
                AtOnce().run(work, done)

        self.world.after(self.world.rng.randrange(*self.delay_us), finish)


class Cluster:
    """Nodes n1, n2 … over one world; n1 founds the mesh."""

    def __init__(self, root: Path, *, seed: int = 0, **config: int) -> None:
        self.root, self.config = root, config
        self.world = World(seed)
        self.wires = Wires(self.world)
        self.cores: dict[str, Core] = {}
        self.disks: dict[str, Disk] = {}  # the real one for whoever has no other
        self._backgrounds: dict[str, LateBackground] = {}
        self._incarnations = itertools.count(1)

    def start(self, node_id: str, *, joined_voters: dict[str, str] | None = None) -> Core:
        end = MemoryEnd(self.wires, node_id)
        background = self._backgrounds[node_id] = LateBackground(self.world)
        founding = Bootstrap(mesh_id="m", node_id="n1", address="n1") if node_id == "n1" else None
        woken: list[bool] = []
        core = Core(
            ReplicaConfig(
                node_id=node_id,
                address=node_id,
                root=self.root / node_id,
                founding=founding,
                joined_voters=joined_voters or {},
                **self.config,  # type: ignore[arg-type]
            ),
            Ports(
                end,
                self.world,
                background,
                self.world.rng,
                next(self._incarnations),
                self.disks.setdefault(node_id, Disk()),
            ),
            on_wake=lambda: self._wake(node_id, woken),
        )
        self.cores[node_id] = core
        end.set_peers({name: name for name in NAMES})
        self._tick(core, background)
        return core

    def _wake(self, node_id: str, woken: list[bool]) -> None:
        if not woken:
            woken.append(True)
            background = self._backgrounds[node_id]

            def turn() -> None:
                woken.clear()
                if background.is_alive:
                    self.cores[node_id].turn()

            self.world.after(1, turn)

    def _tick(self, core: Core, background: LateBackground) -> None:
        if background.is_alive:
            core.turn()
            self.world.after(TICK_MS * 1_000, lambda: self._tick(core, background))

    def slow_down(self, node_id: str, delay_us: tuple[int, int]) -> None:
        """From now on the node's disk takes so long for each sync and copy."""
        self._backgrounds[node_id].delay_us = delay_us

    def kill(self, node_id: str) -> None:
        """As kill -9 does: nothing more is written or said."""
        self._backgrounds[node_id].is_alive = False
        for other in list(self.wires.ends):
            self.wires.disconnect(node_id, other)
        del self.wires.ends[node_id], self.cores[node_id]

    def leader(self) -> Core | None:
        leaders = [core for core in self.cores.values() if core.engine.role == "leader"]
        return max(leaders, key=lambda core: core.engine.term) if leaders else None

    def wait_leader(self) -> Core:
        self.world.run(lambda: self.leader() is not None)
        leader = self.leader()
        assert leader is not None
        return leader

    def propose(self, node_id: str, *commands: Command, ms: int = 10_000) -> Result:
        """Propose and run the world until the answer is there."""
        answers: list[Result] = []
        deadline_ms = self.world.monotonic_ms() + ms
        self.cores[node_id].propose(commands, deadline_ms=deadline_ms, done=answers.append)
        self.world.run(lambda: bool(answers))
        return answers[0]

    def agree(self) -> bool:
        """All live nodes are at the same revision with the same digest."""
        states = {(c.ledger.applied_index, c.ledger.digest) for c in self.cores.values()}
        commits = {core.engine.last_index for core in self.cores.values()}
        return len(states) == 1 and commits == {next(iter(states))[0]}

    def assert_sound(self) -> None:
        for core in self.cores.values():
            assert invariants.violations(core.ledger.connection) == []

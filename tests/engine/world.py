"""A mesh of engines in one process: virtual time, seeded chance, links and disks that fail.

Every run of the same seed is the same. Safety is checked as things happen: one leader per term, one
entry per index, in order, on every node; and at the end that nothing acknowledged was lost.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quorumesh.v1.ledger_pb2 import MembershipChange
from quorumesh.v1.peer_pb2 import Frame, SnapshotChunk

from consensus.engine import Engine, EngineConfig, Journal, VoteRecord
from consensus.engine.ports import Checked, Finding, SnapshotFile
from tests.engine.disk import SimDisk

TICK_MS = 20
START_MS = 1_000_000


class SimClock:
    def __init__(self) -> None:
        self.now_us = START_MS * 1000

    def monotonic_ms(self) -> int:
        return self.now_us // 1000

    def wall_ms(self) -> int:
        return self.monotonic_ms()


@dataclass
class Log:
    """The machine: what was applied, durable with each entry, as the ledger's transaction is."""

    entries: list[tuple[int, bytes]] = field(default_factory=list)
    voters: dict[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        return repr((self.entries, self.voters)).encode()

    @staticmethod
    def decode(data: bytes) -> Log:
        import ast

        entries, voters = ast.literal_eval(data.decode())
        return Log(entries, voters)


@dataclass(frozen=True)
class Copy:
    index: int
    term: int
    data: bytes

    @property
    def bytes_total(self) -> int:
        return len(self.data)

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.data).digest()

    def read(self, offset: int, count: int) -> bytes:
        return self.data[offset : offset + min(count, 4_096)]


class SimLink:
    """One node's end of the in-memory links."""

    def __init__(self, world: World, node_id: str) -> None:
        self.world, self.node_id = world, node_id

    def bind(self, handler: Any) -> None:
        pass

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        pass

    def is_up(self, peer: str) -> bool:
        return self.world.is_connected(self.node_id, peer)

    def send(self, peer: str, frame: Frame) -> bool:
        return self.world.send(self.node_id, peer, frame)


class SimBackground:
    """Blocking work takes a random short time; a node that died never hears of its end."""

    def __init__(self, node: SimNode) -> None:
        self.node = node

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        world, incarnation = self.node.world, self.node.incarnation

        def end() -> None:
            if not self.node.is_alive or self.node.incarnation != incarnation:
                return
            error: BaseException | None = None
            try:
                work()
            except OSError as failed:
                error = failed
            done(error)

        world.after(world.rng.uniform(*world.sync_ms), end)


class SimNode:
    """One node: it is the machine and the snapshot store of its engine."""

    def __init__(self, world: World, node_id: str, voters: dict[str, str]) -> None:
        self.world, self.node_id, self.first_voters = world, node_id, voters
        self.disk, self.log = SimDisk(), Log()
        self.incarnation, self.is_alive = 0, False
        self.wants_tick = False
        self.throws_copies_away = False  # as a node does whose disk refuses them
        self.engine: Engine
        self.journal: Journal
        self._copy: Copy | None = None
        self._incoming: tuple[tuple[int, int, bytes], bytearray, int] | None = None

    def start(self) -> None:
        self.incarnation += 1
        self.is_alive = True
        self._incoming = None
        root = Path("/sim") / self.node_id
        disk: Any = self.disk
        self.journal = Journal(
            root / "journal",
            background=SimBackground(self),
            segment_bytes_max=self.world.segment_bytes_max,
            disk=disk,
        )
        applied = self.applied_index
        term = self.log.entries[-1][0] if self.log.entries else 0
        if applied > self.journal.last_index or self.journal.term_at(applied) != term:
            self.journal.reset(applied, term, keep_suffix=False)
        self.engine = self.world.engine_type(
            EngineConfig(node_id=self.node_id, voters=self.log.voters or self.first_voters),
            link=SimLink(self.world, self.node_id),
            clock=self.world.clock,
            journal=self.journal,
            vote=VoteRecord(root / "vote", disk=disk),
            machine=self,
            snapshots=self,
            rng=random.Random(self.world.rng.random()),
            on_need_tick=self.need_tick,
        )

    def need_tick(self) -> None:
        if not self.wants_tick and self.is_alive:
            self.wants_tick = True
            self.world.after(0.01, self.turn)

    def turn(self) -> None:
        self.wants_tick = False
        if self.is_alive:
            self.engine.tick()
            self.world.check_leader(self)

    # Machine.

    @property
    def applied_index(self) -> int:
        return len(self.log.entries)

    def voters(self) -> Mapping[str, str]:
        return self.log.voters

    def counted_ms(self) -> int:
        return self.world.clock.monotonic_ms()

    def leader_counted_ms(self, counted_ms: int) -> None:
        pass

    def apply(self, index: int, term: int, command: bytes) -> None:
        assert index == self.applied_index + 1
        self.world.check_applied(self.node_id, index, term, command)
        self.log.entries.append((term, command))
        if command[0] == 2:
            change = MembershipChange.FromString(command[1:])
            if not self.log.voters:
                self.log.voters = dict(self.first_voters)
            if change.add:
                self.log.voters[change.node_id] = change.address
            else:
                self.log.voters.pop(change.node_id, None)

    # Snapshots.

    def latest(self) -> Copy | None:
        return self._copy

    def request(self) -> None:
        if self.log.entries:
            self._copy = Copy(self.applied_index, self.log.entries[-1][0], self.log.encode())

    def receive(self, chunk: SnapshotChunk) -> int:
        key = (chunk.index, chunk.entry_term, chunk.digest)
        if self._incoming is None or self._incoming[0] != key:
            self._incoming = (key, bytearray(), chunk.total_bytes)
        data = self._incoming[1]
        if chunk.offset == len(data):
            data += chunk.data
        return len(data)

    def checked(self) -> Checked | None:
        if self._incoming is None or len(self._incoming[1]) < self._incoming[2]:
            return None
        (index, term, digest), data, bytes_total = self._incoming
        is_sound = hashlib.sha256(data).digest() == digest and not self.throws_copies_away
        finding = Finding.SOUND if is_sound else Finding.UNSOUND
        return Checked(index, term, bytes_total, finding)

    def refused(self, snapshot: SnapshotFile, peer: str) -> None:
        self._copy = None

    def rotten(self, snapshot: SnapshotFile) -> None:
        self._copy = None

    def abort(self) -> None:
        self._incoming = None

    def install(self, index: int, term: int) -> None:
        assert self._incoming is not None
        key, data, _ = self._incoming
        assert hashlib.sha256(data).digest() == key[2]
        self.log, self._incoming = Log.decode(bytes(data)), None
        assert self.applied_index == index and self.log.entries[-1][0] == term


class World:
    """Time, network and nodes. `violations` is empty as long as the engine is safe."""

    def __init__(
        self,
        seed: int,
        *,
        nodes: int = 3,
        delay_ms: tuple[float, float] = (1, 3),
        sync_ms: tuple[float, float] = (0.2, 4),
        duplicates: float = 0.0,
        segment_bytes_max: int = 4_096,
        engine_type: type[Engine] = Engine,
    ) -> None:
        self.engine_type = engine_type
        self.rng, self.clock = random.Random(seed), SimClock()
        self.delay_ms, self.sync_ms, self.duplicates = delay_ms, sync_ms, duplicates
        self.segment_bytes_max = segment_bytes_max
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self._links: dict[tuple[str, str], int] = {}
        self._generation = 0
        self._cut: set[tuple[str, str]] = set()
        self._stalled: set[tuple[str, str]] = set()
        self._held: dict[tuple[str, str], list[tuple[int, bytes]]] = {}
        self._last_us: dict[tuple[str, str], int] = {}
        self.filter: Callable[[str, str, Frame], bool] = lambda a, b, frame: True
        self.leaders: dict[int, str] = {}
        self.applied: dict[int, tuple[int, bytes]] = {}
        self.acknowledged: dict[bytes, int] = {}
        self._waiting: dict[tuple[int, int], bytes] = {}
        self.violations: list[str] = []
        ids = [f"n{at + 1}" for at in range(nodes)]
        voters = {node_id: f"{node_id}:1" for node_id in ids}
        self.nodes = {node_id: SimNode(self, node_id, voters) for node_id in ids}
        for node_id in ids:
            self.start(node_id)

    # Time.

    def after(self, delay_ms: float, act: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.clock.now_us + int(delay_ms * 1000), self._sequence, act))

    def run(self, duration_ms: float, until: Callable[[], bool] | None = None) -> bool:
        """Let virtual time pass; True as soon as the condition holds."""
        end_us = self.clock.now_us + int(duration_ms * 1000)
        while self._heap and self._heap[0][0] <= end_us:
            if until is not None and until():
                return True
            at_us, _, act = heapq.heappop(self._heap)
            self.clock.now_us = max(self.clock.now_us, at_us)
            act()
        self.clock.now_us = end_us
        return until is not None and until()

    # Nodes.

    def join(self, node_id: str) -> SimNode:
        voters = {node_id: node.engine.voters for node_id, node in self.nodes.items()}
        known = dict(next(iter(voters.values())))
        self.nodes[node_id] = SimNode(self, node_id, known)
        self.start(node_id)
        return self.nodes[node_id]

    def start(self, node_id: str) -> None:
        node = self.nodes[node_id]
        if node.is_alive:
            return
        node.start()
        self._ticking(node, node.incarnation)
        for other in self.nodes:
            if other != node_id:
                self.connect(node_id, other, after_ms=2)

    def _ticking(self, node: SimNode, incarnation: int) -> None:
        if node.is_alive and node.incarnation == incarnation:
            node.turn()
            self.after(TICK_MS, lambda: self._ticking(node, incarnation))

    def crash(self, node_id: str, *, power: bool = True) -> None:
        """The process dies; with `power` what was not synced may be lost or torn."""
        node = self.nodes[node_id]
        if not node.is_alive:
            return
        node.is_alive = False
        for other in list(self.nodes):
            self._disconnect(node_id, other)
        if power:
            node.disk.power_loss(self.rng)

    # Links.

    def is_connected(self, a: str, b: str) -> bool:
        return pair(a, b) in self._links

    def connect(self, a: str, b: str, *, after_ms: float = 2) -> None:
        self.after(after_ms, lambda: self._connect(a, b))

    def _connect(self, a: str, b: str) -> None:
        key = pair(a, b)
        if key in self._links or key in self._cut:
            return
        if self.nodes[a].is_alive and self.nodes[b].is_alive:
            self._generation += 1
            self._links[key] = self._generation
            self.nodes[a].engine.link_up(b)
            self.nodes[b].engine.link_up(a)

    def _disconnect(self, a: str, b: str) -> None:
        if self._links.pop(pair(a, b), None) is None:
            return
        self._held.pop((a, b), None)
        self._held.pop((b, a), None)
        for me, other in ((a, b), (b, a)):
            if self.nodes[me].is_alive:
                self.nodes[me].engine.link_down(other)

    def partition(self, a: str, b: str) -> None:
        self._cut.add(pair(a, b))
        self._disconnect(a, b)

    def heal(self, a: str, b: str) -> None:
        self._cut.discard(pair(a, b))
        self.connect(a, b)

    def blip(self, a: str, b: str) -> None:
        self._disconnect(a, b)
        self.connect(a, b, after_ms=5)

    def isolate(self, node_id: str) -> None:
        for other in self.nodes:
            if other != node_id:
                self.partition(node_id, other)

    def rejoin(self, node_id: str) -> None:
        for other in self.nodes:
            if other != node_id:
                self.heal(node_id, other)

    def stall(self, a: str, b: str) -> None:
        """Frames from a to b are held, and nobody is told."""
        self._stalled.add((a, b))

    def unstall(self, a: str, b: str) -> None:
        self._stalled.discard((a, b))
        for generation, data in self._held.pop((a, b), []):
            self._schedule(a, b, generation, data)

    def heal_all(self) -> None:
        self._cut.clear()
        for a, b in list(self._stalled):
            self.unstall(a, b)
        for node_id in self.nodes:
            self.start(node_id)
        for a in self.nodes:
            for b in self.nodes:
                if a < b:
                    self.connect(a, b)

    def send(self, a: str, b: str, frame: Frame) -> bool:
        generation = self._links.get(pair(a, b))
        if generation is None:
            return False
        if not self.filter(a, b, frame):
            return True
        data = frame.SerializeToString()
        if (a, b) in self._stalled:
            self._held.setdefault((a, b), []).append((generation, data))
            return True
        self._schedule(a, b, generation, data)
        if self.duplicates and self.rng.random() < self.duplicates:
            self._schedule(a, b, generation, data)
        return True

    def _schedule(self, a: str, b: str, generation: int, data: bytes) -> None:
        at_us = self.clock.now_us + int(self.rng.uniform(*self.delay_ms) * 1000)
        at_us = max(at_us, self._last_us.get((a, b), 0) + 1)
        self._last_us[(a, b)] = at_us
        self._sequence += 1
        deliver = lambda: self._deliver(a, b, generation, data)  # noqa: E731
        heapq.heappush(self._heap, (at_us, self._sequence, deliver))

    def _deliver(self, a: str, b: str, generation: int, data: bytes) -> None:
        if self._links.get(pair(a, b)) != generation:
            return
        if (a, b) in self._stalled:
            self._held.setdefault((a, b), []).append((generation, data))
            return
        self.nodes[b].engine.frame_received(a, Frame.FromString(data))
        self.check_leader(self.nodes[b])

    # Clients and checks.

    def propose(self, node_id: str, value: bytes) -> bool:
        """Ask a node to append; acknowledged once that node, still alive, has applied it."""
        node = self.nodes[node_id]
        if not node.is_alive:
            return False
        index = node.engine.append(b"\x00" + value)
        if index is None:
            return False
        self._waiting[(index, node.engine.term)] = value
        return True

    def leader(self) -> str | None:
        leading = [n for n in self.nodes.values() if n.is_alive and n.engine.role == "leader"]
        return max(leading, key=lambda n: n.engine.term).node_id if leading else None

    def wait_leader(self, among: list[str] | None = None, *, for_ms: float = 30_000) -> str:
        def ready() -> bool:
            leader = self.leader()
            return leader is not None and (among is None or leader in among)

        assert self.run(for_ms, ready), "no leader"
        leader = self.leader()
        assert leader is not None
        return leader

    def check_leader(self, node: SimNode) -> None:
        if node.is_alive and node.engine.role == "leader":
            other = self.leaders.setdefault(node.engine.term, node.node_id)
            if other != node.node_id:
                self.violate(f"two leaders in term {node.engine.term}: {other}, {node.node_id}")

    def check_applied(self, node_id: str, index: int, term: int, command: bytes) -> None:
        first = self.applied.setdefault(index, (term, command))
        if first != (term, command):
            self.violate(f"{node_id} applied {command!r} at {index}, another {first!r}")
        value = self._waiting.pop((index, term), None)
        if value is not None:
            self.acknowledged[value] = index

    def violate(self, what: str) -> None:
        if len(self.violations) < 50:
            self.violations.append(f"{self.clock.monotonic_ms() - START_MS} ms: {what}")

    def check_settled(self) -> None:
        """After healing: a leader, all logs alike, nothing acknowledged lost."""
        leader = self.leader()
        if leader is None:
            self.violate("no leader after everything healed")
            return
        log = self.nodes[leader].log.entries
        held = {command[1:] for _, command in log}
        lost = [value for value in self.acknowledged if value not in held]
        if lost:
            self.violate(f"{len(lost)} acknowledged values lost, such as {lost[0]!r}")
        for node in self.nodes.values():
            if node.log.entries != log:
                self.violate(
                    f"{node.node_id} has {node.applied_index} entries, {leader} {len(log)}"
                )


def pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)

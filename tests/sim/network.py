"""Links between nodes as TCP would give them: in order or not at all, each end told on its own.

A direction may be blocked, slow or lossy. What a blocked direction carried waits, as in a socket's
buffer; an end that hears nothing for SILENCE_MS lets go, and the other end learns of it when it can.
A frame that is lost is sent again later, which holds up what follows, or breaks the connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from quorumesh.v1.peer_pb2 import Frame

from consensus.ports import LinkHandler
from tests.sim.world import World

SILENCE_MS = 2_600
REDIAL_MS = (20, 200)
FRAMES_UNDER_WAY_MAX = 1_024  # in one direction; then a link has no room
RETRANSMIT_MS = (200, 700)

Pair = tuple[str, str]


def pair_of(one: str, other: str) -> Pair:
    return (one, other) if one < other else (other, one)


@dataclass(slots=True)
class Connection:
    """One connection of a pair. `up` are the ends that have not let go of it."""

    generation: int
    up: set[str] = field(default_factory=set)
    arrival_us: dict[Pair, int] = field(default_factory=dict)
    under_way: dict[Pair, int] = field(default_factory=dict)
    held: dict[Pair, list[bytes]] = field(default_factory=dict)


class End:
    """One process's end of the network: the Link that its core is handed."""

    handler: LinkHandler

    def __init__(self, network: Network, node_id: str, call: Callable[[Callable[[], None]], None]):
        self.network, self.node_id, self.call = network, node_id, call
        self.peers: dict[str, str] = {}
        self.up: dict[str, int] = {}

    def bind(self, handler: LinkHandler) -> None:
        self.handler = handler

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        self.peers = {peer: at for peer, at in addresses.items() if peer != self.node_id}
        for peer in self.peers:
            self.network.dial(self.node_id, peer)

    def send(self, peer: str, frame: Frame) -> bool:
        generation = self.up.get(peer)
        if generation is None:
            return False
        self.network.on_send(self.node_id, frame)
        return self.network.send(self.node_id, peer, generation, frame.SerializeToString())

    def is_up(self, peer: str) -> bool:
        return peer in self.up

    # What the network tells, on the process's own loop.

    def tell_up(self, peer: str, generation: int) -> None:
        def up() -> None:
            if peer in self.up:
                self._down(peer)
            self.up[peer] = generation
            self.handler.link_up(peer)

        self.call(up)

    def tell_down(self, peer: str, generation: int) -> None:
        def down() -> None:
            if self.up.get(peer) == generation:
                self._down(peer)
                self.network.let_go(self.node_id, peer, generation)

        self.call(down)

    def _down(self, peer: str) -> None:
        del self.up[peer]
        self.handler.link_down(peer)

    def tell_frame(self, peer: str, generation: int, data: bytes) -> None:
        def arrive() -> None:
            if self.up.get(peer) == generation:
                self.network.world.note("frame", f"{peer}>{self.node_id}", data)
                self.handler.frame_received(peer, Frame.FromString(data))

        self.call(arrive)


class Network:
    """Who can reach whom, and how well."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.ends: dict[str, End] = {}
        self.blocked: dict[Pair, int] = {}  # direction to how many faults block it
        self.delay_us: dict[Pair, tuple[int, int]] = {}
        self.loss: dict[Pair, float] = {}
        self.duplicate_share = 0.0
        self.on_send: Callable[[str, Frame], None] = lambda source, frame: None
        self._connections: dict[Pair, Connection] = {}
        self._dialling: set[Pair] = set()
        self._generation = 0

    # Processes come and go.

    def add(self, end: End) -> None:
        self.ends[end.node_id] = end

    def remove(self, node_id: str, *, silently: bool) -> None:
        """The process is gone. Its kernel says so to the peers, unless the power went as well."""
        self.ends.pop(node_id, None)
        for pair, connection in list(self._connections.items()):
            if node_id in pair and node_id in connection.up:
                other = pair[0] if pair[1] == node_id else pair[1]
                connection.up.discard(node_id)
                if silently:
                    self._watch_silence(pair, connection)
                else:
                    self._pass_on_end(node_id, other, connection)

    # Connections.

    def dial(self, one: str, other: str) -> None:
        pair = pair_of(one, other)
        if pair not in self._dialling:
            self._dialling.add(pair)
            self.world.after_ms(self.world.chance.uniform(*REDIAL_MS), lambda: self._dial(pair))

    def _dial(self, pair: Pair) -> None:
        self._dialling.discard(pair)
        one, other = (self.ends.get(node_id) for node_id in pair)
        if one is None or other is None:
            return
        if pair[1] not in one.peers or pair[0] not in other.peers:
            return
        known = self._connections.get(pair)
        if known is not None and len(known.up) == 2:
            return
        if pair in self.blocked or (pair[1], pair[0]) in self.blocked:
            self.dial(*pair)
            return
        self._connect(pair)

    def _connect(self, pair: Pair) -> None:
        # An end that still holds the connection before this one lets go of it first.
        self._generation += 1
        connection = Connection(self._generation, set(pair))
        self._connections[pair] = connection
        for here, there in (pair, (pair[1], pair[0])):
            delay_us = self._latency_us((there, here))
            connection.arrival_us[there, here] = self.world.now_us + delay_us
            self._tell_later(delay_us, here, there, connection.generation, is_up=True)

    def _tell_later(
        self, delay_us: int, here: str, there: str, generation: int, *, is_up: bool
    ) -> None:
        end = self.ends.get(here)

        def tell() -> None:
            known = self._connections.get(pair_of(here, there))
            # On a slow road the word of an old connection may come after that of the next one.
            is_late = is_up and (known is None or known.generation != generation)
            if end is not None and self.ends.get(here) is end and not is_late:
                (end.tell_up if is_up else end.tell_down)(there, generation)

        self.world.after_us(delay_us, tell)

    def break_off(self, one: str, other: str) -> None:
        """A reset that both ends notice, each in its time."""
        connection = self._connections.get(pair_of(one, other))
        if connection is not None:
            for here, there in ((one, other), (other, one)):
                delay_us = self.world.chance.randrange(0, 5_000)
                self._tell_later(delay_us, here, there, connection.generation, is_up=False)

    def let_go(self, here: str, there: str, generation: int) -> None:
        """An end has closed: the other hears of it if anything gets through."""
        connection = self._connections.get(pair_of(here, there))
        if connection is None or connection.generation != generation:
            return
        connection.up.discard(here)
        if there in connection.up:
            self._pass_on_end(here, there, connection)
        self.dial(here, there)

    def _pass_on_end(self, here: str, there: str, connection: Connection) -> None:
        if (here, there) in self.blocked:
            self._watch_silence(pair_of(here, there), connection)
        else:
            delay_us = self._latency_us((here, there))
            self._tell_later(delay_us, there, here, connection.generation, is_up=False)

    def _watch_silence(self, pair: Pair, connection: Connection) -> None:
        """Whoever hears nothing from now on lets go after a while, unless it hears again."""
        wait_ms = SILENCE_MS * self.world.chance.uniform(0.7, 1.1)
        blocked = {direction for direction in (pair, pair[::-1]) if direction in self.blocked}

        def look() -> None:
            if self._connections.get(pair) is not connection:
                return
            for here, there in (pair, (pair[1], pair[0])):
                is_silent = (there, here) in blocked and (there, here) in self.blocked
                if here in connection.up and (is_silent or there not in connection.up):
                    self._tell_later(0, here, there, connection.generation, is_up=False)

        self.world.after_ms(wait_ms, look)

    # Directions.

    def block(self, directions: Iterable[Pair]) -> Callable[[], None]:
        """Nothing gets through in these directions until what is returned is called."""
        chosen = [d for d in directions if d[0] != d[1]]
        for direction in chosen:
            self.blocked[direction] = self.blocked.get(direction, 0) + 1
        for pair in sorted({pair_of(*direction) for direction in chosen}):
            if pair in self._connections:
                self._watch_silence(pair, self._connections[pair])

        def unblock() -> None:
            for direction in chosen:
                left = self.blocked.get(direction, 0) - 1
                if left > 0:
                    self.blocked[direction] = left
                else:
                    self.blocked.pop(direction, None)
                    self._release(direction)

        return unblock

    def _release(self, direction: Pair) -> None:
        connection = self._connections.get(pair_of(*direction))
        if connection is None:
            return
        for data in connection.held.pop(direction, []):
            self._carry(direction, connection, data)
        source, target = direction
        if source not in connection.up and target in connection.up:
            self._pass_on_end(source, target, connection)

    def heal(self) -> None:
        """Everything gets through again, quickly."""
        self.delay_us.clear()
        self.loss.clear()
        self.duplicate_share = 0.0
        for direction in list(self.blocked):
            del self.blocked[direction]
            self._release(direction)

    # Frames.

    def send(self, source: str, target: str, generation: int, data: bytes) -> bool:
        direction = (source, target)
        connection = self._connections.get(pair_of(source, target))
        if connection is None or connection.generation != generation:
            return True  # the other end is gone: the frame is lost, and the sender will hear of it
        if connection.under_way.get(direction, 0) >= FRAMES_UNDER_WAY_MAX:
            return False
        connection.under_way[direction] = connection.under_way.get(direction, 0) + 1
        if direction in self.blocked:
            connection.held.setdefault(direction, []).append(data)
        else:
            self._carry(direction, connection, data)
        return True

    def _latency_us(self, direction: Pair) -> int:
        lowest_us, highest_us = self.delay_us.get(direction, (200, 900))
        return self.world.chance.randrange(lowest_us, highest_us)

    def _carry(self, direction: Pair, connection: Connection, data: bytes) -> None:
        chance, latency_us = self.world.chance, self._latency_us(direction)
        if self.loss and chance.random() < self.loss.get(direction, 0.0):
            latency_us += int(chance.uniform(*RETRANSMIT_MS) * 1_000)
            if chance.random() < 0.1:
                self.break_off(*direction)
        arrival_us = max(
            self.world.now_us + latency_us, connection.arrival_us.get(direction, 0) + 1
        )
        connection.arrival_us[direction] = arrival_us
        self.world.after_us(
            arrival_us - self.world.now_us, lambda: self._arrive(direction, connection, data)
        )

    def _arrive(self, direction: Pair, connection: Connection, data: bytes) -> None:
        source, target = direction
        if self._connections.get(pair_of(source, target)) is not connection:
            return
        if direction in self.blocked:
            connection.held.setdefault(direction, []).append(data)
            return
        connection.under_way[direction] -= 1
        end = self.ends.get(target)
        if end is None or target not in connection.up:
            return
        end.tell_frame(source, connection.generation, data)
        if self.duplicate_share and self.world.chance.random() < self.duplicate_share:
            end.tell_frame(source, connection.generation, data)

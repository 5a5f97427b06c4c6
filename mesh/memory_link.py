"""A link in memory, for tests and single-process meshes: the promises of `GrpcLink`, no network."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from quorumesh.v1.peer_pb2 import Frame

from mesh.link import (
    BATCH_FRAMES_MAX,
    FRAME_BYTES_MAX,
    LINK_BYTES_MAX,
    LINK_FRAMES_MAX,
    PEERS_MAX,
    Handler,
)


@dataclass(slots=True, eq=False)
class _Lane:
    """One direction of one connection."""

    connection: _Pair
    sender: MemoryLink
    receiver: MemoryLink
    queue: deque[bytes] = field(default_factory=deque)  # at most LINK_FRAMES_MAX
    bytes_queued: int = 0
    scheduled: bool = False


@dataclass(slots=True, eq=False)
class _Pair:
    """One connection. Both ends must have been told of it before frames flow."""

    ends: tuple[str, str]
    alive: bool = True
    told: set[str] = field(default_factory=set)  # at most both ends


class MemoryNetwork:
    """Where memory links meet. Two links are connected while both run and each has the other as
    a peer, unless the pair was cut."""

    def __init__(self) -> None:
        self._links: dict[str, MemoryLink] = {}  # at most PEERS_MAX
        self._cut: set[frozenset[str]] = set()

    def attach(self, link: MemoryLink) -> None:
        assert len(self._links) < PEERS_MAX
        self._links[link.node_id] = link
        self.settle()

    def detach(self, link: MemoryLink) -> None:
        if self._links.get(link.node_id) is link:
            del self._links[link.node_id]
        for lane in list(link.lanes.values()):
            self._break(lane)

    def cut(self, one: str, other: str) -> None:
        """Break the connection of two nodes and let none come up until `heal`."""
        self._cut.add(frozenset((one, other)))
        self.settle()

    def heal(self, one: str, other: str) -> None:
        self._cut.discard(frozenset((one, other)))
        self.settle()

    def kill_connection(self, one: str, other: str) -> None:
        """Break the present connection; another one comes up at once."""
        link = self._links.get(one)
        lane = link.lanes.get(other) if link is not None else None
        if lane is not None:
            self._break(lane)
        self.settle()

    def settle(self) -> None:
        """Bring connections in line with who runs, who has whom as a peer, and what is cut."""
        for name, link in sorted(self._links.items()):
            for peer, lane in list(link.lanes.items()):
                if not self._may_connect(name, peer):
                    self._break(lane)
            for peer in sorted(link.peers):
                if name < peer and peer not in link.lanes and self._may_connect(name, peer):
                    self._connect(link, self._links[peer])

    def _may_connect(self, one: str, other: str) -> bool:
        first, second = self._links.get(one), self._links.get(other)
        if first is None or second is None or frozenset((one, other)) in self._cut:
            return False
        return other in first.peers and one in second.peers

    def _connect(self, one: MemoryLink, other: MemoryLink) -> None:
        pair = _Pair((one.node_id, other.node_id))
        loop = asyncio.get_running_loop()
        for link, peer in ((one, other), (other, one)):
            link.lanes[peer.node_id] = _Lane(pair, link, peer)
            loop.call_soon(link.tell_up, peer.node_id, pair)

    def _break(self, lane: _Lane) -> None:
        pair = lane.connection
        pair.alive = False
        loop = asyncio.get_running_loop()
        for link, peer in ((lane.sender, lane.receiver), (lane.receiver, lane.sender)):
            mine = link.lanes.get(peer.node_id)
            if mine is not None and mine.connection is pair:
                del link.lanes[peer.node_id]
                loop.call_soon(link.tell_down, peer.node_id, pair)


class MemoryLink:
    """`GrpcLink` without a network. Frames are copied, as if they had travelled."""

    def __init__(self, network: MemoryNetwork, node_id: str) -> None:
        self.node_id = node_id
        self.peers: dict[str, str] = {}  # at most PEERS_MAX
        self.lanes: dict[str, _Lane] = {}  # at most one per peer
        self._network = network
        self._handler: Handler | None = None

    def bind(self, handler: Handler) -> None:
        self._handler = handler

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Make these the peers; addresses do not matter here."""
        self.peers = {peer: at for peer, at in addresses.items() if peer != self.node_id}
        assert len(self.peers) <= PEERS_MAX
        self._network.settle()

    def send(self, peer: str, frame: Frame) -> bool:
        """Queue a frame. False: not connected, or the bounded queue is full; nothing was queued."""
        lane = self.lanes.get(peer)
        if lane is None or self.node_id not in lane.connection.told:
            return False
        data = frame.SerializeToString()
        full = len(lane.queue) >= LINK_FRAMES_MAX
        if full or lane.bytes_queued + len(data) > LINK_BYTES_MAX or len(data) > FRAME_BYTES_MAX:
            return False
        lane.queue.append(data)
        lane.bytes_queued += len(data)
        self._schedule(lane)
        return True

    def is_up(self, peer: str) -> bool:
        lane = self.lanes.get(peer)
        return lane is not None and self.node_id in lane.connection.told

    async def run(self) -> None:
        """Take part in the network until cancelled."""
        self._network.attach(self)
        try:
            await asyncio.Event().wait()
        finally:
            self._network.detach(self)

    def tell_up(self, peer: str, pair: _Pair) -> None:
        """Called by the network, on the loop."""
        if not pair.alive:
            return
        pair.told.add(self.node_id)
        if self._handler is not None:
            self._handler.link_up(peer)

    def tell_down(self, peer: str, pair: _Pair) -> None:
        """Called by the network, on the loop."""
        if self.node_id not in pair.told:
            return
        pair.told.discard(self.node_id)
        if self._handler is not None:
            self._handler.link_down(peer)

    def _schedule(self, lane: _Lane) -> None:
        if not lane.scheduled:
            lane.scheduled = True
            asyncio.get_running_loop().call_soon(self._deliver, lane)

    def _deliver(self, lane: _Lane) -> None:
        lane.scheduled = False
        pair, receiver = lane.connection, lane.receiver
        for _ in range(BATCH_FRAMES_MAX):
            if not pair.alive or not lane.queue:
                return
            if receiver.node_id not in pair.told:
                break
            data = lane.queue.popleft()
            lane.bytes_queued -= len(data)
            if receiver._handler is not None:
                receiver._handler.frame_received(self.node_id, Frame.FromString(data))
        if lane.queue:
            self._schedule(lane)

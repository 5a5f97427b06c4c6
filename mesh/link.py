"""The link between nodes over gRPC: one ordered stream per pair of peers, with bounded queues.

The node with the lower id dials. Frames are only carried: their meaning, and sending again what a
broken connection lost, are the owner's. Refuses whoever is not a peer by its certificate.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
from quorumesh.v1.peer_pb2 import Frame, LinkFrames, LinkHello
from quorumesh.v1.peer_pb2_grpc import PeerServicer, PeerStub

from mesh.credentials import NodeCredentials, principal_of, tls_options_for
from mesh.errors import NoPrincipal

log = logging.getLogger(__name__)

WIRE_VERSION = 1
PEERS_MAX = 1_024
LINK_FRAMES_MAX = 8_192  # queued to one peer
LINK_BYTES_MAX = 32 << 20  # queued to one peer
BATCH_FRAMES_MAX = 256  # in one message
BATCH_BYTES_MAX = 1 << 20  # in one message, unless one frame alone is larger
MESSAGE_BYTES_MAX = 4 << 20
FRAME_BYTES_MAX = MESSAGE_BYTES_MAX - 65_536
HANDSHAKE_S_MAX = 3.0
SLICE_S = 0.01  # of one message's frames, then the loop has its turn; one frame may take longer
# An idle side sends an empty message so often; one that hears nothing for so long ends the stream.
# HTTP/2 pings alone did not notice a stopped process within 10 s.
BEAT_S = 0.8
SILENCE_S_MAX = 2.6
FAILED_QUIET_MAX = 5  # attempts in a row that are not worth a line
BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 1.0

# For connections that are still being set up, and to keep middle boxes from forgetting them.
_KEEPALIVE: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 1_000),
    ("grpc.keepalive_timeout_ms", 1_500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
# For the server that carries `GrpcLink.servicer`; without them it takes keepalives for abuse.
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_KEEPALIVE,
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
)
_CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_KEEPALIVE,
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # Each attempt is a connection of its own, free of an earlier one's back-off.
    ("grpc.use_local_subchannel_pool", 1),
)
# What grpc.aio raises when a stream or connection ends under a read or write.
_BROKEN = (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError, ConnectionError)

Result = TypeVar("Result")
Read = Callable[[], Awaitable[Any]]  # a LinkFrames, or grpc.aio.EOF
Write = Callable[[LinkFrames], Awaitable[None]]


class Handler(Protocol):
    """What a link tells its owner. Called on the loop, never from inside `send`."""

    def link_up(self, peer: str) -> None: ...

    def link_down(self, peer: str) -> None: ...

    def frame_received(self, peer: str, frame: Frame) -> None: ...


@dataclass(frozen=True, slots=True)
class LinkStats:
    """What a link has done since its start."""

    peers: tuple[str, ...]
    up: tuple[str, ...]
    frames_sent: int
    frames_received: int
    messages_sent: int
    frames_refused: int  # not connected, too large, or the queue was full
    frames_dropped: int  # queued or arriving when their connection ended
    connects: int
    refused_connects: int
    frames_queued: int
    bytes_queued: int


@dataclass(slots=True)
class _Counts:
    frames_sent: int = 0
    frames_received: int = 0
    messages_sent: int = 0
    frames_refused: int = 0
    frames_dropped: int = 0
    connects: int = 0
    refused_connects: int = 0


@dataclass(slots=True, eq=False)
class _Connection:
    """One stream to a peer, from its handshake to its end."""

    peer: str
    incarnation: int  # the peer's, for this connection
    queue: deque[tuple[Frame, int]] = field(default_factory=deque)  # at most LINK_FRAMES_MAX
    bytes_queued: int = 0  # Invariant: sum of the sizes in queue, at most LINK_BYTES_MAX
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def end(self) -> int:
        """Let go of what is queued and stop the stream. How many frames were let go."""
        dropped = len(self.queue)
        self.queue.clear()
        self.bytes_queued = 0
        self.ended.set()
        return dropped

    def take_batch(self) -> LinkFrames:
        """The next message: all that is queued, within the bounds of one message."""
        message = LinkFrames()
        batch_bytes = 0
        while self.queue and len(message.frames) < BATCH_FRAMES_MAX:
            frame, frame_bytes = self.queue[0]
            if batch_bytes and batch_bytes + frame_bytes > BATCH_BYTES_MAX:
                break
            self.queue.popleft()
            self.bytes_queued -= frame_bytes
            batch_bytes += frame_bytes
            message.frames.append(frame)
        return message


class GrpcLink:
    """Ordered, typed frames to peers; at most one live connection per peer.

    Frames of one connection arrive in the order sent or not at all; after `link_down` no frame of
    that connection arrives any more. `run` dials; `servicer` belongs on the node's server, which
    must have SERVER_OPTIONS.
    """

    def __init__(
        self,
        node_id: str,
        credentials: NodeCredentials,
        *,
        address: str = "",
        rng: random.Random | None = None,
    ) -> None:
        self._node_id = node_id
        self._credentials = credentials
        self._address = address
        self._rng = rng or random.Random()
        self._handler: Handler | None = None
        self._peers: dict[str, str] = {}  # at most PEERS_MAX
        self._live: dict[str, _Connection] = {}  # at most one per peer
        self._told: dict[str, _Connection] = {}  # link_up was told, link_down not yet
        self._changed = asyncio.Event()
        self._counts = _Counts()
        self._failed: list[BaseException] = []  # a bug met on the server's side, for run()
        self.servicer: PeerServicer = _Servicer(self)

    def bind(self, handler: Handler) -> None:
        self._handler = handler

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Make these the peers: node id to host:port. Absent ones are disconnected."""
        peers = {peer: at for peer, at in addresses.items() if peer != self._node_id}
        assert len(peers) <= PEERS_MAX
        if peers == self._peers:
            return
        self._peers = peers
        for peer in [peer for peer in self._live if peer not in peers]:
            connection = self._live.pop(peer)
            self._counts.frames_dropped += connection.end()
            # The caller may be in the middle of a decision: it is told once it has returned.
            asyncio.get_running_loop().call_soon(self._tell_down, connection)
        self._changed.set()

    def send(self, peer: str, frame: Frame) -> bool:
        """Queue a frame. False: not connected, or the bounded queue is full; nothing was queued.

        The frame must not be changed afterwards. One above FRAME_BYTES_MAX is refused as well.
        """
        connection = self._live.get(peer)
        frame_bytes = frame.ByteSize()
        if (
            connection is None
            or len(connection.queue) >= LINK_FRAMES_MAX
            or connection.bytes_queued + frame_bytes > LINK_BYTES_MAX
            or frame_bytes > FRAME_BYTES_MAX
        ):
            self._counts.frames_refused += 1
            return False
        connection.queue.append((frame, frame_bytes))
        connection.bytes_queued += frame_bytes
        connection.wake.set()
        return True

    def is_up(self, peer: str) -> bool:
        return peer in self._live

    def stats(self) -> LinkStats:
        counts = self._counts
        return LinkStats(
            peers=tuple(sorted(self._peers)),
            up=tuple(sorted(self._live)),
            frames_sent=counts.frames_sent,
            frames_received=counts.frames_received,
            messages_sent=counts.messages_sent,
            frames_refused=counts.frames_refused,
            frames_dropped=counts.frames_dropped,
            connects=counts.connects,
            refused_connects=counts.refused_connects,
            frames_queued=sum(len(one.queue) for one in self._live.values()),
            bytes_queued=sum(one.bytes_queued for one in self._live.values()),
        )

    async def run(self) -> None:
        """Dial the peers that are this node's to dial, again and again, until cancelled."""
        dialling: dict[str, tuple[str, asyncio.Task[None]]] = {}  # at most one per peer
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._changed.clear()
                    if self._failed:
                        raise self._failed[0]
                    wanted = {p: at for p, at in self._peers.items() if self._node_id < p}
                    for peer in list(dialling):
                        address, task = dialling[peer]
                        if wanted.get(peer) != address:
                            task.cancel()
                            del dialling[peer]
                    for peer, address in wanted.items():
                        if peer not in dialling:
                            task = group.create_task(self._dial_on(peer, address))
                            dialling[peer] = (address, task)
                    await self._changed.wait()
        finally:
            for connection in list(self._live.values()):
                self._drop(connection)

    async def _dial_on(self, peer: str, address: str) -> None:
        """Hold a connection to one peer; when it ends, wait a little longer each time."""
        backoff_s = BACKOFF_S_MIN
        told, failed_count = "", 0
        while True:
            connects = self._counts.connects
            why = await self._dial(peer, address)
            failed_count += 1
            if self._counts.connects > connects:
                backoff_s = BACKOFF_S_MIN
                told, failed_count = "", 0
            # A peer that is only just starting, or was only just stopped, is no news.
            if why != told and failed_count >= FAILED_QUIET_MAX:
                log.info("link not up", extra={"peer": peer, "address": address, "why": why})
                told = why
            await asyncio.sleep(backoff_s * self._rng.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_S_MAX)

    async def _dial(self, peer: str, address: str) -> str:
        """One connection from dialling to its end. Says why it ended."""
        options = (*_CHANNEL_OPTIONS, *tls_options_for(peer))
        credentials = self._credentials.channel_credentials()
        async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
            call = PeerStub(channel).Link()
            try:
                async with asyncio.timeout(HANDSHAKE_S_MAX):
                    await call.write(LinkFrames(hello=self._hello()))
                    first = await call.read()
                if first is grpc.aio.EOF:
                    return await _why(call)
                assert isinstance(first, LinkFrames)
                if first.hello.node_id != peer or first.hello.wire_version != WIRE_VERSION:
                    return f"{first.hello.node_id!r} answered in version {first.hello.wire_version}"
                connection = self._adopt(peer, first.hello)
                await self._converse(connection, call.read, call.write)
                return await _why(call) if call.done() else "ended"
            except TimeoutError:
                return f"no answer within {HANDSHAKE_S_MAX} s"
            except _BROKEN as error:
                return _text_of(error)
            finally:
                call.cancel()

    async def accept(self, read: Read, write: Write, hello: LinkHello) -> None:
        """Serve one stream of a peer whose certificate was checked, until it ends."""
        await write(LinkFrames(hello=self._hello()))
        if hello.node_id not in self._peers:
            return
        try:
            connection = self._adopt(hello.node_id, hello)
            await self._converse(connection, read, write)
        except* AssertionError as bugs:
            # The server would only log it: a bug is to stop the node, through run().
            self._failed.append(bugs)
            self._changed.set()

    def refusal(self, principal: str, hello: LinkHello) -> str:
        """Why a stream with this first message is not taken; empty: it is."""
        why = ""
        if principal != f"node:{hello.node_id}":
            why = f"the certificate is that of {principal}, the first message of {hello.node_id!r}"
        elif hello.wire_version != WIRE_VERSION:
            why = f"this node speaks version {WIRE_VERSION} of the link, not {hello.wire_version}"
        elif hello.node_id not in self._peers:
            why = f"{hello.node_id} is not a peer of {self._node_id}"
        elif hello.node_id > self._node_id:
            why = f"it is for {self._node_id} to dial {hello.node_id}, not the other way round"
        if why:
            self._counts.refused_connects += 1
        return why

    def _hello(self) -> LinkHello:
        return LinkHello(
            node_id=self._node_id,
            incarnation=self._rng.getrandbits(64),
            wire_version=WIRE_VERSION,
            address=self._address,
        )

    def _adopt(self, peer: str, hello: LinkHello) -> _Connection:
        """Make this the one live connection to the peer; an older one ends first."""
        older = self._live.get(peer)
        if older is not None:
            self._drop(older)
        if peer in self._told:
            self._tell_down(self._told[peer])
        connection = _Connection(peer, hello.incarnation)
        if peer not in self._peers:  # it was taken out during the handshake
            connection.end()
            return connection
        self._live[peer] = connection
        self._told[peer] = connection
        self._counts.connects += 1
        log.debug("link up", extra={"peer": peer, "incarnation": hello.incarnation})
        if self._handler is not None:
            self._handler.link_up(peer)
        return connection

    async def _converse(self, connection: _Connection, read: Read, write: Write) -> None:
        """Read and write until one of both ends or the connection is dropped."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._read(connection, read)),
                    group.create_task(self._write(connection, write)),
                    group.create_task(_wait(connection.ended)),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()
        finally:
            self._drop(connection)

    async def _read(self, connection: _Connection, read: Read) -> None:
        try:
            while True:
                async with asyncio.timeout(SILENCE_S_MAX):
                    message = await read()
                if not isinstance(message, LinkFrames) or message.HasField("hello"):
                    return
                await self._take_in(connection, message)
        except (TimeoutError, *_BROKEN) as error:
            log.debug("link read ended", extra={"peer": connection.peer, "why": _text_of(error)})

    async def _take_in(self, connection: _Connection, message: LinkFrames) -> None:
        """Tell the owner of each frame. Now and then the loop has its turn: a message may be long work."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SLICE_S
        for frame in message.frames:
            # The handler may have ended this connection by what it did with a frame.
            if self._live.get(connection.peer) is not connection:
                self._counts.frames_dropped += 1
                continue
            self._counts.frames_received += 1
            if self._handler is not None:
                self._handler.frame_received(connection.peer, frame)
            if loop.time() >= until_s:
                await asyncio.sleep(0)
                until_s = loop.time() + SLICE_S

    async def _write(self, connection: _Connection, write: Write) -> None:
        try:
            while True:
                try:
                    async with asyncio.timeout(BEAT_S):
                        await connection.wake.wait()
                except TimeoutError:
                    await write(LinkFrames())
                connection.wake.clear()
                while connection.queue:
                    message = connection.take_batch()
                    self._counts.messages_sent += 1
                    self._counts.frames_sent += len(message.frames)
                    await write(message)
        except _BROKEN as error:
            log.debug("link write ended", extra={"peer": connection.peer, "why": _text_of(error)})

    def _drop(self, connection: _Connection) -> None:
        """End a connection and tell the owner, once."""
        self._counts.frames_dropped += connection.end()
        if self._live.get(connection.peer) is connection:
            del self._live[connection.peer]
        self._tell_down(connection)

    def _tell_down(self, connection: _Connection) -> None:
        if self._told.get(connection.peer) is not connection:
            return
        del self._told[connection.peer]
        log.debug("link down", extra={"peer": connection.peer})
        if self._handler is not None:
            self._handler.link_down(connection.peer)


class _Servicer(PeerServicer):
    """Takes the streams that peers dial, once their certificate and first message are right."""

    def __init__(self, link: GrpcLink) -> None:
        self._link = link

    async def Link(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
        try:
            principal = principal_of(context.auth_context())
        except NoPrincipal as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        if principal.kind != "node":
            why = f"links are for nodes, not for {principal}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        try:
            async with asyncio.timeout(HANDSHAKE_S_MAX):
                first = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no first message")
        if not isinstance(first, LinkFrames):
            return
        why = self._link.refusal(str(principal), first.hello)
        if why:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, why)
        try:
            await self._link.accept(context.read, context.write, first.hello)
        except _BROKEN as error:
            log.debug("link refused", extra={"peer": principal.name, "why": _text_of(error)})


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _why(call: Any) -> str:
    """The status that a finished call carries, in words."""
    async with asyncio.timeout(HANDSHAKE_S_MAX):
        code = await call.code()
        details = await call.details()
    return f"{code.name}: {details}"


def _text_of(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"

"""Calls that outlive a node: tries the addresses in turn, with back-off and jitter, until the
call's deadline. Every request it sends must be safe to send again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from quorumesh.v1 import locks_pb2_grpc, mesh_pb2_grpc, tasks_pb2_grpc

from mesh.client_errors import DeadlineExceeded, MeshError, Refused, Unreachable, error_of
from mesh.credentials import CHANNEL_TLS_OPTIONS

ADDRESSES_MAX = 256
BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 2.0
TRY_S_MIN = 3.0  # a node that accepts a call and then says nothing is given up after so long
MESSAGE_BYTES_MAX = 64 * 1024 * 1024

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    # A node that is cut off or stopped breaks its streams after at most 15 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)

Dial = Callable[[str], grpc.aio.Channel]
Request = TypeVar("Request")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Services:
    """The stubs of one address."""

    address: str
    channel: grpc.aio.Channel
    tasks: tasks_pb2_grpc.TasksAsyncStub
    locks: locks_pb2_grpc.LocksAsyncStub
    mesh: mesh_pb2_grpc.MeshAsyncStub


def dial_with(credentials: grpc.ChannelCredentials | None) -> Dial:
    """How to open a channel to a node: mutual TLS, or in the clear where credentials are None."""
    if credentials is None:
        return lambda address: grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
    options = (*CHANNEL_OPTIONS, *CHANNEL_TLS_OPTIONS)
    return lambda address: grpc.aio.secure_channel(address, credentials, options=options)


class Calls:
    """Sends each call to the address that answered last, and to the next when it fails."""

    def __init__(
        self, addresses: Sequence[str], dial: Dial, *, rng: random.Random | None = None
    ) -> None:
        if not addresses:
            raise Unreachable("no address of a node is known: give one, such as 127.0.0.1:7400")
        self._addresses = list(dict.fromkeys(addresses))[:ADDRESSES_MAX]
        self._dial = dial
        self._rng = rng or random.Random()
        self._at = 0
        self._open: dict[str, Services] = {}  # at most one per address, so at most ADDRESSES_MAX

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(self._addresses)

    @property
    def current(self) -> str:
        """The address that the next call is sent to first."""
        return self._addresses[self._at]

    def learn(self, addresses: Sequence[str]) -> None:
        """Add addresses to fail over to, behind those already known."""
        for address in addresses:
            known = address in self._addresses
            if address and not known and len(self._addresses) < ADDRESSES_MAX:
                self._addresses.append(address)

    async def close(self) -> None:
        services = list(self._open.values())
        self._open.clear()
        for one in services:
            await one.channel.close()

    async def unary(
        self,
        method: Callable[[Services], grpc.aio.UnaryUnaryMultiCallable[Request, Reply]],
        request: Request,
        *,
        timeout_s: float,
        try_s: float = TRY_S_MIN,
    ) -> Reply:
        """Send until it is answered or refused. Raises what `client_errors` lists.

        One try may take `try_s`, or its share of the time when that is more.
        """
        deadline = _now() + timeout_s
        trial = _Trial(self, deadline)
        while True:
            services = self._services()
            share_s = max(try_s, timeout_s / (len(self._addresses) + 1))
            left_s = max(deadline - _now(), 0.001)
            try:
                return await method(services)(request, timeout=min(share_s, left_s))
            except grpc.aio.AioRpcError as error:
                await trial.failed(services, error)

    async def stream(
        self, start: Callable[[Services], AsyncIterator[Reply]], *, patience_s: float
    ) -> AsyncIterator[Reply]:
        """Follow a stream, starting it anew elsewhere when it breaks.

        `start` must ask for what has not been seen yet. Patience is for going without any reply
        once the stream is broken.
        """
        trial = _Trial(self, _now() + patience_s)
        while True:
            services = self._services()
            try:
                async for reply in start(services):
                    trial = _Trial(self, _now() + patience_s)
                    yield reply
                return
            except grpc.aio.AioRpcError as error:
                if trial.deadline <= _now() and trial.round_count == 0:
                    trial = _Trial(self, _now() + patience_s)
                await trial.failed(services, error)

    def _services(self) -> Services:
        address = self.current
        if address not in self._open:
            channel = self._dial(address)
            stubs: tuple[Any, Any, Any] = (
                tasks_pb2_grpc.TasksStub(channel),
                locks_pb2_grpc.LocksStub(channel),
                mesh_pb2_grpc.MeshStub(channel),
            )
            self._open[address] = Services(address, channel, *stubs)
        return self._open[address]

    def turn_from(self, address: str) -> None:
        """Let the next call go elsewhere, unless another call has already turned."""
        if self.current == address:
            self._at = (self._at + 1) % len(self._addresses)

    def jitter(self) -> float:
        return self._rng.uniform(0.5, 1.0)


class _Trial:
    """One call's way through the addresses: what failed so far, and how long to wait."""

    def __init__(self, calls: Calls, deadline: float) -> None:
        self._calls = calls
        self.deadline = deadline
        self.round_count = 0
        self._failed_count = 0
        self._said: dict[str, MeshError] = {}

    async def failed(self, services: Services, error: grpc.aio.AioRpcError) -> None:
        """Wait before the next try. Raises when there is none: it was refused, or time is out."""
        mine = error_of(error)
        lost = error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
        busy = isinstance(mine, Refused) and mine.retry_ms is not None
        if isinstance(mine, Refused) and not (lost or busy):
            raise mine from None
        self._said[services.address] = mine
        self._failed_count += 1
        if not busy:
            self._calls.turn_from(services.address)
        wait_s = self._wait_s(mine)
        if _now() + wait_s >= self.deadline:
            raise self._last_word(mine) from None
        await asyncio.sleep(wait_s)

    def _wait_s(self, error: MeshError) -> float:
        """Nothing before another address is tried; then ever longer after each round."""
        asked_s = (getattr(error, "retry_ms", None) or 0) / 1000
        if isinstance(error, Refused):
            return min(max(asked_s, BACKOFF_S_MIN), BACKOFF_S_MAX) * self._calls.jitter()
        if self._failed_count % len(self._calls.addresses):
            return 0.0
        self.round_count += 1
        grown_s = BACKOFF_S_MIN * 2.0 ** min(self.round_count, 10)
        return min(max(grown_s, min(asked_s, 0.5)), BACKOFF_S_MAX) * self._calls.jitter()

    def _last_word(self, error: MeshError) -> MeshError:
        if isinstance(error, Refused | DeadlineExceeded):
            return error
        told = [f"{address}: {_short(said)}" for address, said in list(self._said.items())[:5]]
        retry_ms = error.retry_ms if isinstance(error, Unreachable) else None
        return Unreachable("; ".join(told), retry_ms=retry_ms)


def _short(error: MeshError) -> str:
    text = " ".join(str(error).split())
    lowered = text.lower()
    if "ssl" in lowered or "certificate" in lowered or "handshake" in lowered:
        return "TLS handshake failed (certificates of another mesh?)"
    if "connection refused" in lowered:
        return "connection refused"
    return text[:200]


def _now() -> float:
    return asyncio.get_running_loop().time()

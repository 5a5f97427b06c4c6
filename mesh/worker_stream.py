"""The worker's side of `Workers.Work`: one stream to its node, opened again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio
from quorumesh.v1.values_pb2 import Label
from quorumesh.v1.workers_pb2 import FromWorker, ToWorker, WorkerHello
from quorumesh.v1.workers_pb2_grpc import WorkersStub

from mesh.worker_host import Host

GONE_MS_MAX = 10_000  # a node that cannot be reached for so long is gone
WELCOME_MS_MAX = 10_000
BACKOFF_MS_MIN = 50
BACKOFF_MS_MAX = 1_000
STREAM_BYTES_MAX = 64 * 1_048_576  # of one message; senders split far below it

STREAM_OPTIONS = (
    ("grpc.max_receive_message_length", STREAM_BYTES_MAX),
    ("grpc.max_send_message_length", STREAM_BYTES_MAX),
    ("grpc.max_reconnect_backoff_ms", BACKOFF_MS_MAX),
    ("grpc.initial_reconnect_backoff_ms", BACKOFF_MS_MIN),
    ("grpc.min_reconnect_backoff_ms", BACKOFF_MS_MIN),
)

Call = grpc.aio.StreamStreamCall[FromWorker, ToWorker]

log = logging.getLogger("mesh.worker")


@dataclass(frozen=True, slots=True)
class Hello:
    """Who this worker is. The session stays the same for the life of the process."""

    session: bytes
    name: str
    skills: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    slots: int

    def to_proto(self) -> WorkerHello:
        return WorkerHello(
            session=self.session,
            name=self.name,
            skills=self.skills,
            labels=[Label(key=key, value=value) for key, value in self.labels],
            slots=self.slots,
        )


class Stream:
    """Carries a host's reports to the node and the node's word to the host."""

    def __init__(
        self,
        hello: Hello,
        host: Host,
        *,
        connect: Callable[[], grpc.aio.Channel],
        gone_ms_max: int = GONE_MS_MAX,
    ) -> None:
        self._gone_ms_max = gone_ms_max
        self._hello = hello
        self._host = host
        self._connect = connect
        self._wake = asyncio.Event()
        self._heard_ms = _now_ms()  # when there was a stream for the last time
        self._is_welcome = False

    def wake(self) -> None:
        """The host has something to say."""
        self._wake.set()

    async def run(self) -> None:
        """Speak until the node is gone: then return. Cancel it to stop earlier."""
        self._heard_ms = _now_ms()
        backoff_ms = BACKOFF_MS_MIN
        while _now_ms() - self._heard_ms < self._gone_ms_max:
            self._is_welcome = False
            try:
                async with self._connect() as channel:
                    await self._speak(WorkersStub(channel).Work())
                log.info("the node ended the stream")
            except grpc.aio.AioRpcError as error:
                log.info("stream broken: %s %s", error.code().name, error.details())
            except TimeoutError:
                log.info("no welcome within %d ms", WELCOME_MS_MAX)
            if self._is_welcome:
                self._heard_ms = _now_ms()
                backoff_ms = BACKOFF_MS_MIN
            await asyncio.sleep(backoff_ms / 1_000)
            backoff_ms = min(2 * backoff_ms, BACKOFF_MS_MAX)

    async def _speak(self, call: Call) -> None:
        async with asyncio.timeout(WELCOME_MS_MAX / 1_000):
            await call.write(FromWorker(hello=self._hello.to_proto()))
            first = await call.read()
        if not isinstance(first, ToWorker):
            await call.code()
            return
        self._welcomed(first)
        writer = asyncio.ensure_future(self._write(call))
        try:
            while isinstance(message := await call.read(), ToWorker):
                self._hear(message)
        finally:
            writer.cancel()
            with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                await writer

    def _welcomed(self, first: ToWorker) -> None:
        log.info("welcome: node=%s epoch=%d", first.welcome.node_id, first.welcome.epoch)
        self._is_welcome = True
        # The first message lists all that the session holds.
        self._host.held_elsewhere({(g.subtask_ref, g.fence) for g in first.grants})
        self._host.reconnected()
        self._hear(first)

    def _hear(self, message: ToWorker) -> None:
        if message.renewed_lease_ms:
            self._host.renewed(message.renewed_lease_ms)
        for revoke in message.revokes:
            self._host.revoked((revoke.subtask_ref, revoke.fence), revoke.why)
        for answer in message.settled:
            self._host.settled(answer)
        if message.grants:
            self._host.granted(message.grants)

    async def _write(self, call: Call) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while (message := self._host.take_reports()) is not None:
                await call.write(message)
            if self._host.take_lease_end():
                await call.done_writing()
                return


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000

"""The gRPC service `Workers`: one stream per worker. A thin shell around `Sessions`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import grpc.aio
from quorumesh.v1.workers_pb2 import FromWorker, Grant, ToWorker, Welcome, WorkerHello
from quorumesh.v1.workers_pb2_grpc import WorkersServicer

from consensus.errors import Unavailable
from node.api.errors import Refusal, abort, refusal_of
from node.api.seats import Seat
from node.api.sessions import SessionRefused, Sessions

SESSION_BYTES = 16
SLOTS_MAX = 4_096
HELLO_MS_MAX = 10_000

ServicerContext = grpc.aio.ServicerContext[FromWorker, ToWorker]

log = logging.getLogger("node.workers")


class WorkersService(WorkersServicer):
    """Serves `Work`, on the Unix socket and on the mesh port alike."""

    def __init__(self, sessions: Sessions, *, node_id: str) -> None:
        self._sessions = sessions
        self._node_id = node_id

    # The generated type knows only generators; writing from here ends the stream deterministically.
    async def Work(  # type: ignore[override]
        self, request_iterator: AsyncIterator[FromWorker], context: ServicerContext
    ) -> None:
        """Hold a worker's session open for as long as the stream lives."""
        hello = await self._hello(request_iterator, context)
        try:
            seat, grants = await self._sessions.open(hello)
        except SessionRefused as refused:
            await abort(context, refusal_of(refused.reason, str(refused)))
        except Unavailable as error:
            await abort(context, error)
        log.info("worker connected: name=%s epoch=%d", hello.name, seat.epoch)
        reader = asyncio.ensure_future(self._read(seat, request_iterator))
        try:
            await context.write(self._first(seat, grants))
            while not seat.over:
                await seat.outbox.wait()
                while (message := seat.outbox.take()) is not None:
                    await context.write(message)
        finally:
            reader.cancel()
            self._sessions.close(seat)
            log.info("worker gone: name=%s why=%s", hello.name, seat.over)

    async def _hello(
        self, requests: AsyncIterator[FromWorker], context: ServicerContext
    ) -> WorkerHello:
        try:
            async with asyncio.timeout(HELLO_MS_MAX / 1_000):
                first = await anext(aiter(requests))
        except (StopAsyncIteration, TimeoutError):
            await abort(context, Refusal("INVALID", "a worker says hello first"))
        trouble = hello_trouble(first.hello)
        if trouble:
            await abort(context, Refusal("INVALID", trouble))
        return first.hello

    def _first(self, seat: Seat, grants: list[Grant]) -> ToWorker:
        welcome = Welcome(node_id=self._node_id, epoch=seat.epoch, lease_ms=self._sessions.lease_ms)
        return ToWorker(welcome=welcome, grants=grants)

    async def _read(self, seat: Seat, requests: AsyncIterator[FromWorker]) -> None:
        try:
            async for message in requests:
                self._sessions.heard(seat, message)
                await self._sessions.room()
                if seat.outbox.is_full:
                    seat.end("the worker does not read its answers")
                    return
            seat.end("the worker ended the stream")
        except grpc.aio.BaseError as error:
            seat.end(f"the stream broke: {error}")


def hello_trouble(hello: WorkerHello) -> str:
    """Why this hello is not accepted; empty: it is."""
    if len(hello.session) != SESSION_BYTES:
        return f"a session has {SESSION_BYTES} bytes"
    if not 0 <= hello.slots <= SLOTS_MAX:
        return f"slots are 0 to {SLOTS_MAX:,}"
    if not hello.skills:
        return "a worker has at least one skill"
    return ""

"""The synchronous client: the asynchronous one, run on a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from quorumesh.v1 import locks_pb2, mesh_pb2, tasks_pb2

from mesh.aio import RESULT_TIMEOUT_S, TIMEOUT_S, AsyncClient, Task
from mesh.calls import Dial
from mesh.client_errors import Refused

_T = TypeVar("_T")


class Client:
    """A client of one mesh, for ordinary programs. Safe to share between threads.

    Takes the same arguments as `AsyncClient`, has the same methods and raises the same errors.
    Close it, or use it in a `with` block.
    """

    def __init__(
        self,
        addresses: Sequence[str] | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        profile: str | os.PathLike[str] | None = None,
        dial: Dial | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._inner = AsyncClient(
            addresses, credentials=credentials, profile=profile, dial=dial, timeout_s=timeout_s
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="mesh-client", daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread. Closing twice is fine."""
        if self._loop.is_closed():
            return
        self._wait(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def addresses(self) -> tuple[str, ...]:
        """See `AsyncClient.addresses`."""
        return self._inner.addresses

    def submit(
        self, task: Task, *, task_id: str | None = None, timeout_s: float | None = None
    ) -> str:
        """See `AsyncClient.submit`."""
        return self._wait(self._inner.submit(task, task_id=task_id, timeout_s=timeout_s))

    def submit_many(
        self, tasks: Iterable[Task], *, timeout_s: float | None = None
    ) -> Iterator[str | Refused]:
        """See `AsyncClient.submit_many`. `tasks` is read on the client's own thread."""
        return self._each(self._inner.submit_many(tasks, timeout_s=timeout_s))

    def get(
        self,
        task_id: str,
        *,
        subtasks: bool = True,
        outputs: bool = False,
        linearizable: bool = False,
    ) -> tasks_pb2.TaskInfo:
        """See `AsyncClient.get`."""
        return self._wait(
            self._inner.get(task_id, subtasks=subtasks, outputs=outputs, linearizable=linearizable)
        )

    def list(self, *, state: str = "", limit: int | None = None) -> Iterator[tasks_pb2.TaskInfo]:
        """See `AsyncClient.list`."""
        return self._each(self._inner.list(state=state, limit=limit))

    def watch(
        self,
        task_id: str | None = None,
        *,
        after_revision: int = 0,
        timeout_s: float | None = None,
    ) -> Iterator[tasks_pb2.TaskEvent]:
        """See `AsyncClient.watch`."""
        return self._each(
            self._inner.watch(task_id, after_revision=after_revision, timeout_s=timeout_s)
        )

    def result(self, task_id: str, timeout_s: float = RESULT_TIMEOUT_S) -> object:
        """See `AsyncClient.result`."""
        return self._wait(self._inner.result(task_id, timeout_s))

    def ended(self, task_id: str, timeout_s: float = RESULT_TIMEOUT_S) -> tasks_pb2.TaskInfo:
        """See `AsyncClient.ended`."""
        return self._wait(self._inner.ended(task_id, timeout_s))

    def cancel(self, task_id: str) -> None:
        """See `AsyncClient.cancel`."""
        self._wait(self._inner.cancel(task_id))

    def story(self, task_id: str) -> Iterator[tasks_pb2.TaskEvent]:
        """See `AsyncClient.story`."""
        return self._each(self._inner.story(task_id))

    def status(self) -> mesh_pb2.StatusReply:
        """See `AsyncClient.status`."""
        return self._wait(self._inner.status())

    def members(self, *, timeout_s: float | None = None) -> Sequence[mesh_pb2.Member]:
        """See `AsyncClient.members`."""
        return self._wait(self._inner.members(timeout_s=timeout_s))

    def locks(self) -> Iterator[locks_pb2.LockInfo]:
        """See `AsyncClient.locks`."""
        return self._each(self._inner.locks())

    def create_token(self, ttl_ms: int = 0) -> mesh_pb2.CreateTokenReply:
        """See `AsyncClient.create_token`."""
        return self._wait(self._inner.create_token(ttl_ms))

    def digest(self, at_least_revision: int = 0) -> mesh_pb2.DigestReply:
        """See `AsyncClient.digest`."""
        return self._wait(self._inner.digest(at_least_revision))

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C: what runs on the loop must not go on unseen
            raise

    def _each(self, items: AsyncIterator[_T]) -> Iterator[_T]:
        async def following() -> tuple[_T, ...]:
            try:
                return (await anext(items),)
            except StopAsyncIteration:
                return ()

        async def end() -> None:
            if hasattr(items, "aclose"):
                await items.aclose()

        try:
            while item := self._wait(following()):
                yield item[0]
        finally:
            if not self._loop.is_closed():
                self._wait(end())

    async def _shut(self) -> None:
        await self._inner.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()

"""The machine under the node: clocks, a thread for blocking work, and the choice of event loop."""

from __future__ import annotations

import asyncio
import importlib.util
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from node.config import ConfigError, Loop
from node.garbage import collect_garbage, rarely_by_itself

# One that checkpoints, one that copies, one that checks and one that removes what is large.
BACKGROUND_THREADS = 4

Result = TypeVar("Result")


class SystemClock:
    """The clocks of this machine."""

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000


class ThreadBackground:
    """Runs blocking work in threads, and tells its end on the loop that it was made on."""

    def __init__(self, name: str, *, threads: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        """Run `work` off the loop, then `done` on it, with what it raised or None."""

        def ended(future: Future[None]) -> None:
            error = future.exception()
            try:
                self._loop.call_soon_threadsafe(done, error)
            except RuntimeError:
                # The loop is closed: the node has stopped, and nobody waits any longer.
                return

        self._pool.submit(work).add_done_callback(ended)

    def close(self) -> None:
        """Wait for what runs, and take no more."""
        self._pool.shutdown(wait=True)


def loop_factory(loop: Loop) -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The name of the loop to run on and how to make one. Raises ConfigError."""
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    if loop is Loop.UVLOOP and not has_uvloop:
        raise ConfigError("--loop uvloop: uvloop is not installed here (use auto or asyncio)")
    if loop is Loop.ASYNCIO or not has_uvloop:
        return "asyncio", asyncio.new_event_loop
    import uvloop

    return "uvloop", uvloop.new_event_loop


def run_on(
    factory: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, Result]
) -> Result:
    """Run a coroutine to its end on a fresh loop, which collects this process's garbage meanwhile."""

    async def collecting() -> Result:
        collector = asyncio.create_task(collect_garbage())
        try:
            return await main
        finally:
            collector.cancel()

    with rarely_by_itself(), asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(collecting())

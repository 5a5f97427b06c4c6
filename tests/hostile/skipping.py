"""An event loop whose time goes on at once to what it waits for, so that a deadline costs no time."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable

Ready = list[tuple[selectors.SelectorKey, int]]


class _Skipping(selectors.DefaultSelector):
    """Never waits for time alone. While others work (`is_busy`) it waits for them in earnest."""

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        super().__init__()
        self._is_busy = is_busy
        self.skipped_s = 0.0

    def select(self, timeout: float | None = None) -> Ready:
        ready = super().select(0)
        if ready or (timeout is not None and timeout <= 0):
            return ready
        if timeout is None or self._is_busy():
            return super().select(timeout)
        self.skipped_s += timeout
        return []


class SkippingLoop(asyncio.SelectorEventLoop):
    """`is_busy` says whether a thread or another host is working for somebody on this loop."""

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._skipping = _Skipping(is_busy)
        super().__init__(self._skipping)

    def time(self) -> float:
        return super().time() + self._skipping.skipped_s

    def monotonic_ms(self) -> int:
        return int(self.time() * 1_000)

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000 + int(self._skipping.skipped_s * 1_000)

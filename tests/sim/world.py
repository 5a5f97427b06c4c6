"""Virtual time, and the one order in which everything of a run happens.

Every event is told to a running hash, so that two runs of a seed can be compared bit for bit.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from hashlib import blake2b

START_US = 1_000_000_000
Act = Callable[[], None]


class Violation(AssertionError):
    """Something that the mesh promises did not hold."""


class Beyond(Exception):
    """More came to pass than the mesh promises to stand: the life ends here, and is counted so."""


class Trace:
    """The hash over all that happened; lines for people when somebody wants them."""

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self._hash = blake2b(digest_size=16)
        self._tell = tell
        self.event_count = 0

    def note(self, now_us: int, kind: str, who: str, data: bytes = b"", words: str = "") -> None:
        self.event_count += 1
        self._hash.update(f"{now_us} {kind} {who} {len(data)} ".encode())
        self._hash.update(data)
        if self._tell is not None:
            shown = words or (f"{len(data)} bytes" if data else "")
            self._tell(f"{(now_us - START_US) / 1e6:10.6f} {kind:<8} {who:<8} {shown}")

    def digest(self) -> str:
        return self._hash.hexdigest()


class World:
    """Time moves only from one event to the next; events of one moment keep the order of asking."""

    def __init__(self, seed: int, trace: Trace) -> None:
        self.seed, self.trace = seed, trace
        self.chance = random.Random(f"world {seed}")
        self.now_us = START_US
        self.event_count = 0
        self._events: list[tuple[int, int, Act]] = []
        self._ids = itertools.count()

    def after_us(self, delay_us: int, act: Act) -> None:
        heapq.heappush(self._events, (self.now_us + delay_us, next(self._ids), act))

    def after_ms(self, delay_ms: float, act: Act) -> None:
        self.after_us(int(delay_ms * 1_000), act)

    @property
    def now_ms(self) -> int:
        """True time since the start, which no node sees."""
        return (self.now_us - START_US) // 1_000

    def note(self, kind: str, who: str, data: bytes = b"", words: str = "") -> None:
        self.trace.note(self.now_us, kind, who, data, words)

    def run_until(self, end_ms: int) -> None:
        end_us = START_US + end_ms * 1_000
        events = self._events
        while events and events[0][0] <= end_us:
            self.now_us, _, act = heapq.heappop(events)
            self.event_count += 1
            act()
        self.now_us = end_us

    def run_while(self, is_wanted: Callable[[], bool], *, ms_max: int, step_ms: int = 50) -> bool:
        """Go on while the condition holds; False when it still does after ms_max."""
        end_ms = self.now_ms + ms_max
        while is_wanted():
            if self.now_ms >= end_ms:
                return False
            self.run_until(min(self.now_ms + step_ms, end_ms))
        return True

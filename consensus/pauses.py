"""When the next copy of the ledger may be begun: not at once after one that came to nothing."""

from __future__ import annotations

from consensus.ports import Clock

REQUEST_PAUSE_MS = 2_000  # after a copy that failed or was not sound, before the next is made
# After a copy that was too slow or not vouched for; doubled each time, and never less than it took.
LONG_PAUSE_MS_MIN = 5_000
LONG_PAUSE_MS_MAX = 600_000


class Pauses:
    """The pauses between the copies that one node makes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._not_before_ms = self._began_ms = self._in_vain_ms = clock.monotonic_ms()
        self._took_ms = 0  # the last one that was in vain
        self._long_pause_ms = LONG_PAUSE_MS_MIN

    @property
    def is_over(self) -> bool:
        return self._clock.monotonic_ms() >= self._not_before_ms

    def begun(self) -> None:
        """A copy is begun."""
        self._began_ms = self._clock.monotonic_ms()

    def failed(self) -> None:
        """A disk that is full does not get emptier by filling it again at once."""
        self._not_before_ms = self._clock.monotonic_ms() + REQUEST_PAUSE_MS

    def was_in_vain(self) -> int:
        """Long work came to nothing, and may again: ever more seldom. The pause in ms."""
        self._in_vain_ms = self._clock.monotonic_ms()
        self._took_ms = self._in_vain_ms - self._began_ms
        pause_ms = max(self._long_pause_ms, self._took_ms)
        self._long_pause_ms = min(2 * self._long_pause_ms, LONG_PAUSE_MS_MAX)
        self._not_before_ms = self._in_vain_ms + pause_ms
        return pause_ms

    def succeeded(self) -> None:
        """The next that is in vain is the first again."""
        self._long_pause_ms = LONG_PAUSE_MS_MIN

    def shorten(self) -> None:
        """What copies were in vain for may be over: try again soon, if not all the time."""
        self._long_pause_ms = LONG_PAUSE_MS_MIN
        soon_ms = self._clock.monotonic_ms() + REQUEST_PAUSE_MS
        soon_ms = max(soon_ms, self._in_vain_ms + max(LONG_PAUSE_MS_MIN, self._took_ms))
        self._not_before_ms = min(self._not_before_ms, soon_ms)

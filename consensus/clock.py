"""Counted time: what leases, back-off and deadlines are compared with. It reads no clock but the one it is given."""

from __future__ import annotations

from consensus.ports import Clock

TICK_MS_MAX = 500  # a stopped process may not expire the world when it goes on


class CountedClock:
    """Estimates the mesh's counted time here and now.

    On the leader it is what entries are stamped with; elsewhere it follows the leader's heartbeats.
    The estimate may step back when a heartbeat says so; the ledger clamps what is applied.
    """

    def __init__(self, clock: Clock, *, counted_ms: int) -> None:
        self._clock = clock
        self._counted_ms = counted_ms
        self._read_ms = clock.monotonic_ms()

    def now_ms(self) -> int:
        """Counted time now. Each call counts at most TICK_MS_MAX since the one before."""
        read_ms = self._clock.monotonic_ms()
        self._counted_ms += min(max(0, read_ms - self._read_ms), TICK_MS_MAX)
        self._read_ms = read_ms
        return self._counted_ms

    def heard(self, counted_ms: int) -> None:
        """A leader's heartbeat said so."""
        self._counted_ms = counted_ms
        self._read_ms = self._clock.monotonic_ms()

    def at_least(self, counted_ms: int) -> None:
        """Never behind the stamp of a log entry that this node holds."""
        self._counted_ms = max(self.now_ms(), counted_ms)

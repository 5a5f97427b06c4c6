"""Counted time follows the leader, counts little at a time and never expires the world by itself."""

from __future__ import annotations

from consensus.clock import TICK_MS_MAX, CountedClock


class HandClock:
    def __init__(self) -> None:
        self.now_ms = 1_000

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return self.now_ms


def test_a_process_that_was_stopped_counts_one_tick_at_most() -> None:
    clock = HandClock()
    counted = CountedClock(clock, counted_ms=50)

    clock.now_ms += 3_600_000

    assert counted.now_ms() == 50 + TICK_MS_MAX


def test_a_heartbeat_sets_the_estimate_and_own_time_goes_on_from_it() -> None:
    clock = HandClock()
    counted = CountedClock(clock, counted_ms=0)

    counted.heard(7_000)
    clock.now_ms += 20

    assert counted.now_ms() == 7_020


def test_it_is_never_behind_an_entry_that_this_node_holds() -> None:
    counted = CountedClock(HandClock(), counted_ms=10)

    counted.at_least(900)
    counted.at_least(800)

    assert counted.now_ms() == 900

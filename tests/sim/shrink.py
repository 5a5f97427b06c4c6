"""Leaves out faults of a failing life for as long as it still fails."""

from __future__ import annotations

from collections.abc import Callable

TRIES_MAX = 60


def shrink(
    chosen: list[int], fails: Callable[[list[int]], bool], *, tries_max: int = TRIES_MAX
) -> list[int]:
    """The fewest faults found, by number, that still fail within so many tries (ddmin)."""
    tries = parts = 0
    parts = 2
    while len(chosen) > 1 and tries < tries_max:
        size = max(1, len(chosen) // parts)
        for start in range(0, len(chosen), size):
            fewer = chosen[:start] + chosen[start + size :]
            tries += 1
            if fails(fewer):
                chosen, parts = fewer, max(2, parts - 1)
                break
            if tries >= tries_max:
                return chosen
        else:
            if size == 1:
                break
            parts = min(len(chosen), parts * 2)
    return chosen

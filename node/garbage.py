"""When Python looks for garbage: on the event loop, the young every second, all of it seldom.

Left alone, CPython collects in whichever thread happens to allocate, and no thread runs Python until
that is done. When it is one that hashes or copies a ledger, and waits for a processor half-way, the
loop is held up for much longer than the collection takes. Most of what a node holds for long (rows in
memory) is no garbage, and looking through it takes tens of milliseconds; what is garbage is mostly
young. See the documentation of Python's `gc`: generations, `freeze`, `set_threshold`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator

YOUNG_EVERY_S = 1.0
ROUNDS_BETWEEN_ALL = 600

# So many more objects made than freed between two rounds, and Python collects the youngest by itself,
# wherever that is: memory is bounded even when the loop does not come round.
OBJECTS_BETWEEN_ROUNDS_MAX = 200_000
NEVER = 1_000_000  # rounds of the next younger generation


@contextlib.contextmanager
def rarely_by_itself() -> Iterator[None]:
    """Meanwhile Python collects by itself only in need. Then it goes on as it did before.

    What there is at the beginning, modules and classes for the most part, is never looked through.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_ROUNDS_MAX, NEVER, NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def collect_garbage(*, every_s: float = YOUNG_EVERY_S) -> None:
    """Collect on this loop until cancelled: the young in every round, all in every 600th."""
    rounds = 0
    while True:
        await asyncio.sleep(every_s)
        rounds += 1
        gc.collect(2 if rounds % ROUNDS_BETWEEN_ALL == 0 else 1)

"""How quick this machine is just now, by a fixed piece of work of the kinds that a life is made of.

Processor seconds of two days, or of two machines, cannot be compared: the same lives of the same
commit have cost from 8.5 to 14 minutes on machines that call themselves the same. The bar on what
simulating costs is therefore held at the speed of the day on which it was first measured.
"""

from __future__ import annotations

import heapq
import sqlite3
import time
from dataclasses import dataclass
from hashlib import blake2b

REFERENCE_S = 0.0335  # of one measurement, where two hundred lives cost 8.5 processor minutes
ROUNDS = 800


@dataclass(frozen=True)
class Piece:
    """Something small to make, compare and throw away."""

    due: int
    name: str


def yardstick_s() -> float:
    """Processor seconds that the fixed piece of work takes now."""
    began_s = time.process_time()
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("CREATE TABLE piece (due INTEGER PRIMARY KEY, name TEXT) WITHOUT ROWID")
    for number in range(ROUNDS):
        pieces = _worked(number)
        db.execute("BEGIN IMMEDIATE")
        db.executemany(
            "INSERT OR REPLACE INTO piece VALUES (?,?)", [(p.due, p.name) for p in pieces]
        )
        db.execute("SELECT min(due) FROM piece WHERE due > ?", (number,)).fetchone()
        db.execute("COMMIT")
    db.close()
    return time.process_time() - began_s


def at_reference_s(cpu_s: float, yardsticks_s: float, count: int) -> float:
    """What took so long here, among so many measurements of so long in all, at the reference's speed."""
    return cpu_s * REFERENCE_S * count / yardsticks_s if count else 0.0


def _worked(number: int) -> list[Piece]:
    """Plain Python: objects, a heap, a hash, a map."""
    heap: list[tuple[int, int]] = []
    known: dict[str, int] = {}
    chain = blake2b(number.to_bytes(8, "big"), digest_size=16)
    for step in range(24):
        due = (number * 7 + step * 131) % 997
        heapq.heappush(heap, (due, step))
        known[f"{due} {step}"] = known.get(f"{due}", 0) + 1
        chain.update(f"{due} {step} ".encode())
    pieces = [Piece(due=due, name=chain.hexdigest()) for due, _ in heap if due % 3]
    return sorted(pieces, key=lambda piece: piece.due)[:4]

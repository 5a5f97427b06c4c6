"""What goes wrong and when: a list made from the seed alone, so that parts of it can be left out."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Kind and weight. Each second of a life sees about one.
WEIGHTS = {
    "kill": 8,
    "power": 8,
    "crash_at_write": 10,
    "kill_all": 1,
    "power_all": 3,
    "power_majority": 3,
    "pause": 5,
    "isolate": 5,
    "cut": 5,
    "one_way": 5,
    "bridge": 3,
    "ring": 2,
    "split": 4,
    "blip": 8,
    "slow_link": 4,
    "lossy": 4,
    "duplicate": 2,
    "slow_disk": 4,
    "full": 4,
    "sync_error": 3,
    "damage": 1,
    "rot": 0,
    "join": 3,
    "remove": 1,
    "replace": 2,
    "drift": 4,
    "wall_jump": 2,
    "worker_pause": 5,
}
# Faults that look who leads (moments.py), which every second hundred of seeds meets as well.
MOMENTS = {
    "short_reign": 4,
    "bare_majority": 4,
    "far": 3,
    "comeback": 3,
    "relay": 4,
    "crowd": 2,
    "purge": 2,
}
ROT = {"rot": 3}  # the same; a rotten ledger must be found, and nobody may be sent a copy of it


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong. Which nodes `one` and `other` mean is found when it happens."""

    at_ms: int
    kind: str
    one: int
    other: int
    for_ms: int
    share: float

    def __str__(self) -> str:
        return (
            f"{self.at_ms / 1_000:8.3f} s  {self.kind:<15} {self.one}/{self.other} "
            f"for {self.for_ms} ms, {self.share:.3f}"
        )


def faults_of(
    seed: int, end_ms: int, *, every_ms: float = 1_000, others: dict[str, int] | None = None
) -> list[Fault]:
    """The faults of a life. Some seeds are of one mood: most of their faults come from few kinds.

    `others` are weights to take instead of the usual ones. Seeds 100 to 199, 300 to 399 and so on
    meet the MOMENTS and ROT too.
    """
    chance = random.Random(f"{seed} faults")
    weights = WEIGHTS | (MOMENTS | ROT if seed // 100 % 2 else {}) | (others or {})
    if chance.random() < 0.3:
        for kind in chance.sample(sorted(weights), 4):
            weights[kind] *= 8
    kinds = list(weights)
    faults: list[Fault] = []
    at_ms = 1_500.0
    while True:
        at_ms += chance.expovariate(1 / every_ms) + 1
        if at_ms >= end_ms:
            return faults
        faults.append(
            Fault(
                at_ms=int(at_ms),
                kind=chance.choices(kinds, list(weights.values()))[0],
                one=chance.randrange(60),
                other=chance.randrange(60),
                for_ms=int(min(chance.expovariate(1 / 1_500), 9_000)) + 20,
                share=chance.random(),
            )
        )

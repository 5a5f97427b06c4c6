"""Flips bits and cuts files of a stopped node, starts a replica on them and says how each one ended.

Not here: the ledger's own database, whose damage `mesh doctor --data` and the scrub find.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.engine.opening import read_journal
from consensus.engine.vote import decode
from consensus.errors import Damaged
from tests.consensus.cluster import Cluster
from tests.damage.folder import SMALL, Lived


class Ending(StrEnum):
    """What a start made of a damaged folder."""

    DETECTED = "refused to start"
    TAIL_CUT = "unproven tail cut, nothing committed lost"
    ONLY_PROOF = "only a proof lost, all entries there"
    THROWN_AWAY = "thrown away unread"
    UNSEEN = "NOT SEEN"


class Part(StrEnum):
    """Where the damage was done."""

    VOTE = "vote"
    CURRENT = "CURRENT"
    COPY = "snapshot"
    PROVEN = "journal, proven"
    UNPROVEN = "journal, after the last proof"


ALLOWED = {
    Part.VOTE: {Ending.DETECTED},
    Part.CURRENT: {Ending.DETECTED},
    Part.COPY: {Ending.THROWN_AWAY},
    Part.PROVEN: {Ending.DETECTED},
    # Damage to the last group is that of a torn write. Lost entries that the ledger has applied are
    # missed at once.
    Part.UNPROVEN: {Ending.DETECTED, Ending.TAIL_CUT, Ending.ONLY_PROOF},
}


LAST_BYTES = 4  # flipped one by one in every campaign


@dataclass(frozen=True, slots=True)
class Damage:
    """One file, damaged at one byte: `bit` is flipped, or the file ends there when it is None."""

    path: Path  # relative to the node's folder
    offset: int
    bit: int | None

    def apply(self, home: Path) -> None:
        data = bytearray((home / self.path).read_bytes())
        if self.bit is None:
            del data[self.offset :]
        else:
            data[self.offset] ^= 1 << self.bit
        (home / self.path).write_bytes(bytes(data))


@dataclass(frozen=True, slots=True)
class Result:
    damage: Damage
    part: Part
    ending: Ending

    @property
    def is_allowed(self) -> bool:
        return self.ending in ALLOWED[self.part]


def damages(lived: Lived, rng: random.Random, *, flips: int, truncations: int) -> list[Damage]:
    """So many of each, spread over all files but the ledger's; the journal gets most.

    What is not proven yet may be a few bytes only: some of those are hit in any case.
    """
    home = lived.root / lived.node_id
    journal = sorted((home / "journal").iterdir())
    others = [home / "vote", home / "CURRENT", *sorted((home / "snapshots").iterdir())]
    found = []
    for number in range(flips + truncations):
        path = rng.choice(others if number % 4 == 0 else journal)
        offset = rng.randrange(path.stat().st_size)
        bit = rng.randrange(8) if number < flips else None
        found.append(Damage(path.relative_to(home), offset, bit))
    end = journal[-1].stat().st_size
    for before in range(1, LAST_BYTES + 1):
        found.append(Damage(journal[-1].relative_to(home), end - before, before % 8))
    return found


def part_of(lived: Lived, damage: Damage) -> Part:
    """Where it lies. A cut reaches from its offset on to all that follows, proofs included."""
    match damage.path.parts:
        case ["vote"]:
            return Part.VOTE
        case ["CURRENT"]:
            return Part.CURRENT
        case ["snapshots", _]:
            return Part.COPY
    sequence = int(damage.path.stem)
    is_proven = (sequence, damage.offset) < lived.journal.proven
    return Part.PROVEN if is_proven else Part.UNPROVEN


def ending_of(lived: Lived, damage: Damage, scratch: Path) -> Ending:
    """Start a replica on a damaged copy of the folder in `scratch`, which is removed again."""
    home = scratch / lived.node_id
    shutil.copytree(lived.root / lived.node_id, home)
    damage.apply(home)
    cluster = Cluster(scratch, **SMALL)
    try:
        core = cluster.start(lived.node_id)
    except Damaged:
        return Ending.DETECTED
    else:
        core.close()
        return _held(lived, home, damage)
    finally:
        shutil.rmtree(home)


def _held(lived: Lived, home: Path, damage: Damage) -> Ending:
    rows = read_journal(home / "journal", Disk()).rows
    is_prefix = tuple(rows) == lived.rows[: len(rows)]
    if decode((home / "vote").read_bytes(), home / "vote") != lived.vote or not is_prefix:
        return Ending.UNSEEN
    if damage.path.parts[0] == "snapshots":
        is_gone = not (home / damage.path).exists()
        return Ending.THROWN_AWAY if is_gone and len(rows) == len(lived.rows) else Ending.UNSEEN
    if damage.path.parts[0] != "journal":
        return Ending.UNSEEN
    if len(rows) == len(lived.rows):
        return Ending.ONLY_PROOF
    return Ending.TAIL_CUT if rows[-1][1] >= lived.committed else Ending.UNSEEN


def run(lived: Lived, scratch: Path, found: list[Damage]) -> list[Result]:
    return [Result(one, part_of(lived, one), ending_of(lived, one, scratch)) for one in found]


def table(results: list[Result]) -> str:
    """Counts by kind of damage, place and ending."""
    counts = Counter(
        ("cut short" if one.damage.bit is None else "bit flip", one.part, one.ending)
        for one in results
    )
    lines = [f"{'damage':<10} {'where':<30} {'ending':<45} count"]
    for (kind, part, ending), count in sorted(counts.items()):
        lines.append(f"{kind:<10} {part:<30} {ending:<45} {count:>5}")
    return "\n".join(lines)

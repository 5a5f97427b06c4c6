"""Rot: bits that flip in what a node had durably written. The node must refuse what it cannot mend."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from consensus.engine.records import GROUP_BODY, Kind, intact_prefix

if TYPE_CHECKING:
    from tests.sim.node import SimNode


PAGE_BYTES = 4_096


def damage_files(node: SimNode, chance: random.Random) -> bool:
    """Flip one to three bits in the vote or in a proven part of the journal. False: nothing fits."""
    choices: list[tuple[Path, int]] = []
    vote = node.root / "vote"
    if vote.exists():
        choices.append((vote, vote.stat().st_size))
    choices.extend(proven_parts(node.root / "journal"))
    if not choices:
        return False
    path, bytes_max = chance.choice(choices)
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 1, 3))):
        data[chance.randrange(bytes_max)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    return True


def rot_ledger(node: SimNode, chance: random.Random) -> None:
    """Flip a few bits of the ledger in force, anywhere but in the file's own head."""
    name = (node.root / "CURRENT").read_text().strip()
    path = node.root / name / "ledger.db"
    data = bytearray(path.read_bytes())
    for _ in range(chance.choice((1, 3, 20)) if len(data) > PAGE_BYTES else 0):
        at = chance.randrange(PAGE_BYTES, len(data))
        data[at] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def proven_parts(folder: Path) -> list[tuple[Path, int]]:
    """Segments, each with how many of its bytes a later record proves to have been synced."""
    segments = sorted(folder.glob("*.journal"))
    proven = (0, 0)
    for path in segments:
        for record in intact_prefix(path.read_bytes()):
            if record.kind is Kind.GROUP:
                proven = max(proven, GROUP_BODY.unpack(record.body))
    parts = []
    for path in segments:
        sequence = int(path.stem)
        if sequence < proven[0]:
            parts.append((path, path.stat().st_size))
        elif sequence == proven[0] and proven[1] > 0:
            parts.append((path, proven[1]))
    return parts

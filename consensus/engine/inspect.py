"""Looking at a stopped node's journal and vote record without changing a byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.engine.opening import SUFFIX, read_journal
from consensus.engine.vote import decode
from consensus.errors import Damaged


@dataclass(frozen=True, slots=True)
class JournalReport:
    """What a journal holds. With faults, a node refuses to start on it and the numbers are 0.

    Entries after `first_index - 1` up to `last_index` are held; those up to `proven_index` had
    surely been synced. `torn_bytes` at the end were not: the next start leaves them out.
    """

    segments: int
    first_index: int
    last_index: int
    proven_index: int
    torn_bytes: int
    faults: list[str]


@dataclass(frozen=True, slots=True)
class VoteReport:
    """What a vote record says. With faults, a node refuses to start on it."""

    exists: bool
    term: int
    voted_for: str | None
    faults: list[str]


def inspect_journal(folder: Path) -> JournalReport:
    """Read a stopped node's journal as a start would, and change nothing. Raises OSError."""
    if not folder.is_dir():
        return JournalReport(0, 0, 0, 0, 0, [f"there is no journal at {folder}"])
    try:
        opened = read_journal(folder, Disk())
    except Damaged as damage:
        segments = sum(name.suffix == SUFFIX for name in folder.iterdir())
        return JournalReport(segments, 0, 0, 0, 0, [str(damage)])
    return JournalReport(
        segments=len(opened.segments),
        first_index=opened.rows[0][1] + 1,
        last_index=opened.rows[-1][1],
        proven_index=opened.proven_index,
        torn_bytes=opened.torn_bytes,
        faults=[],
    )


def inspect_vote(path: Path) -> VoteReport:
    """Read a stopped node's vote record, and change nothing. Raises OSError."""
    if not path.exists():
        return VoteReport(False, 0, None, [])
    try:
        term, voted_for = decode(path.read_bytes(), path)
    except Damaged as damage:
        return VoteReport(True, 0, None, [str(damage)])
    return VoteReport(True, term, voted_for, [])

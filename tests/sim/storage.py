"""What SQLite leaves of a ledger when its process dies, or when the power goes.

A ledger commits into its write-ahead log without a sync, so a power loss restores the image of any
commit at or after the last checkpoint; the one that is left is chosen here.
"""

from __future__ import annotations

import random
import struct
from pathlib import Path

WAL_HEAD_BYTES = 32
FRAME_HEAD_BYTES = 24
MX_FRAME_OFFSET = 16  # in the -shm file: how many frames are valid
BACKFILL_OFFSET = 96  # how many of them a checkpoint has copied


def commit_frames(wal: bytes, frames_max: int) -> list[int]:
    """After how many frames each commit of the current generation of the log ends."""
    if len(wal) < WAL_HEAD_BYTES:
        return []
    (page_bytes,) = struct.unpack_from(">I", wal, 8)
    salts = wal[16:24]
    commits = []
    for number in range(1, frames_max + 1):
        offset = WAL_HEAD_BYTES + (number - 1) * (FRAME_HEAD_BYTES + page_bytes)
        if wal[offset + 8 : offset + 16] != salts:
            break
        (pages_after,) = struct.unpack_from(">I", wal, offset + 4)
        if pages_after:
            commits.append(number)
    return commits


def settle_ledger(ledger_path: Path, state: WalState, *, chance: random.Random | None) -> int:
    """Leave a closed ledger as its process left it, or as a power loss did; commits lost."""
    wal_path = Path(f"{ledger_path}-wal")
    Path(f"{ledger_path}-shm").unlink(missing_ok=True)
    if chance is None or not wal_path.exists():
        return 0
    wal = wal_path.read_bytes()
    commits = commit_frames(wal, state.frame_count)
    choices = [number for number in (0, *commits) if number >= state.copied_count]
    if not choices:
        return 0
    kept = chance.choice(choices)
    (page_bytes,) = struct.unpack_from(">I", wal, 8) if len(wal) >= 12 else (0,)
    with wal_path.open("r+b") as file:
        file.truncate(WAL_HEAD_BYTES + kept * (FRAME_HEAD_BYTES + page_bytes) if kept else 0)
    return sum(1 for number in commits if number > kept)


class WalState:
    """How much of the write-ahead log is valid and how much is copied, read before it is closed."""

    def __init__(self, ledger_path: Path) -> None:
        shm = Path(f"{ledger_path}-shm")
        data = shm.read_bytes()[: BACKFILL_OFFSET + 4] if shm.exists() else b""
        is_known = len(data) == BACKFILL_OFFSET + 4
        self.frame_count = struct.unpack_from("=I", data, MX_FRAME_OFFSET)[0] if is_known else 0
        self.copied_count = struct.unpack_from("=I", data, BACKFILL_OFFSET)[0] if is_known else 0

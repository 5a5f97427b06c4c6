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


class LedgerFiles:
    """The ledgers of one node, and how much of each write-ahead log is known to be durable."""

    def __init__(self, root: Path, chance: random.Random) -> None:
        self._root, self._chance = root, chance
        self._floors: dict[tuple[Path, bytes], int] = {}  # durable frames of one generation

    def states(self) -> list[WalState]:
        """How all logs stand; to be asked before they are closed."""
        return [WalState(path) for path in sorted(self._root.glob("ledger-*/ledger.db"))]

    def settle(self, states: list[WalState], *, loses_power: bool) -> None:
        """Leave closed ledgers as their process left them, or as a power loss did."""
        floors = {}
        for state in states:
            key = (state.ledger_path, state.salts)
            # What a checkpoint copied it had synced; what survived a power loss is on the disk.
            floor = max(state.copied_count, self._floors.get(key, 0))
            floors[key] = self._cut(state, floor) if loses_power else floor
            Path(f"{state.ledger_path}-shm").unlink(missing_ok=True)
        self._floors = floors

    def _cut(self, state: WalState, floor: int) -> int:
        if not state.wal_path.exists():
            return 0
        wal = state.wal_path.read_bytes()
        commits = commit_frames(wal, state.frame_count)
        choices = [number for number in (0, *commits) if number >= floor]
        if not choices:
            return floor
        kept = self._chance.choice(choices)
        (page_bytes,) = struct.unpack_from(">I", wal, 8) if len(wal) >= 12 else (0,)
        with state.wal_path.open("r+b") as file:
            file.truncate(WAL_HEAD_BYTES + kept * (FRAME_HEAD_BYTES + page_bytes) if kept else 0)
        return kept


class WalState:
    """How much of a write-ahead log is valid and how much of it is copied into the ledger."""

    def __init__(self, ledger_path: Path) -> None:
        self.ledger_path = ledger_path
        self.wal_path = Path(f"{ledger_path}-wal")
        shm = Path(f"{ledger_path}-shm")
        data = shm.read_bytes()[: BACKFILL_OFFSET + 4] if shm.exists() else b""
        is_known = len(data) == BACKFILL_OFFSET + 4
        self.frame_count = struct.unpack_from("=I", data, MX_FRAME_OFFSET)[0] if is_known else 0
        self.copied_count = struct.unpack_from("=I", data, BACKFILL_OFFSET)[0] if is_known else 0
        self.salts = b""
        if self.wal_path.exists():
            with self.wal_path.open("rb") as wal:
                self.salts = wal.read(WAL_HEAD_BYTES)[16:24]

"""When journal segments may go: only up to what the ledger file itself holds durably.

The applied index is read before the checkpoint; only a checkpoint that ended with everything
copied and nobody in its way lets the segments go. A passive one in a thread does the bulk first, so
that the one between entries is short.
"""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from consensus.ledger import Ledger
from consensus.ports import Background

if TYPE_CHECKING:
    from consensus.core import Core

RETRY_ENTRIES = 200  # entries to wait after a checkpoint that met a reader
WAL_LOOK_ENTRIES = 64  # entries between two looks at the size of the write-ahead log
HELD_ENTRIES_MAX = 100_000  # kept while a peer is being caught up, or it would never get there
HELD_BYTES_MAX = 256 << 20  # the same in bytes of commands
BUSY_MS = 5_000  # what other statements of the writer may wait
KEEP_BYTES_MAX = 64 << 20  # of commands kept for voters that lag, however few entries they are


class Compaction:
    """Keeps journal and write-ahead log within their configured bounds."""

    def __init__(self, core: Core, background: Background) -> None:
        self._core = core
        self._background = background
        self._last_index = core.applied_index
        self._looked_index = core.applied_index
        self._running = False
        self._is_closed = False
        self.done_count = 0

    def turn(self) -> None:
        # A copy that is being made holds a read transaction: nothing could be checkpointed past it.
        if self._running or self._core.snapshots.is_making or not self._is_due():
            return
        self._running = True
        path = self._core.ledger_path
        self._background.run(lambda: checkpoint_passively(path), self._finish)

    def _is_due(self) -> bool:
        config = self._core.config
        entries = self._core.applied_index - self._last_index
        if entries >= config.compact_entries:
            return True
        if entries <= 0 or self._core.applied_index - self._looked_index < WAL_LOOK_ENTRIES:
            return False
        self._looked_index = self._core.applied_index
        return self._wal_bytes() > config.compact_wal_bytes

    def _wal_bytes(self) -> int:
        wal = Path(f"{self._core.ledger_path}-wal")
        return wal.stat().st_size if wal.exists() else 0

    def _finish(self, error: BaseException | None) -> None:
        self._running = False
        if self._is_closed:
            return
        core, config = self._core, self._core.config
        index = core.applied_index
        if error is not None or not checkpoint_at_once(core.ledger):
            self._last_index = (
                index - config.compact_entries + min(RETRY_ENTRIES, config.compact_entries)
            )
            return
        self._last_index = index
        core.journal.drop_to(index - self.keep_entries(index))
        self.done_count += 1

    def keep_entries(
        self, index: int, *, bytes_max: int = KEEP_BYTES_MAX, held_bytes_max: int = HELD_BYTES_MAX
    ) -> int:
        """How many entries peers that lag may still find: bounded in number and in bytes."""
        journal, kept_bytes = self._core.journal, 0
        entries_max = self._core.config.keep_entries
        needed_after = self._core.engine.needed_after()
        if needed_after is not None and index - needed_after > entries_max:
            entries_max = min(index - needed_after, HELD_ENTRIES_MAX)
            bytes_max = held_bytes_max
        for count in range(entries_max):
            if index - count <= journal.base_index:
                return count
            kept_bytes += len(journal.command_at(index - count))
            if kept_bytes > bytes_max:
                return count
        return entries_max

    def close(self) -> None:
        """What is under way in the background ends without a word."""
        self._is_closed = True


def checkpoint_at_once(ledger: Ledger) -> bool:
    """Checkpoint between two entries. False, without waiting, when a reader is in the way.

    Waiting would hold up the loop for as long as a reader reads, and cost a leader its lead.
    """
    try:
        ledger.connection.execute("PRAGMA busy_timeout=0").fetchone()
        try:
            return ledger.checkpoint()
        finally:
            ledger.connection.execute(f"PRAGMA busy_timeout={BUSY_MS}").fetchone()
    except sqlite3.OperationalError:
        return False  # a full disk, say: what was not copied stays in the write-ahead log


def checkpoint_passively(path: Path) -> None:
    """Copy what can be copied from the write-ahead log without holding anybody up. For a thread."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

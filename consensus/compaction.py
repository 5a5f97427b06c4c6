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

from consensus.ports import Background

if TYPE_CHECKING:
    from consensus.core import Core

RETRY_ENTRIES = 200  # entries to wait after a checkpoint that met a reader


class Compaction:
    """Keeps journal and write-ahead log within their configured bounds."""

    def __init__(self, core: Core, background: Background) -> None:
        self._core = core
        self._background = background
        self._last_index = core.applied_index
        self._running = False
        self.done_count = 0

    def turn(self) -> None:
        if self._running or not self._is_due():
            return
        self._running = True
        path = self._core.ledger_path
        self._background.run(lambda: checkpoint_passively(path), self._finish)

    def _is_due(self) -> bool:
        config = self._core.config
        entries = self._core.applied_index - self._last_index
        if entries >= config.compact_entries:
            return True
        return entries > 0 and entries % 64 == 0 and self._wal_bytes() > config.compact_wal_bytes

    def _wal_bytes(self) -> int:
        wal = Path(f"{self._core.ledger_path}-wal")
        return wal.stat().st_size if wal.exists() else 0

    def _finish(self, error: BaseException | None) -> None:
        self._running = False
        core, config = self._core, self._core.config
        index = core.applied_index
        if error is not None or not core.ledger.checkpoint():
            self._last_index = (
                index - config.compact_entries + min(RETRY_ENTRIES, config.compact_entries)
            )
            return
        self._last_index = index
        core.journal.drop_to(index - config.keep_entries)
        self.done_count += 1


def checkpoint_passively(path: Path) -> None:
    """Copy what can be copied from the write-ahead log without holding anybody up. For a thread."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

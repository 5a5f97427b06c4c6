"""When journal segments may go: only up to what the ledger file itself holds durably.

Due after so many entries, so many bytes of journal or so many bytes of write-ahead log, whichever
comes first: these bound what lies on disk and, for the journal, in memory.

The applied index is read before the checkpoint; only a checkpoint that ended with everything
copied and nobody in its way lets the segments go. A passive one does the bulk while entries are
applied; for the short one after it nothing is applied, and the loop goes on with everything else.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from consensus.ledger import Ledger
from consensus.ports import Background
from consensus.snapshots import WAL_BYTES_MAX, wal_bytes

if TYPE_CHECKING:
    from consensus.core import Core

RETRY_ENTRIES = 200  # entries to wait after a checkpoint that met a reader
LOOK_ENTRIES = 8  # entries between two looks at how large journal and write-ahead log are
HELD_ENTRIES_MAX = 100_000  # kept while a peer is being caught up, or it would never get there
HELD_BYTES_MAX = 256 << 20  # the same in bytes of commands
BUSY_MS = 5_000  # what other statements of the writer may wait
KEEP_BYTES_MAX = 64 << 20  # of commands kept for voters that lag, however few entries they are

log = logging.getLogger("consensus.compaction")


class Compaction:
    """Keeps journal and write-ahead log within their configured bounds."""

    def __init__(self, core: Core, background: Background, *, on_wake: Callable[[], None]) -> None:
        self._core = core
        self._background = background
        self._on_wake = on_wake
        self._last_index = core.applied_index
        self._looked_index = core.applied_index
        self._journal_bytes = core.journal.bytes_on_disk  # after the last compaction
        self._is_outgrown = False
        self._running = False
        self._is_closed = False
        self.holds_apply = False  # nothing may be applied: a checkpoint has the ledger to itself
        self.done_count = 0

    def turn(self) -> None:
        # Copying or hashing holds a read transaction: nothing could be checkpointed past it.
        is_read = self._core.snapshots.is_making or self._core.vouching.is_reading
        if self._running or is_read or not self._is_due():
            return
        path = self._core.ledger_path
        # Its file keeps the size that it once had, unless it is told how much of that is wanted.
        self._core.ledger.connection.execute(
            f"PRAGMA journal_size_limit={self._core.config.compact_wal_bytes // 2}"
        ).fetchone()
        self._running = True
        self._background.run(
            lambda: checkpoint_passively(path), lambda error: self._was_passive(path, error)
        )

    def _is_due(self) -> bool:
        config = self._core.config
        entries = self._core.applied_index - self._last_index
        if entries >= config.compact_entries:
            return True
        if entries <= 0 or self._core.applied_index - self._looked_index < LOOK_ENTRIES:
            return False
        self._looked_index = self._core.applied_index
        grown_bytes = self._core.journal.bytes_on_disk - self._journal_bytes
        return (
            grown_bytes > config.compact_journal_bytes
            or wal_bytes(self._core.ledger_path) > config.compact_wal_bytes
        )

    def _was_passive(self, path: Path, error: BaseException | None) -> None:
        core = self._core
        if self._is_over() or error is not None or path != core.ledger_path:
            self._running = False
            if error is not None and not self._is_over():
                self._put_off()
            return
        self.holds_apply = True
        index, done = core.applied_index, [False]

        def work() -> None:
            done[0] = checkpoint_wholly(path)

        self._background.run(work, lambda error: self._finish(path, index, is_done=done[0]))

    def _finish(self, path: Path, index: int, *, is_done: bool) -> None:
        self._running = self.holds_apply = False
        if self._is_over():
            return
        self._on_wake()
        if path != self._core.ledger_path:
            return
        if not is_done:
            self._put_off()
            return
        journal = self._core.journal
        self._last_index = index
        journal.drop_to(index - self.keep_entries(index))
        self._journal_bytes = journal.bytes_on_disk
        self._is_outgrown = False
        self.done_count += 1

    def _is_over(self) -> bool:
        return self._is_closed or bool(self._core.diverged)

    def _put_off(self) -> None:
        """A reader was in the way, or the disk is full: not again at once."""
        index, entries_max = self._core.applied_index, self._core.config.compact_entries
        self._last_index = index - entries_max + min(RETRY_ENTRIES, entries_max)
        self._looked_index = index + RETRY_ENTRIES
        self._tell_if_outgrown()

    def _tell_if_outgrown(self) -> None:
        """Readers of this process give way; of another's nobody else would tell."""
        if not self._is_outgrown and wal_bytes(self._core.ledger_path) > WAL_BYTES_MAX:
            self._is_outgrown = True
            log.error(
                "the write-ahead log of the ledger has outgrown %d bytes, because something reads "
                "on and on: end what reads %s",
                WAL_BYTES_MAX,
                self._core.ledger_path,
            )

    def keep_entries(
        self, index: int, *, bytes_max: int = KEEP_BYTES_MAX, held_bytes_max: int = HELD_BYTES_MAX
    ) -> int:
        """How many entries peers that lag may still find: bounded in number and in bytes."""
        journal = self._core.journal
        entries_max = self._core.config.keep_entries
        # What follows a copy is needed too, or nobody could be sent that copy.
        needed = (self._core.engine.needed_after(), self._core.snapshots.needed_after)
        needed_after = min((after for after in needed if after is not None), default=None)
        if needed_after is not None and index - needed_after > entries_max:
            entries_max = min(index - needed_after, HELD_ENTRIES_MAX)
            bytes_max = held_bytes_max
        held = index - journal.base_index
        newest_first = itertools.islice(
            reversed(journal.rows),
            journal.last_index - index,
            journal.last_index - journal.base_index,
        )
        sizes = itertools.accumulate(len(command) for command, _, _ in newest_first)
        fitting = bisect_right(list(itertools.islice(sizes, min(entries_max, held))), bytes_max)
        return min(fitting, entries_max, held)

    def close(self) -> None:
        """What is under way in the background ends without a word."""
        self._is_closed = True


def checkpoint_at_once(ledger: Ledger) -> bool:
    """Checkpoint at the end. False, without waiting, when a reader is in the way."""
    try:
        ledger.connection.execute("PRAGMA busy_timeout=0").fetchone()
        try:
            return ledger.checkpoint()
        finally:
            ledger.connection.execute(f"PRAGMA busy_timeout={BUSY_MS}").fetchone()
    except sqlite3.DatabaseError:
        # A full disk, or a bad page, which the next start sees: the write-ahead log has the rest.
        return False


def checkpoint_passively(path: Path) -> None:
    """Copy what can be copied from the write-ahead log without holding anybody up. For a thread."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def checkpoint_wholly(path: Path) -> bool:
    """Copy all of the write-ahead log, so that it may begin anew. For a thread, while nobody writes.

    False, without waiting, when a reader is in the way.
    """
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as connection:
        busy, log_frames, copied_frames = connection.execute(
            "PRAGMA wal_checkpoint(RESTART)"
        ).fetchone()
    return bool(busy == 0 and log_frames == copied_frames)

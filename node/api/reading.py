"""Reads that may take long: in threads, with a connection each, so that the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from consensus.errors import Unavailable
from consensus.ledger import Reader
from consensus.scrub import errors_as_sqlite
from consensus.snapshots import WAL_BYTES_MAX, wal_bytes

THREADS = 2
READS_WAITING_MAX = 256
# Of a task with so few subtasks all outputs are read sooner than a thread is woken.
SUBTASKS_INLINE_MAX = 32
LOOK_STEPS = (
    100_000  # of SQLite's machine, some milliseconds, between two looks at what a read costs
)
LOOKS_MIN = 50  # a read may always go on for so many

Answer = TypeVar("Answer")


class LongReads:
    """Answers questions to the ledger off the loop. Each is answered from one revision.

    That revision is at least the one that this node had applied when it was asked. While one reads,
    nothing of the write-ahead log can be reused: a long read gives way when that log has outgrown
    its bound.
    """

    def __init__(self, path: Callable[[], Path], *, wal_bytes_max: int = WAL_BYTES_MAX) -> None:
        self._path = path
        self._wal_bytes_max = wal_bytes_max
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read")
        self._waiting_count = 0

    async def ask(self, question: Callable[[Reader], Answer]) -> Answer:
        """What `question` returns. Raises what it raises, or Unavailable: too many ask, or too long."""
        if self._waiting_count >= READS_WAITING_MAX:
            raise Unavailable("too many read through this node; try another", retry_ms=500)
        loop = asyncio.get_running_loop()
        self._waiting_count += 1
        try:
            while True:
                path = self._path()
                try:
                    return await loop.run_in_executor(
                        self._pool, _answer, path, question, self._wal_bytes_max
                    )
                except sqlite3.OperationalError as error:
                    # An installed snapshot has taken the place of the file that was being opened.
                    if self._path() == path:
                        raise Unavailable(f"the ledger cannot be read: {error}") from error
        finally:
            self._waiting_count -= 1

    def close(self) -> None:
        """Wait for what is being read, and answer no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _answer(path: Path, question: Callable[[Reader], Answer], wal_bytes_max: int) -> Answer:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        looks = itertools.count()
        db.set_progress_handler(
            lambda: next(looks) > LOOKS_MIN and wal_bytes(path) > wal_bytes_max, LOOK_STEPS
        )
        db.execute("PRAGMA query_only=1")
        # One transaction: whatever is applied meanwhile, all queries see the same revision.
        db.execute("BEGIN")
        with errors_as_sqlite():
            db.execute("SELECT applied_index FROM ledger").fetchone()
        return question(Reader(db, owns=False))

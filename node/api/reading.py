"""Reads that may take long: in threads, with a connection each, so that the loop goes on meanwhile."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from consensus.errors import Unavailable
from consensus.ledger import Reader

THREADS = 2
READS_WAITING_MAX = 256
# Of a task with so few subtasks all outputs are read sooner than a thread is woken.
SUBTASKS_INLINE_MAX = 32

Answer = TypeVar("Answer")


class LongReads:
    """Answers questions to the ledger off the loop. Each is answered from one revision.

    That revision is at least the one that this node had applied when it was asked.
    """

    def __init__(self, path: Callable[[], Path]) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="read")
        self._waiting_count = 0

    async def ask(self, question: Callable[[Reader], Answer]) -> Answer:
        """What `question` returns. Raises what it raises, or Unavailable: too many ask."""
        if self._waiting_count >= READS_WAITING_MAX:
            raise Unavailable("too many read through this node; try another", retry_ms=500)
        loop = asyncio.get_running_loop()
        self._waiting_count += 1
        try:
            while True:
                path = self._path()
                try:
                    return await loop.run_in_executor(self._pool, _answer, path, question)
                except sqlite3.OperationalError as error:
                    # An installed snapshot has taken the place of the file that was being opened.
                    if self._path() == path:
                        raise Unavailable(f"the ledger cannot be read: {error}") from error
        finally:
            self._waiting_count -= 1

    def close(self) -> None:
        """Wait for what is being read, and answer no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _answer(path: Path, question: Callable[[Reader], Answer]) -> Answer:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as db:
        db.execute("PRAGMA query_only=1")
        # One transaction: whatever is applied meanwhile, all queries see the same revision.
        db.execute("BEGIN")
        return question(Reader(db, owns=False))

"""Long reads answered at once, over a connection that is kept, for those who send a million requests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from consensus.ledger import Reader
from consensus.scrub import errors_as_sqlite
from node.api.reading import LongReads

Answer = TypeVar("Answer")


class KeptReads(LongReads):
    """Asks the same questions of the same ledger, without a thread and a connection for each."""

    def __init__(self, path: Callable[[], Path]) -> None:
        super().__init__(path)
        self._db: sqlite3.Connection | None = None

    async def ask(self, question: Callable[[Reader], Answer]) -> Answer:
        if self._db is None:
            uri = f"{self._path().absolute().as_uri()}?mode=ro"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
            self._db.execute("PRAGMA query_only=1")
        self._db.execute("BEGIN")
        try:
            with errors_as_sqlite():
                self._db.execute("SELECT applied_index FROM ledger").fetchone()
            return question(Reader(self._db, owns=False))
        finally:
            self._db.execute("ROLLBACK")

    def close(self) -> None:
        super().close()
        if self._db is not None:
            self._db.close()

"""Who is told of what was applied here, and is told to begin anew when it could not read."""

from __future__ import annotations

import logging
import sqlite3

from consensus.config import Observer
from consensus.ledger import Applied
from consensus.scrub import is_damage

log = logging.getLogger("consensus.telling")


class Observers:
    """All observers of one replica. An entry is applied once, whatever becomes of those told of it."""

    def __init__(self) -> None:
        self._observers: list[Observer] = []
        self._behind: list[Observer] = []  # each at most once: the disk refused it a read

    def add(self, observer: Observer) -> None:
        self._observers.append(observer)

    def entry_applied(self, applied: Applied) -> None:
        """Tell all but those who are behind: they begin anew from here, or from later."""
        for observer in self._observers:
            if observer in self._behind:
                continue
            try:
                observer.entry_applied(applied)
            except sqlite3.OperationalError as error:
                if is_damage(error):
                    raise
                log.error("the ledger could not be read after %d: %s", applied.revision, error)
                self._behind.append(observer)

    def ledger_replaced(self) -> None:
        """The ledger is another one. Raises what reading it raises; whoever is left is told again."""
        self._behind = list(self._observers)
        self.tell_again()

    def tell_again(self) -> None:
        """Let those who are behind begin anew. Raises what reading the ledger raises."""
        while self._behind:
            self._behind[0].ledger_replaced()
            del self._behind[0]

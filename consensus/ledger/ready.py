"""Which subtasks are ready, per class, best first: the heads in memory, the rest in an index.

A window holds the first keys of its class. When it does not hold all, the rest is read from the
partial index `subtask_ready`, after what changed has been written.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field

from consensus.ledger.limits import READY_READ_MAX, READY_WINDOW_MAX
from consensus.ledger.records import Bug, Requirement

Key = tuple[int, int]  # band, ref


@dataclass(slots=True)
class Window:
    keys: list[Key] = field(default_factory=list)  # descending, so that the best pops off the end
    is_whole: bool = False  # nothing of this class is ready beyond the keys


def _descending(key: Key) -> Key:
    return (-key[0], -key[1])


class ReadySet:
    """The ready subtasks of every class."""

    def __init__(self, db: sqlite3.Connection, classes: dict[int, Requirement]) -> None:
        self._db = db
        self._windows: dict[int, Window] = {class_id: Window() for class_id in classes}
        # Classes that may have something ready. Which comes first never depends on this order.
        self.active: dict[int, None] = dict.fromkeys(classes)

    def add_class(self, class_id: int) -> None:
        self._windows[class_id] = Window(is_whole=True)

    def add(self, class_id: int, key: Key) -> None:
        window = self._windows[class_id]
        keys = window.keys
        self.active[class_id] = None
        if not window.is_whole and (not keys or key > keys[0]):
            return
        insort(keys, key, key=_descending)
        if len(keys) > READY_WINDOW_MAX * 2:
            del keys[: len(keys) - READY_WINDOW_MAX]
            window.is_whole = False

    def remove(self, class_id: int, key: Key) -> None:
        """The subtask is no longer ready; it may lie beyond the window."""
        keys = self._windows[class_id].keys
        at = bisect_left(keys, _descending(key), key=_descending)
        if at < len(keys) and keys[at] == key:
            del keys[at]

    def head(self, class_id: int, flush: Callable[[], None]) -> Key | None:
        """The best key of a class, or None when nothing of it is ready."""
        window = self._windows[class_id]
        if not window.keys and not window.is_whole:
            flush()
            rows = self._db.execute(
                "SELECT band, ref FROM subtask INDEXED BY subtask_ready"
                " WHERE class_id=? AND state=3 ORDER BY band, ref LIMIT ?",
                (class_id, READY_READ_MAX),
            ).fetchall()
            rows.reverse()
            window.keys = rows
            window.is_whole = len(rows) < READY_READ_MAX
        if window.keys:
            return window.keys[-1]
        self.active.pop(class_id, None)
        return None

    def drop_head(self, class_id: int, key: Key) -> None:
        """The head has been taken."""
        head = self._windows[class_id].keys.pop()
        if head != key:
            raise Bug(f"{key} was taken, but the head is {head}")

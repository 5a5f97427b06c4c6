"""An entry that could not be applied leaves nothing behind, also when what was before cannot be read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from consensus.ledger import Ledger


def refusing_after(steps: int) -> Callable[[], int]:
    left = [steps]

    def handler() -> int:
        left[0] -= 1
        return int(left[0] < 0)

    return handler


def test_an_entry_that_could_neither_be_applied_nor_read_back_is_applied_later(
    tmp_path: Path,
) -> None:
    """Whatever step the refusals begin with, and though they last through the roll-back."""
    ledger, steps, failed_count, index = Ledger.open(str(tmp_path / "l.db")), 0, 0, 0
    while failed_count == steps // 10:
        index, before = index + 1, ledger.applied_index
        ledger.connection.set_progress_handler(refusing_after(steps), 1)
        try:
            ledger.apply_noop(index, 1)
        except sqlite3.OperationalError:
            failed_count += 1
            assert ledger.applied_index == before
            ledger.connection.set_progress_handler(None, 1)
            ledger.apply_noop(index, 1)
        steps += 10

    ledger.connection.set_progress_handler(None, 1)
    with sqlite3.connect(tmp_path / "l.db") as db:
        row = db.execute("SELECT applied_index, digest FROM ledger").fetchone()
    assert failed_count > 3 and row == (ledger.applied_index, ledger.digest) == (index, row[1])
    ledger.close()

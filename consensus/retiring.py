"""Letting go of a replaced ledger: whoever closes a database last checkpoints it, which may be much.

So a thread holds it open while the loop closes it, and closes it after that.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from consensus.ports import Background


def let_go(
    path: Path,
    close: Callable[[], None],
    *,
    background: Background,
    after: Callable[[], None],
) -> None:
    """Close a database on the loop without waiting for its checkpoint; `after` runs in a thread."""
    held: list[sqlite3.Connection] = []

    def hold() -> None:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        held.append(connection)
        connection.execute("SELECT applied_index FROM ledger").fetchone()

    def release() -> None:
        for connection in held:
            connection.close()
        after()

    def was_held(error: BaseException | None) -> None:
        close()
        background.run(release, was_released)

    def was_released(error: BaseException | None) -> None:
        """What could not be removed is removed the next time, or when the node starts anew."""

    background.run(hold, was_held)

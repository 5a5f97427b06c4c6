"""How much is committed and cannot be applied: a node whose ledger refuses takes no more than a bound.

Only what is committed counts, for that can be applied without anybody's help: a bound on other
entries might keep them from ever being committed.
"""

from __future__ import annotations

from itertools import accumulate, islice

from consensus.engine import Journal

UNAPPLIED_ENTRIES_MAX = 50_000  # a small entry takes more memory than its bytes
UNAPPLIED_BYTES_MAX = 64 << 20  # of commands: a fifth of what a journal may grow to
LOOK_MS = 200


def is_too_much(
    journal: Journal,
    *,
    applied_index: int,
    commit_index: int,
    entries_max: int = UNAPPLIED_ENTRIES_MAX,
    bytes_max: int = UNAPPLIED_BYTES_MAX,
) -> bool:
    """Whether more than one of the bounds waits to be applied. Looks at `entries_max` at most."""
    count = min(commit_index, journal.last_index) - applied_index
    if count > entries_max:
        return True
    first = applied_index + 1 - journal.base_index
    waiting = islice(journal.rows, first, first + max(0, count))
    return any(total > bytes_max for total in accumulate(len(row[0]) for row in waiting))

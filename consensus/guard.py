"""What SQLite refuses on the loop, wherever that is met: damage, or trouble that may pass, and no bug.

Everything else that a database raises is a bug, and is passed on.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from consensus.backlog import LOOK_MS, is_too_much
from consensus.ports import Background
from consensus.scrub import damage_in
from consensus.storage import Storage

if TYPE_CHECKING:
    from consensus.core import Core

READ_AGAIN_MS = 500  # after the disk refused a read

log = logging.getLogger("consensus.guard")


class Guard:
    """`with guard:` ends early at damage and at what the database refuses, and tells its owner which it was."""

    def __init__(
        self,
        *,
        on_damage: Callable[[str], None],
        on_refused: Callable[[sqlite3.OperationalError], None],
    ) -> None:
        self._on_damage = on_damage
        self._on_refused = on_refused

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        damage = damage_in(error)
        if damage:
            self._on_damage(damage)
            return True
        if isinstance(error, sqlite3.OperationalError):
            # Not known to be the same on every node, nor for ever (disk full, I/O).
            self._on_refused(error)
            return True
        return False


class GuardedBackground:
    """A background whose ends, which run on the loop, are under a guard."""

    def __init__(self, background: Background, guard: Guard) -> None:
        self._background = background
        self._guard = guard

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def guarded(error: BaseException | None) -> None:
            with self._guard:
                done(error)

        self._background.run(work, guarded)


class Refusals:
    """What the database has refused one replica, and what that means for it.

    `damage` is for the owner to heed at the end of its turn. After a refusal the node is read-only:
    an entry is applied again once a small write was seen to work, and what the node itself reads is
    read again in a while.
    """

    def __init__(self, core: Core, storage: Storage) -> None:
        self._core = core
        self._storage = storage
        self._read_again_ms = self._looked_ms = 0
        self._has_too_much = False
        self.damage = ""
        self.reading = Guard(on_damage=self.found_damage, on_refused=self._cannot_read)
        self.applying = Guard(on_damage=self.found_damage, on_refused=self._cannot_apply)

    def can_read(self, now_ms: int) -> bool:
        """Whether the ledger may be read; after a refusal only once that was seen to work.

        Raises what reading it raises.
        """
        if not self._storage.is_unread:
            return True
        if now_ms < self._read_again_ms:
            return False
        self._core.ledger.next_due_ms()
        self._core.ledger.leaving()
        self._core.peers()
        self._storage.reading_works()
        log.warning("the ledger can be read again")
        return True

    def has_too_much_to_apply(self, now_ms: int) -> bool:
        """Whether a ledger that cannot be written has left more waiting than may be taken."""
        if not self._storage.cannot_apply:
            self._has_too_much, self._looked_ms = False, 0
        elif now_ms - self._looked_ms >= LOOK_MS:
            core, self._looked_ms = self._core, now_ms
            self._has_too_much = is_too_much(
                core.journal,
                applied_index=core.applied_index,
                commit_index=core.engine.commit_index,
                entries_max=core.config.unapplied_entries_max,
            )
        return self._has_too_much

    def found_damage(self, why: str) -> None:
        """This node's state cannot be trusted any more: its owner heeds that in the next turn."""
        self.damage = why
        self._core.wake()

    def _cannot_read(self, error: sqlite3.OperationalError) -> None:
        self._read_again_ms = self._core.now_ms() + READ_AGAIN_MS
        if self._storage.reading_failed(error):
            self._stop_writing()

    def _cannot_apply(self, error: sqlite3.OperationalError) -> None:
        """The entry was rolled back."""
        if self._storage.ledger_failed(error):
            self._stop_writing()

    def _stop_writing(self) -> None:
        log.error("stopped writing: %s", self._storage.trouble)
        self._core.proposals.refuse_unsent(self._storage.refusal())

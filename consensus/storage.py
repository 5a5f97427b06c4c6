"""What the disk has refused, what helps, and how journal and vote are opened.

A full disk passes: once there is room and a small file could be written and synced, the owner opens
its storage anew. Any other failure of journal or vote stays until the node is started anew. It
mends nothing itself.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError

from consensus.directory import LedgerDirectory
from consensus.engine import Journal, VoteRecord
from consensus.errors import Damaged, DiskFull, StorageFailed, Unavailable
from consensus.ledger import Ledger, Reader
from consensus.ports import Background
from consensus.room import Room, is_full, may_pass
from consensus.scrub import check_schema, damage_in, errors_as_sqlite

MENDED_RETRY_MS = 5_000
# What reading rows raises that no ledger of ours has written.
NO_ROWS_OF_OURS = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError),
    DecodeError,
)


class Storage:
    """The state of one node's storage, as its owner notes it. Says once when it changes."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._engine_error: BaseException | None = None
        self._ledger_error: BaseException | None = None
        self._reading_error: BaseException | None = None

    @property
    def is_full(self) -> bool:
        """Writes are refused for want of room, and come back by themselves."""
        if self._engine_error is not None:
            return is_full(self._engine_error)
        return self._ledger_error is not None and (
            is_full(self._ledger_error) or self._room.is_full
        )

    @property
    def trouble(self) -> str:
        """What is wrong and what helps, in a sentence; empty when all is well."""
        error = self._engine_error or self._ledger_error
        if error is None and self._reading_error is not None:
            return f"the ledger cannot be read: {self._reading_error}; it is tried again and again"
        if error is None:
            return ""
        if self.is_full:
            return f"the disk is full: {error}; reads go on, and writes once there is room"
        if not may_pass(error):
            return f"storage failed: {error}; reads go on: mend the disk and start this node anew"
        return f"the ledger cannot be written: {error}; reads go on, and writes once it can"

    def refusal(self) -> Unavailable:
        """What a caller who wants to write is told. Nothing of it was written."""
        return (
            DiskFull(self.trouble)
            if self.is_full
            else Unavailable(self.trouble, retry_ms=MENDED_RETRY_MS)
        )

    def engine_failed(self, error: BaseException) -> bool:
        """Journal or vote refused. True: that is news."""
        if self._engine_error is error:
            return False
        self._engine_error = error
        self._room.lost()
        return True

    def engine_reopened(self) -> None:
        self._engine_error = None

    def ledger_failed(self, error: BaseException) -> bool:
        """An entry could not be applied; it was rolled back. True: that is news."""
        is_news = self._ledger_error is None
        self._ledger_error = error
        self._room.lost()
        return is_news

    def ledger_written(self) -> bool:
        """An entry was applied. True: that is news."""
        is_news = self._ledger_error is not None
        self._ledger_error = None
        return is_news

    @property
    def cannot_apply(self) -> bool:
        """An entry could not be applied, and none was since."""
        return self._ledger_error is not None

    @property
    def is_unread(self) -> bool:
        """A read that the node itself needed was refused, and none was seen to work since."""
        return self._reading_error is not None

    def reading_failed(self, error: BaseException) -> bool:
        """The node itself could not read its ledger. True: that is news."""
        is_news = self._reading_error is None
        self._reading_error = error
        return is_news

    def reading_works(self) -> None:
        self._reading_error = None

    def may_reopen(self, bytes_needed: int) -> bool:
        """Whether journal and vote may be opened anew: a disk that was full comes back."""
        return may_pass(self._engine_error) and self._room.is_back(bytes_needed)

    def may_apply(self) -> bool:
        """Whether an entry may be applied now; after a failure only once a write was seen to work."""
        return self._ledger_error is None or self._room.is_back(0)


@contextlib.contextmanager
def damage_told() -> Iterator[None]:
    """What reads a ledger that was just opened raises Damaged when its pages cannot be right."""
    try:
        with errors_as_sqlite():
            yield
    except sqlite3.Error as error:
        damage = damage_in(error)
        if damage:
            raise Damaged(damage) from error
        raise


def open_ledger(directory: LedgerDirectory) -> tuple[Path, Ledger, Reader]:
    """The ledger in force, made if the folder is new.

    Raises Damaged when what is there cannot be trusted, StorageFailed when the disk refuses even
    what a node needs in order to read.
    """
    try:
        path = directory.prepare()
        with damage_told():
            ledger = Ledger.open(str(path))
            check_schema(ledger.connection)
            return path, ledger, Reader.open(str(path))
    except (OSError, sqlite3.Error) as error:
        raise StorageFailed(
            f"{directory.root} cannot be opened: {error}; make room or mend the disk, then start again"
        ) from error
    except NO_ROWS_OF_OURS as error:
        raise Damaged(f"the ledger is damaged: {type(error).__name__}: {error}") from error


def install_ledger(
    directory: LedgerDirectory, copy: Path, index: int
) -> tuple[Path, Ledger, Reader]:
    """Make a verified, synced copy the ledger in force, once it is seen to open.

    Raises OSError or StorageFailed; the ledger that was in force then still is.
    """
    path = directory.stage_ledger(copy, index)
    try:
        ledger = Ledger.open(str(path))
        reader = Reader.open(str(path))
    except sqlite3.Error as error:
        raise StorageFailed(f"a copy of the ledger cannot be opened: {error}") from error
    try:
        directory.put_in_force(path)
    except OSError:
        reader.close()
        ledger.close()
        raise
    return path, ledger, reader


def open_journal(
    directory: LedgerDirectory,
    applied: tuple[int, int],
    *,
    background: Background,
    segment_bytes_max: int,
    installed_index: int,
) -> Journal:
    """The journal beside a ledger that has applied the entry of this index and term.

    `installed_index`: what it was a copy of when it began. Reads all: for a thread, once in service.

    Finishes an install that a crash cut short. Raises Damaged when one of the two has lost entries,
    StorageFailed when it cannot be read. When the disk refuses to write, the journal can be read,
    and its `failed` says why it takes nothing.
    """
    try:
        journal = Journal(
            directory.journal,
            background=background,
            segment_bytes_max=segment_bytes_max,
            disk=directory.disk,
        )
    except OSError as error:
        raise StorageFailed(f"{directory.journal} cannot be read: {error}") from error
    index, term = applied
    with let_go_if_refused(journal):
        _refuse_lost(journal, applied, installed_index)
    if journal.term_at(index) != term:
        with contextlib.suppress(OSError, StorageFailed):  # it has failed then, and says so
            journal.reset(index, term, keep_suffix=False)
    return journal


@contextlib.contextmanager
def let_go_if_refused(journal: Journal) -> Iterator[None]:
    """What goes wrong meanwhile keeps a node from starting: its journal is closed as it was found."""
    try:
        yield
    except BaseException:
        journal.let_go()
        raise


def _refuse_lost(journal: Journal, applied: tuple[int, int], installed_index: int) -> None:
    """Raise Damaged when ledger or journal, judged by the other, has lost entries."""
    index, term = applied
    if index < journal.base_index:
        raise Damaged(
            f"the ledger ends at {index}, but the journal begins after "
            f"{journal.base_index}: the ledger has lost entries"
        )
    # Only an install may leave the ledger ahead: entries are applied once they are durable
    # here. What else was acknowledged and is gone nobody knows, nor may anybody guess.
    if journal.term_at(index) != term and index != installed_index:
        raise Damaged(
            f"the ledger has applied {index}, which the journal does not hold (it ends at "
            f"{journal.last_index}): it has lost entries; this node must come back as a new one"
        )


def open_vote(directory: LedgerDirectory) -> VoteRecord:
    """The vote record. Raises Damaged, and StorageFailed when it cannot be read."""
    try:
        return VoteRecord(directory.vote, disk=directory.disk)
    except OSError as error:
        raise StorageFailed(f"{directory.vote} cannot be read: {error}") from error

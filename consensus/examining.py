"""A stopped node's state, read with suspicion: can it be trusted, and does the mesh agree with it?

It changes nothing there. The ledger is copied aside and opened as a copy, for opening a database in
its place writes beside it. The copy can then be brought up to where another node is, so that both
can be compared at the same index.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError
from quorumesh.v1.ledger_pb2 import Entry, MembershipChange

from consensus.directory import LedgerDirectory, name_in
from consensus.engine.codec import MEMBERSHIP, NO_OP, REGULAR
from consensus.engine.disk import Disk
from consensus.engine.inspect import VoteReport, inspect_vote
from consensus.engine.opening import Opened, read_journal
from consensus.errors import Damaged
from consensus.ledger import CannotApply, Ledger, invariants
from consensus.room import is_full
from consensus.scrub import check_schema, errors_as_sqlite, refuse_marked

FAULTS_SHOWN_MAX = 20
COPY = "ledger.db"
# What reading rows that nobody wrote may raise.
_UNREADABLE = (
    sqlite3.Error,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    DecodeError,
    Damaged,
)
# What SQLite says when the copy's place fails it, and not what is in the copy.
_OF_THE_PLACE = frozenset({
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
})  # fmt: skip


class CannotWork(OSError):
    """The copy could not be worked on where it lies, which says nothing of the ledger."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. `ok` is None when it could not be looked at."""

    name: str
    ok: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class LedgerCopy:
    """A copy of the ledger that can be opened; at which revision, and its digests there."""

    path: Path
    revision: int
    chain: bytes
    full: bytes
    members: dict[str, str]  # node id to address
    voters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """What was found. Without a copy, there is no ledger that could be read."""

    checks: tuple[Check, ...]
    copy: LedgerCopy | None

    @property
    def is_sound(self) -> bool:
        return all(check.ok is not False for check in self.checks)


def examine(state: Path, aside: Path) -> Examined:
    """Check a stopped node's state; its ledger is copied into the folder `aside`. Raises OSError."""
    checks = [_checked("mark", lambda: _mark(state))]
    journal: list[Opened] = []
    checks.append(_checked("journal", lambda: _journal(state, journal)))
    checks.append(_checked("vote", lambda: _vote(state, journal)))
    path: list[Path] = []
    checks.append(_checked("current", lambda: _current(state, path)))
    copies: list[LedgerCopy] = []
    if path:
        checks.extend(_ledger(path[0], aside, copies))
    if copies and journal:
        checks.append(_checked("position", lambda: _position(path[0], copies[0], journal[0])))
    return Examined(tuple(checks), copies[0] if copies else None)


def bring_up(copy: LedgerCopy, entries: Iterable[tuple[int, int, bytes]]) -> None:
    """Apply committed entries (index, term, command) to the copy, from where it is on.

    Raises Damaged when they cannot be applied to it, OSError when there is no room for it.
    """
    try:
        with contextlib.closing(Ledger.open(str(copy.path))) as ledger:
            for index, term, command in entries:
                kind, body = command[0], command[1:]
                if kind == REGULAR:
                    ledger.apply(index, term, Entry.FromString(body))
                elif kind == MEMBERSHIP:
                    ledger.apply_membership(index, term, MembershipChange.FromString(body))
                else:
                    assert kind == NO_OP, f"an entry of kind {kind}"
                    ledger.apply_noop(index, term)
    except _UNREADABLE as error:
        raise _judged(error, "the log of the mesh cannot be applied to this ledger") from error


def full_digest(copy: LedgerCopy) -> tuple[int, bytes]:
    """The copy's revision and the hash of all its rows there. Raises Damaged or OSError."""
    try:
        with contextlib.closing(Ledger.open(str(copy.path))) as ledger:
            return ledger.applied_index, ledger.full_digest()
    except _UNREADABLE as error:
        raise _judged(error, "the ledger cannot be read") from error


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except Damaged as error:
        return Check(name, False, str(error))
    except CannotApply as error:
        return Check(name, None, f"it is of another release: {error}; upgrade quorumesh")
    except OSError as error:
        if isinstance(error, CannotWork) or is_full(error):
            raise
        return Check(name, False, f"it cannot be read: {error.strerror or error}")


def _judged(error: Exception, text: str) -> Damaged:
    """What an error says of the ledger. CannotWork instead when it speaks of the place of the copy."""
    if is_full(error):
        raise CannotWork(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_PLACE:
        raise CannotWork(errno.EIO, f"a copy of the ledger cannot be worked on: {error}") from error
    return Damaged(f"{text}: {error}")


def _mark(state: Path) -> str:
    if not state.is_dir():
        raise Damaged(f"{state} is not there: the state is lost")
    refuse_marked(state, Disk())
    return "it was not taken out of service"


def _journal(state: Path, found: list[Opened]) -> str:
    folder = state / "journal"
    if not folder.is_dir() or not any(folder.iterdir()):
        raise Damaged(f"there is no journal at {folder}: it is lost")
    opened = read_journal(folder, Disk())
    found.append(opened)
    torn = f", {opened.torn_bytes} bytes not synced" if opened.torn_bytes else ""
    first, last = opened.rows[0][1] + 1, opened.rows[-1][1]
    return f"entries {first} to {last} in {len(opened.segments)} files{torn}"


def _vote(state: Path, journal: list[Opened]) -> str:
    vote: VoteReport = inspect_vote(state / "vote")
    if vote.faults:
        raise Damaged(vote.faults[0])
    if journal:
        _, base_index, _ = journal[0].rows[0]
        _, last_index, last_term = journal[0].rows[-1]
        if base_index > 0 and not vote.exists:
            raise Damaged("the vote record is missing beside a journal that has begun anew")
        if last_index > base_index and last_term > vote.term:
            raise Damaged(
                f"the journal holds entries of term {last_term}, the vote record knows only "
                f"{vote.term}: the vote is lost"
            )
    return f"term {vote.term}, for {vote.voted_for or 'nobody'}"


def _current(state: Path, found: list[Path]) -> str:
    current = state / "CURRENT"
    if not current.exists():
        raise Damaged(f"{current} is missing: the ledger is lost")
    name = name_in(current.read_bytes(), current)
    path = state / name / "ledger.db"
    if not path.is_file():
        raise Damaged(f"{current} names {name!r}, which is not a ledger here")
    found.append(path)
    return f"{path}"


def _ledger(path: Path, aside: Path, found: list[LedgerCopy]) -> list[Check]:
    for suffix in ("", "-wal"):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.copyfile(source, aside / f"{COPY}{suffix}")
    checks: list[Check] = []
    checks.append(_checked("file", lambda: _structure(aside / COPY)))
    if checks[0].ok:
        checks.append(_checked("ledger", lambda: _read_copy(aside / COPY, found)))
    if found:
        checks.append(_checked("invariants", lambda: _invariants(aside / COPY)))
    return checks


def _structure(path: Path) -> str:
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.text_factory = bytes
            with errors_as_sqlite():
                rows = db.execute(f"PRAGMA integrity_check({FAULTS_SHOWN_MAX})").fetchall()
    except sqlite3.Error as error:
        raise _judged(error, "the ledger is damaged") from error
    said = "; ".join(" ".join(row[0].decode("utf-8", "replace").split()) for row in rows)
    if said != "ok":
        raise Damaged(f"the ledger is damaged: {said}")
    return "pages, rows and indexes fit together"


def _invariants(path: Path) -> str:
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            wrong = invariants.violations(db)
    except _UNREADABLE as error:
        raise _judged(error, "the ledger cannot be read") from error
    if wrong:
        raise Damaged("; ".join(wrong[:FAULTS_SHOWN_MAX]))
    return "everything that must always hold does"


def _read_copy(path: Path, found: list[LedgerCopy]) -> str:
    try:
        with contextlib.closing(Ledger.open(str(path))) as ledger:
            check_schema(ledger.connection)
            copy = LedgerCopy(
                path=path,
                revision=ledger.applied_index,
                chain=ledger.digest,
                full=ledger.full_digest(),
                members=ledger.members(),
                voters=tuple(ledger.voters()),
            )
    except _UNREADABLE as error:
        raise _judged(error, "the ledger cannot be read") from error
    found.append(copy)
    return f"revision {copy.revision}, digest {copy.full.hex()[:16]}"


def _position(path: Path, copy: LedgerCopy, journal: Opened) -> str:
    """The ledger must be within its journal, or be a copy just installed, as a start demands."""
    with contextlib.closing(sqlite3.connect(copy.path)) as db:
        (term,) = db.execute("SELECT applied_term FROM ledger").fetchone()
    base, last = journal.rows[0][1], journal.rows[-1][1]
    if copy.revision < base:
        raise Damaged(
            f"the ledger ends at {copy.revision}, but the journal begins after {base}: "
            "the ledger has lost entries"
        )
    if copy.revision <= last and journal.rows[copy.revision - base][2] == term:
        return f"the ledger has applied {copy.revision} of {last} entries"
    if copy.revision != LedgerDirectory.installed_index(path):
        raise Damaged(
            f"the ledger has applied {copy.revision}, which the journal does not hold (it ends at "
            f"{last}): it has lost entries"
        )
    return f"a copy of {copy.revision} was installed last"

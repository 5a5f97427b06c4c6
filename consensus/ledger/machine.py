"""The machine: one log entry, one transaction. It sees the entry and the database, nothing else.

A refusal is an outcome. A deterministic bug in a command becomes the outcome INTERNAL on every node
alike. Whatever may differ between nodes (a full disk, memory) rolls everything back and propagates.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from importlib.resources import files
from typing import Any

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import (
    Barrier,
    Command,
    Complete,
    Entry,
    Fail,
    MembershipChange,
    Outcome,
    Scrub,
)

from consensus.ledger import claims, limits, members, sessions, tasks
from consensus.ledger.dump import hash_tables
from consensus.ledger.events import note_alarm
from consensus.ledger.flow import drain
from consensus.ledger.limits import APPLY_VERSION, SCHEMA_VERSION
from consensus.ledger.reader import Reader
from consensus.ledger.results import Applied, CannotApply
from consensus.ledger.specs import Refused
from consensus.ledger.steps import DETERMINISTIC_ERRORS, Step, plainly, undoably
from consensus.ledger.store import Effects, Meta, Store
from consensus.ledger.timers import fire_due


def _complete(store: Store, command: Complete) -> Outcome:
    return claims.complete(store, command.completion)


def _fail(store: Store, command: Fail) -> Outcome:
    return claims.fail(store, command.report)


def _barrier(store: Store, command: Barrier) -> Outcome:
    return Outcome(revision=store.meta.applied_index)


def _scrub(store: Store, command: Scrub) -> Outcome:
    return Outcome(revision=store.meta.applied_index)


_HANDLERS: dict[str, Callable[[Store, Any], Outcome]] = {
    "bootstrap": members.bootstrap,
    "submit": tasks.submit,
    "open_session": sessions.open_session,
    "close_session": sessions.close_session,
    "claim": sessions.claim,
    "complete": _complete,
    "fail": _fail,
    "renew": sessions.renew,
    "cancel": tasks.cancel,
    "suspect": sessions.suspect,
    "add_token": members.add_token,
    "admit": members.admit,
    "barrier": _barrier,
    "scrub": _scrub,
}


class Ledger:
    """One replica of the task ledger. Not for more than one thread."""

    def __init__(self, db: sqlite3.Connection, path: str) -> None:
        self._db = db
        self._path = path
        self._store = Store(db)
        self._is_stale = False  # a roll-back could not read what it went back to
        self._next_due: tuple[int | None] | None = None

    @classmethod
    def open(cls, path: str) -> Ledger:
        """Open the ledger at path; a new one gets its tables. ":memory:" lives until closed."""
        db = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        db.execute("PRAGMA journal_mode=WAL").fetchone()
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("PRAGMA wal_autocheckpoint=0").fetchone()
        db.execute("PRAGMA cache_size=-65536")
        if db.execute("SELECT 1 FROM sqlite_schema WHERE name='ledger'").fetchone() is None:
            _make_schema(db)
        (version,) = db.execute("SELECT schema_version FROM ledger").fetchone()
        if version != SCHEMA_VERSION:
            db.close()
            raise CannotApply(version, SCHEMA_VERSION)
        return cls(db, path)

    @property
    def applied_index(self) -> int:
        return self._store.meta.applied_index

    @property
    def applied_term(self) -> int:
        return self._store.meta.applied_term

    @property
    def counted_ms(self) -> int:
        return self._store.meta.counted_ms

    @property
    def digest(self) -> bytes:
        """The chain over everything applied: equal on all nodes at the same revision."""
        return self._store.meta.digest

    @property
    def mesh_id(self) -> str:
        return self._store.meta.mesh_id

    @property
    def connection(self) -> sqlite3.Connection:
        """For invariants and tests. Not to be written through."""
        return self._db

    def voters(self) -> dict[str, str]:
        """Node id to address of every voter, ordered by id."""
        query = "SELECT node_id, address FROM member WHERE voter=1 ORDER BY node_id"
        return dict(self._db.execute(query).fetchall())

    def members(self) -> dict[str, str]:
        """Node id to address of every admitted node, ordered by id."""
        query = "SELECT node_id, address FROM member ORDER BY node_id"
        return dict(self._db.execute(query).fetchall())

    def is_member(self, node_id: str) -> bool:
        """Whether a node was admitted and has not been removed since."""
        query = "SELECT 1 FROM member WHERE node_id=?"
        return self._db.execute(query, (node_id,)).fetchone() is not None

    def leaving(self) -> list[str]:
        """Voters in whose place another node has come, ordered by id: their votes are to go."""
        query = "SELECT node_id FROM member WHERE leaving=1 AND voter=1 ORDER BY node_id"
        return [node_id for (node_id,) in self._db.execute(query)]

    def removed_at(self, node_id: str) -> int | None:
        """The revision at which a node was removed from the mesh; None when it was not."""
        query = "SELECT revision FROM departed WHERE node_id=?"
        row = self._db.execute(query, (node_id,)).fetchone()
        return None if row is None else int(row[0])

    def farewells(self) -> dict[str, str]:
        """Node id to address of those removed so lately that they may not know it yet."""
        query = "SELECT node_id, address FROM departed WHERE counted_ms > ? ORDER BY node_id"
        since_ms = self.counted_ms - limits.FAREWELL_MS
        return dict(self._db.execute(query, (since_ms,)).fetchall())

    def apply(self, index: int, term: int, entry: Entry) -> Applied:
        """Apply one entry in one transaction. Raises CannotApply and then has changed nothing.

        Errors that may differ between nodes propagate after everything was rolled back; applying
        the same entry again is then safe.
        """
        if entry.apply_version > APPLY_VERSION:
            raise CannotApply(entry.apply_version, APPLY_VERSION)
        commands = [proposal.command for proposal in entry.proposals]

        def work(careful: bool) -> list[Outcome]:
            return self._run(commands, careful=careful)

        return self._transact(index, term, (entry.counted_ms, entry.wall_ms), work)

    def apply_noop(self, index: int, term: int) -> Applied:
        """Apply an entry that changes nothing but where the ledger stands."""
        return self._transact(index, term, (0, 0), lambda _: [])

    def apply_membership(self, index: int, term: int, change: MembershipChange) -> Applied:
        """Write down that a voter has come or gone."""
        return self._transact(
            index,
            term,
            (0, change.wall_ms),
            lambda _: [members.change_voters(self._store, change)],
        )

    def next_due_ms(self) -> int | None:
        """The counted time of the earliest timer; not after counted_ms when some are left over."""
        if self._next_due is None:
            self._next_due = (self._find_next_due(),)
        return self._next_due[0]

    def _find_next_due(self) -> int | None:
        due = [s.lease_until_ms for s in self._store.holders.values()]
        rows = self._db.execute(
            "SELECT (SELECT min(due_ms) FROM subtask WHERE due_ms IS NOT NULL),"
            " (SELECT min(due_ms) FROM task WHERE due_ms IS NOT NULL)"
        ).fetchone()
        due.extend(earliest for earliest in rows if earliest is not None)
        return min(due, default=None)

    def full_digest(self) -> bytes:
        """A hash over all tables, in order. Reads everything."""
        return hash_tables(self._db)

    def checkpoint(self) -> bool:
        """True: all applied so far is in the main file, synced. False: a reader is in the way."""
        if self._path == ":memory:":
            return True
        # A long read in another thread is no reason to wait: a later checkpoint comes.
        (waits_ms,) = self._db.execute("PRAGMA busy_timeout").fetchone()
        self._db.execute("PRAGMA busy_timeout=0").fetchone()
        try:
            busy, log, done = self._db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        finally:
            self._db.execute(f"PRAGMA busy_timeout={waits_ms}").fetchone()
        return bool(busy == 0 and log == done)

    def reader(self) -> Reader:
        """Read-only queries; of a ledger in memory, through its own connection."""
        if self._path == ":memory:":
            return Reader(self._db, owns=False)
        return Reader.open(self._path)

    def close(self) -> None:
        self._db.close()

    def _transact(
        self, index: int, term: int, stamp: tuple[int, int], work: Callable[[bool], list[Outcome]]
    ) -> Applied:
        if index != self.applied_index + 1:
            raise AssertionError(f"entry {index} after {self.applied_index}")
        self._next_due = None
        before = self._store.meta.copied()
        if self._is_stale:
            self._roll_back(before)
        try:
            return self._attempt(index, term, stamp, lambda: work(False))
        except DETERMINISTIC_ERRORS:
            self._roll_back(before)
        except BaseException:
            self._roll_back(before)
            raise
        try:
            return self._attempt(index, term, stamp, lambda: work(True))
        except BaseException:
            self._roll_back(before)
            raise

    def _attempt(
        self, index: int, term: int, stamp: tuple[int, int], work: Callable[[], list[Outcome]]
    ) -> Applied:
        self._db.execute("BEGIN IMMEDIATE")
        store = self._store
        store.effects = Effects()
        store.touched.clear()
        meta = store.meta
        meta.applied_index = index
        meta.applied_term = term
        # A late stamp from a deposed leader is clamped, so counted time cannot go back.
        meta.counted_ms = max(meta.counted_ms, stamp[0])
        meta.wall_ms = max(meta.wall_ms, stamp[1])
        outcomes = work()
        self._finish(outcomes)
        self._db.execute("COMMIT")
        store.trim()
        effects = store.effects
        return Applied(
            revision=index,
            counted_ms=meta.counted_ms,
            outcomes=outcomes,
            events=list(effects.events),
            grants=effects.grants,
            revokes=effects.revokes,
            withdrawn=effects.withdrawn,
            faults=tuple(effects.faults),
        )

    def _finish(self, outcomes: list[Outcome]) -> None:
        """Write everything back, note the events, and lengthen the digest chain."""
        store, meta = self._store, self._store.meta
        store.flush()
        batch = b""
        if store.effects.events:
            batch = store.effects.batch.SerializeToString(deterministic=True)
            self._db.execute("INSERT INTO event VALUES (?,?)", (meta.applied_index, batch))
            self._db.executemany(
                "INSERT INTO task_event VALUES (?,?)",
                [(seq, meta.applied_index) for seq in store.touched],
            )
        chain = blake2b(meta.digest, digest_size=32)
        for number in (meta.applied_index, meta.applied_term, meta.counted_ms):
            chain.update(number.to_bytes(8, "big"))
        for outcome in outcomes:
            data = outcome.SerializeToString(deterministic=True)
            chain.update(len(data).to_bytes(4, "big"))
            chain.update(data)
        chain.update(batch)
        meta.digest = chain.digest()
        store.write_meta()

    def _roll_back(self, before: Meta) -> None:
        """Go back to the rows, and in memory too. If they cannot be read now, before the next entry."""
        self._is_stale = True
        self._store.meta = before
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._store.effects = Effects()
        self._store.reload()
        self._is_stale = False

    def _run(self, commands: list[Command], *, careful: bool) -> list[Outcome]:
        store = self._store
        step = undoably(store) if careful else plainly
        fire_due(store, step)
        if careful:
            outcomes = [self._guarded(step, command) for command in commands]
        else:
            outcomes = [self._one(command) for command in commands]
        if not step(partial(sessions.grant_all, store, step)):
            note_alarm(store, "a bug in this program: this entry grants nothing")
        return outcomes

    def _one(self, command: Command) -> Outcome:
        kind = command.WhichOneof("kind")
        try:
            if kind is None:
                raise Refused(values_pb2.INVALID, "the command is empty or not known")
            outcome = _HANDLERS[kind](self._store, getattr(command, kind))
        except Refused as refused:
            return Outcome(
                reason=refused.reason,
                message=refused.message,
                revision=self._store.meta.applied_index,
            )
        drain(self._store)
        return outcome

    def _guarded(self, step: Step, command: Command) -> Outcome:
        """Run one command as a step: if it has a bug, only its own work is undone."""
        found: list[Outcome] = []
        if step(lambda: found.append(self._one(command))):
            return found[0]
        return Outcome(
            reason=values_pb2.INTERNAL,
            message="a bug in this program; nothing was changed",
            revision=self._store.meta.applied_index,
        )


def _make_schema(db: sqlite3.Connection) -> None:
    script = files("consensus.ledger").joinpath("schema.sql").read_text(encoding="utf-8")
    row = (
        "INSERT INTO ledger (one, schema_version, applied_index, applied_term, counted_ms, wall_ms,"
        " digest, mesh_id, fence, task_seq, oldest_revision, task_count, running_count, ready_count)"
        f" VALUES (1,{SCHEMA_VERSION},0,0,0,0,zeroblob(32),'',0,0,0,0,0,0);"
    )
    db.executescript(f"BEGIN;\n{script}\n{row}\nCOMMIT;")

"""Rows read through a memory of bounded size, and written back at the end of an entry.

The memory only saves reads: forgetting all of it changes no result. It decides nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from quorumesh.v1.ledger_pb2 import EventBatch
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskEvent
from quorumesh.v1.workers_pb2 import WorkerHello

from consensus.ledger.limits import CACHED_ROWS_MAX
from consensus.ledger.ready import ReadySet
from consensus.ledger.records import (
    N_MASK,
    READY,
    REF_SHIFT,
    Ballot,
    Edge,
    Requirement,
    Session,
    Subtask,
    Task,
)
from consensus.ledger.results import GrantRef, RevokeRef


@dataclass(slots=True)
class Meta:
    """The one row of table ledger."""

    applied_index: int
    applied_term: int
    counted_ms: int
    wall_ms: int
    digest: bytes
    mesh_id: str
    fence: int
    task_seq: int
    oldest_revision: int
    task_count: int
    running_count: int
    ready_count: int

    def copied(self) -> Meta:
        """Another one of the same, for every entry is taken from one: made in C."""
        return Meta(*_meta_row(self))


@dataclass(slots=True)
class Effects:
    """What one entry has done so far."""

    batch: EventBatch = field(default_factory=EventBatch)
    grants: list[GrantRef] = field(default_factory=list)
    revokes: list[RevokeRef] = field(default_factory=list)
    withdrawn: list[bytes] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def events(self) -> RepeatedCompositeFieldContainer[TaskEvent]:
        return self.batch.events

    def counts(self) -> tuple[int, int, int, int]:
        return len(self.events), len(self.grants), len(self.revokes), len(self.withdrawn)

    def cut(self, counts: tuple[int, int, int, int]) -> None:
        """Forget what came after `counts` was taken."""
        events, grants, revokes, withdrawn = counts
        del self.events[events:], self.grants[grants:]
        del self.revokes[revokes:], self.withdrawn[withdrawn:]


def _columns(record: type, *, skip: tuple[str, ...] = ()) -> list[str]:
    return [f.name for f in fields(record) if f.name not in skip]


_TASK = _columns(Task)
_SUBTASK = _columns(Subtask)
_BALLOT = _columns(Ballot)
_SESSION = _columns(Session, skip=("skills", "labels"))
_META = _columns(Meta)
_TASK_CHANGING = [
    "state",
    "subtask_count",
    "ended_count",
    "next_n",
    "due_ms",
    "ended_wall_ms",
    "failure_code",
    "failure_message",
    "revision",
]
_SUBTASK_CHANGING = _SUBTASK[_SUBTASK.index("state") :]


def _insert(table: str, columns: list[str]) -> str:
    marks = ",".join("?" * len(columns))
    return f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})"


def _select(table: str, columns: list[str], tail: str) -> str:
    return f"SELECT {','.join(columns)} FROM {table} {tail}"


# SELECT without a tail, for those who read whole records.
SELECT_COLUMNS = {
    "task": _select("task", _TASK, ""),
    "subtask": _select("subtask", _SUBTASK, ""),
    "ballot": _select("ballot", _BALLOT, ""),
    "session": _select("session", _SESSION, ""),
}
INSERT_TASK = _insert("task", _TASK)
INSERT_SUBTASK = _insert("subtask", _SUBTASK)
INSERT_BALLOT = _insert("ballot", _BALLOT)
PUT_BALLOT = INSERT_BALLOT.replace("INSERT", "INSERT OR REPLACE", 1)
PUT_SESSION = _insert("session", _SESSION).replace("INSERT", "INSERT OR REPLACE", 1)
UPDATE_TASK = f"UPDATE task SET {','.join(c + '=?' for c in _TASK_CHANGING)} WHERE seq=?"
UPDATE_SUBTASK = f"UPDATE subtask SET {','.join(c + '=?' for c in _SUBTASK_CHANGING)} WHERE ref=?"
SELECT_SUBTASK = _select("subtask", _SUBTASK, "WHERE ref=?")
SELECT_TASK = _select("task", _TASK, "WHERE seq=?")
SELECT_BALLOT = _select("ballot", _BALLOT, "WHERE ref=?")
SELECT_META = _select("ledger", _META, "")
UPDATE_META = f"UPDATE ledger SET {','.join(c + '=?' for c in _META)}"
SELECT_DUE = {
    table: f"SELECT {key} FROM {table} WHERE due_ms IS NOT NULL AND due_ms <= ?"
    f" ORDER BY due_ms, {key} LIMIT ?"
    for table, key in (("task", "seq"), ("subtask", "ref"))
}
SELECT_EARLIEST = {
    table: f"SELECT min(due_ms) FROM {table} WHERE due_ms IS NOT NULL" for table in SELECT_DUE
}
NEVER_DUE_MS = 1 << 63


# Tuples of attributes, made in C: these run for every row written.
_task_row = attrgetter(*_TASK)
_task_changes = attrgetter(*_TASK_CHANGING, "seq")
_subtask_row = attrgetter(*_SUBTASK)
_subtask_changes = attrgetter(*_SUBTASK_CHANGING, "ref")
_ballot_row = attrgetter(*_BALLOT)
_session_row = attrgetter(*_SESSION)
_meta_row = attrgetter(*_META)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split())) if text else ()


class Store:
    """The rows of one ledger. `flush` writes what `mark_*` and `add_*` were told of."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.db = connection
        self.effects = Effects()
        self.reload()

    def reload(self) -> None:
        """Forget everything in memory and read what must always be there from the rows."""
        self.tasks: dict[int, Task] = {}
        self.subtasks: dict[int, Subtask] = {}
        self.ballots: dict[int, Ballot] = {}
        self.edges: dict[int, Edge] = {}
        self._forget_marks()
        self.settled: list[Subtask | Ballot] = []  # ended, and not followed up yet
        self.touched_tasks: dict[int, None] = {}  # may have nothing left to do
        self.touched: dict[int, None] = {}  # tasks with an event in this entry
        # Of each table: no row that was written is due before. It only saves looking.
        self._due_from_ms = {"task": 0, "subtask": 0}
        self.meta = Meta(*self.db.execute(SELECT_META).fetchone())
        self.sessions: dict[bytes, Session] = {}
        self.holders: dict[bytes, Session] = {}  # those that hold something
        self.free: dict[bytes, Session] = {}  # those that have a free slot
        self.classes: dict[int, Requirement] = {}
        self.class_ids: dict[tuple[str, bytes], int] = {}
        for class_id, skill, labels in self.db.execute(
            "SELECT class_id, skill, labels FROM class ORDER BY class_id"
        ).fetchall():
            self._know_class(class_id, skill, labels)
        query = _select("session", _SESSION, "ORDER BY session")
        for row in self.db.execute(query).fetchall():
            self.know_session(Session(*row))
        self.ready = ReadySet(self.db, self.classes)

    def _forget_marks(self) -> None:
        self._new_tasks: dict[int, Task] = {}
        self._new_task_ids: dict[tuple[bytes, str], int] = {}
        self._new_subtasks: dict[int, Subtask] = {}
        self._changed_tasks: dict[int, Task] = {}
        self._changed_subtasks: dict[int, Subtask] = {}
        self._changed_ballots: dict[int, Ballot] = {}
        self._changed_sessions: dict[bytes, Session] = {}
        self._new_edges: list[tuple[int, str, str]] = []
        self._new_inputs: list[tuple[int, bytes, str]] = []
        self._new_outputs: dict[int, tuple[int, bytes, str]] = {}

    # Reading.

    def find_task_by_seq(self, seq: int) -> Task | None:
        found = self.tasks.get(seq)
        if found is None:
            row = self.db.execute(SELECT_TASK, (seq,)).fetchone()
            if row is None:
                return None
            found = self.tasks[seq] = Task(*row)
        return found

    def task(self, seq: int) -> Task:
        found = self.find_task_by_seq(seq)
        if found is None:
            raise KeyError(seq)
        return found

    def task_of(self, ref: int) -> Task:
        return self.task(ref >> REF_SHIFT)

    def find_task(self, task_id: bytes, tenant: str) -> Task | None:
        seq = self._new_task_ids.get((task_id, tenant))
        if seq is not None:
            return self.task(seq)
        row = self.db.execute(
            "SELECT seq FROM task WHERE task_id=? AND tenant=?", (task_id, tenant)
        ).fetchone()
        return None if row is None else self.task(row[0])

    def find_task_of_any_tenant(self, task_id: bytes) -> Task | None:
        self.flush()
        row = self.db.execute(
            "SELECT seq FROM task WHERE task_id=? ORDER BY tenant LIMIT 1", (task_id,)
        ).fetchone()
        return None if row is None else self.task(row[0])

    def output(self, ref: int) -> tuple[bytes, str]:
        new = self._new_outputs.get(ref)
        if new is not None:
            return new[1], new[2]
        row = self.db.execute(
            "SELECT data, content_type FROM output WHERE ref=?", (ref,)
        ).fetchone()
        return (b"", "") if row is None else (row[0], row[1])

    def find_subtask(self, ref: int) -> Subtask | None:
        found = self.subtasks.get(ref)
        if found is None:
            row = self.db.execute(SELECT_SUBTASK, (ref,)).fetchone()
            if row is None:
                return None
            found = self.subtasks[ref] = Subtask(*row)
        return found

    def subtask(self, ref: int) -> Subtask:
        found = self.find_subtask(ref)
        if found is None:
            raise KeyError(ref)
        return found

    def find_ballot(self, ref: int) -> Ballot | None:
        found = self.ballots.get(ref)
        if found is None:
            row = self.db.execute(SELECT_BALLOT, (ref,)).fetchone()
            if row is None:
                return None
            found = self.ballots[ref] = Ballot(*row)
        return found

    def ballot(self, ref: int) -> Ballot:
        found = self.find_ballot(ref)
        if found is None:
            raise KeyError(ref)
        return found

    def edge(self, ref: int) -> Edge:
        found = self.edges.get(ref)
        if found is None:
            row = self.db.execute(
                "SELECT needs, dependents FROM edge WHERE ref=?", (ref,)
            ).fetchone()
            found = Edge((), ()) if row is None else Edge(_numbers(row[0]), _numbers(row[1]))
            self.edges[ref] = found
        return found

    def subtasks_of(self, seq: int) -> list[Subtask]:
        """All of a task, in order of ref."""
        self.flush()
        low, high = seq << REF_SHIFT, (seq << REF_SHIFT) | N_MASK
        query = _select("subtask", _SUBTASK, "WHERE ref BETWEEN ? AND ? ORDER BY ref")
        return self._known(self.db.execute(query, (low, high)).fetchall())

    def ballots_of(self, seq: int) -> list[Ballot]:
        self.flush()
        low, high = seq << REF_SHIFT, (seq << REF_SHIFT) | N_MASK
        query = "SELECT ref FROM ballot WHERE ref BETWEEN ? AND ? ORDER BY ref"
        return [self.ballot(row[0]) for row in self.db.execute(query, (low, high)).fetchall()]

    def held_by(self, session: bytes) -> list[Subtask]:
        self.flush()
        query = _select("subtask", _SUBTASK, "WHERE session=? AND state=4 ORDER BY ref")
        return self._known(self.db.execute(query, (session,)).fetchall())

    def due(self, table: str, limit: int) -> list[int]:
        """The keys of tasks or subtasks that are due by now, those due longest first."""
        self.flush()
        now_ms = self.meta.counted_ms
        if now_ms < self._due_from_ms[table]:
            return []
        found = self.db.execute(SELECT_DUE[table], (now_ms, limit)).fetchall()
        if not found:
            (earliest_ms,) = self.db.execute(SELECT_EARLIEST[table]).fetchone()
            self._due_from_ms[table] = NEVER_DUE_MS if earliest_ms is None else earliest_ms
        return [key for (key,) in found]

    def _note_due(self, table: str, rows: Iterable[Task] | Iterable[Subtask]) -> None:
        earliest_ms = min((r.due_ms for r in rows if r.due_ms is not None), default=NEVER_DUE_MS)
        self._due_from_ms[table] = min(self._due_from_ms[table], earliest_ms)

    def _known(self, rows: Iterable[tuple[Any, ...]]) -> list[Subtask]:
        found = []
        for row in rows:
            known = self.subtasks.get(row[0])
            if known is None:
                known = self.subtasks[row[0]] = Subtask(*row)
            found.append(known)
        return found

    # Changing.

    def add_task(self, task: Task) -> None:
        self.tasks[task.seq] = self._new_tasks[task.seq] = task
        self._new_task_ids[(task.task_id, task.tenant)] = task.seq
        self.meta.task_count += 1
        self.meta.running_count += 1

    def add_subtask(self, subtask: Subtask) -> None:
        self.subtasks[subtask.ref] = self._new_subtasks[subtask.ref] = subtask

    def add_ballot(self, ballot: Ballot) -> None:
        self.ballots[ballot.ref] = self._changed_ballots[ballot.ref] = ballot

    def add_edge(self, ref: int, edge: Edge) -> None:
        self.edges[ref] = edge
        self._new_edges.append(
            (ref, " ".join(map(str, edge.needs)), " ".join(map(str, edge.dependents)))
        )

    def add_input(self, ref: int, data: bytes, content_type: str) -> None:
        self._new_inputs.append((ref, data, content_type))

    def add_output(self, ref: int, data: bytes, content_type: str) -> None:
        self._new_outputs[ref] = (ref, data, content_type)

    def mark_task(self, task: Task) -> None:
        task.revision = self.meta.applied_index
        self._changed_tasks[task.seq] = task

    def mark_subtask(self, subtask: Subtask) -> None:
        self._changed_subtasks[subtask.ref] = subtask

    def mark_ballot(self, ballot: Ballot) -> None:
        self._changed_ballots[ballot.ref] = ballot

    def mark_session(self, session: Session) -> None:
        name = session.session
        self._changed_sessions[name] = session
        self._sort_in(name, session)

    def _sort_in(self, name: bytes, session: Session) -> None:
        if session.held:
            self.holders[name] = session
        else:
            self.holders.pop(name, None)
        if session.slots > session.held:
            self.free[name] = session
        else:
            self.free.pop(name, None)

    def know_session(self, session: Session) -> None:
        """Take up a session's profile, and match it with every class."""
        hello = WorkerHello.FromString(session.profile)
        session.skills = frozenset(hello.skills)
        session.labels = frozenset((label.key, label.value) for label in hello.labels)
        self.sessions[session.session] = session
        self._sort_in(session.session, session)
        for requirement in self.classes.values():
            if requirement.is_met_by(session):
                requirement.sessions[session.session] = session
            else:
                requirement.sessions.pop(session.session, None)

    def forget_session(self, session: bytes) -> None:
        self.flush()
        self.db.execute("DELETE FROM session WHERE session=?", (session,))
        del self.sessions[session]
        for requirement in self.classes.values():
            requirement.sessions.pop(session, None)

    def intern_class(self, skill: str, labels: bytes) -> int:
        """The number of a requirement; a new one is matched with every session."""
        known = self.class_ids.get((skill, labels))
        if known is not None:
            return known
        class_id = len(self.classes) + 1
        self.db.execute(
            "INSERT INTO class (class_id, skill, labels) VALUES (?,?,?)", (class_id, skill, labels)
        )
        self._know_class(class_id, skill, labels)
        self.ready.add_class(class_id)
        return class_id

    def _know_class(self, class_id: int, skill: str, labels: bytes) -> None:
        where = SubtaskSpec.FromString(labels).where
        requirement = Requirement(class_id, skill, frozenset((x.key, x.value) for x in where))
        self.classes[class_id] = requirement
        self.class_ids[(skill, labels)] = class_id
        for session in self.sessions.values():
            if requirement.is_met_by(session):
                requirement.sessions[session.session] = session

    def flush(self) -> None:
        """Write what changed, so that queries see it."""
        many = self.db.executemany
        if self._new_tasks:
            many(INSERT_TASK, [_task_row(t) for t in self._new_tasks.values()])
            self._note_due("task", self._new_tasks.values())
        if self._new_subtasks:
            many(INSERT_SUBTASK, [_subtask_row(s) for s in self._new_subtasks.values()])
            self._note_due("subtask", self._new_subtasks.values())
        tasks = [t for t in self._changed_tasks.values() if t.seq not in self._new_tasks]
        if tasks:
            many(UPDATE_TASK, [_task_changes(t) for t in tasks])
            self._note_due("task", tasks)
        subtasks = [s for s in self._changed_subtasks.values() if s.ref not in self._new_subtasks]
        if subtasks:
            many(UPDATE_SUBTASK, [_subtask_changes(s) for s in subtasks])
            self._note_due("subtask", subtasks)
        if self._changed_ballots:
            many(PUT_BALLOT, [_ballot_row(b) for b in self._changed_ballots.values()])
        if self._changed_sessions:
            many(PUT_SESSION, [_session_row(s) for s in self._changed_sessions.values()])
        if self._new_edges:
            many("INSERT INTO edge (ref, needs, dependents) VALUES (?,?,?)", self._new_edges)
        if self._new_inputs:
            many("INSERT INTO input (ref, data, content_type) VALUES (?,?,?)", self._new_inputs)
        if self._new_outputs:
            many(
                "INSERT INTO output (ref, data, content_type) VALUES (?,?,?)",
                self._new_outputs.values(),
            )
        self._forget_marks()

    def write_meta(self) -> None:
        self.db.execute(UPDATE_META, _meta_row(self.meta))

    def trim(self) -> None:
        """Keep the memory within its bound. Only between entries."""
        held = len(self.subtasks) + len(self.tasks) + len(self.edges) + len(self.ballots)
        if held > CACHED_ROWS_MAX:
            self.tasks.clear()
            self.subtasks.clear()
            self.ballots.clear()
            self.edges.clear()

    def forget_task(self, task: Task) -> None:
        """Drop a deleted task's rows from memory."""
        self.tasks.pop(task.seq, None)
        base = task.seq << REF_SHIFT
        for ref in range(base + 1, base + task.next_n):
            self.subtasks.pop(ref, None)
            self.ballots.pop(ref, None)
            self.edges.pop(ref, None)

    # The set of ready subtasks.

    def make_ready(self, subtask: Subtask) -> None:
        subtask.state = READY
        subtask.due_ms = None
        self.meta.ready_count += 1
        self.mark_subtask(subtask)
        self.ready.add(subtask.class_id, (subtask.band, subtask.ref))

    def leave_ready(self, subtask: Subtask) -> None:
        """It is no longer ready; the caller says what it is now."""
        self.meta.ready_count -= 1
        self.ready.remove(subtask.class_id, (subtask.band, subtask.ref))

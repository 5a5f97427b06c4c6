"""Read-only questions to the ledger, for the API. It never writes and never holds up the writer."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from quorumesh.v1.ledger_pb2 import EventBatch, HeldClaim
from quorumesh.v1.locks_pb2 import LockInfo
from quorumesh.v1.mesh_pb2 import Member, WorkerStatus
from quorumesh.v1.tasks_pb2 import TaskEvent, TaskInfo
from quorumesh.v1.workers_pb2 import Grant, WorkerHello

from consensus.ledger import taskview
from consensus.ledger.dump import hash_tables
from consensus.ledger.limits import PAGE_MAX
from consensus.ledger.records import REF_SHIFT
from consensus.ledger.results import GrantRef

EVENT_ROWS_MAX = 500  # entries per page of events
REFS_PER_QUERY = 500
REVISION_MAX = (1 << 63) - 1  # a caller may name any; this is the last that a query can


class OutOfRange(Exception):
    """The revision asked for is no longer kept; `oldest` is the first that is."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"events are kept from revision {oldest}")
        self.oldest = oldest


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is of what."""

    task_count: int
    running_count: int
    ready_count: int
    claimed_count: int


class Reader:
    """Queries on one ledger. Each answer is of one revision; ask `revision()` beside it."""

    def __init__(self, db: sqlite3.Connection, *, owns: bool) -> None:
        self._db = db
        self._owns = owns

    @classmethod
    def open(cls, path: str) -> Reader:
        """A read-only connection to the ledger at path."""
        db = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None)
        db.execute("PRAGMA query_only=1")
        return cls(db, owns=True)

    def close(self) -> None:
        if self._owns:
            self._db.close()

    def revision(self) -> int:
        return int(self._db.execute("SELECT applied_index FROM ledger").fetchone()[0])

    def counted_ms(self) -> int:
        return int(self._db.execute("SELECT counted_ms FROM ledger").fetchone()[0])

    def oldest_revision(self) -> int:
        """The first revision whose events are kept."""
        return int(self._db.execute("SELECT oldest_revision FROM ledger").fetchone()[0])

    def digest(self) -> bytes:
        """The chain digest at its revision."""
        return bytes(self._db.execute("SELECT digest FROM ledger").fetchone()[0])

    def full_digest(self) -> bytes:
        """A hash over all tables."""
        return hash_tables(self._db)

    def task(
        self, task_id: bytes, *, with_subtasks: bool = False, with_outputs: bool = False
    ) -> TaskInfo | None:
        """One task, or None. The outputs are those of its subtasks and, once succeeded, its own."""
        row = taskview.find(self._db, task_id)
        if row is None:
            return None
        info = taskview.task_info(row)
        if with_subtasks:
            taskview.add_subtasks(self._db, row, info, with_outputs=with_outputs)
        if with_outputs:
            taskview.add_output(self._db, row, info)
        return info

    def list_tasks(
        self, *, state: int = 0, page_size: int = 100, page_token: bytes = b""
    ) -> tuple[list[TaskInfo], bytes]:
        """Tasks, newest first, and the token of the next page (empty: no more).

        Raises ValueError for a token that no page gave.
        """
        before = _number(page_token, otherwise=1 << 62)
        size = _page(page_size)
        rows = taskview.page(self._db, state=state, before=before, limit=size + 1)
        token = str(rows[size - 1].seq).encode() if len(rows) > size else b""
        return [taskview.task_info(row) for row in rows[:size]], token

    def story(
        self, task_id: bytes, *, after_revision: int = 0, page_size: int = 0
    ) -> tuple[list[TaskEvent], int]:
        """What happened to one task, in order, and the revision to go on from (0: no more).

        A page holds whole entries, so it may be longer than asked for.
        """
        row = taskview.find(self._db, task_id)
        if row is None:
            return [], 0
        size = _page(page_size)
        events: list[TaskEvent] = []
        rows = self._db.execute(
            "SELECT e.revision, e.batch FROM task_event t JOIN event e ON e.revision = t.revision"
            " WHERE t.seq=? AND t.revision > ? ORDER BY t.revision",
            (row.seq, min(after_revision, REVISION_MAX)),
        )
        for _, batch in rows:
            if len(events) >= size:
                return events, events[-1].revision
            found = EventBatch.FromString(batch).events
            events.extend(event for event in found if event.task_id == task_id)
        return events, 0

    def events_after(
        self, revision: int, *, limit: int = EVENT_ROWS_MAX
    ) -> tuple[list[TaskEvent], int]:
        """Events of the entries above a revision, and the revision to go on from.

        Raises OutOfRange when some of them are no longer kept.
        """
        oldest = self.oldest_revision()
        if revision + 1 < oldest:
            raise OutOfRange(oldest)
        rows = self._db.execute(
            "SELECT revision, batch FROM event WHERE revision > ? ORDER BY revision LIMIT ?",
            (min(revision, REVISION_MAX), min(max(limit, 1), EVENT_ROWS_MAX)),
        ).fetchall()
        events = [event for _, batch in rows for event in EventBatch.FromString(batch).events]
        return events, rows[-1][0] if rows else revision

    def locks(
        self, *, page_size: int = 100, page_token: bytes = b""
    ) -> tuple[list[LockInfo], bytes]:
        """All claims that are held, by holder, and the token of the next page."""
        size = _page(page_size)
        after = _lock_key(page_token)
        rows = self._db.execute(
            "SELECT s.session, s.ref, s.id, s.fence, s.node_id, s.worker, s.claimed_wall_ms,"
            " w.lease_until_ms, t.task_id, l.counted_ms FROM subtask s INDEXED BY subtask_held"
            " JOIN session w ON w.session = s.session JOIN task t ON t.seq = s.ref >> 20"
            " JOIN ledger l WHERE s.state=4 AND (s.session, s.ref) > (?,?)"
            " ORDER BY s.session, s.ref LIMIT ?",
            (*after, size + 1),
        ).fetchall()
        locks = [
            LockInfo(
                name=f"{row[8].hex()}/{row[2]}",
                holder=f"{row[4]}/{row[5]}",
                fence=row[3],
                lease_ms_left=max(0, row[7] - row[9]),
                claimed_wall_ms=row[6],
            )
            for row in rows[:size]
        ]
        token = b""
        if len(rows) > size:
            token = b"%d:" % rows[size - 1][1] + rows[size - 1][0]
        return locks, token

    def members(self) -> list[Member]:
        """Every admitted node, ordered by id. Whether it is alive is not the ledger's to know."""
        rows = self._db.execute(
            "SELECT node_id, name, address, voter, admitted_wall_ms, apply_version_max,"
            " leaving"
            " FROM member ORDER BY node_id"
        )
        return [
            Member(
                node_id=row[0],
                name=row[1],
                address=row[2],
                voter=bool(row[3]),
                admitted_wall_ms=row[4],
                apply_version_max=row[5],
                leaving=bool(row[6]),
            )
            for row in rows
        ]

    def workers(self) -> list[WorkerStatus]:
        """Every worker session, ordered by name."""
        rows = self._db.execute(
            "SELECT name, node_id, slots, held, profile, is_open FROM session"
            " ORDER BY name, session"
        )
        return [
            WorkerStatus(
                name=row[0],
                node_id=row[1],
                slots=row[2],
                held=row[3],
                skills=WorkerHello.FromString(row[4]).skills,
                open=bool(row[5]),
            )
            for row in rows
        ]

    def counts(self) -> Counts:
        """Kept with the ledger, not counted: as quick with a million tasks as with one."""
        row = self._db.execute(
            "SELECT task_count, running_count, ready_count,"
            " (SELECT coalesce(sum(held), 0) FROM session) FROM ledger"
        ).fetchone()
        return Counts(*row)

    def held(self, session: bytes) -> list[HeldClaim]:
        """What a worker session holds, in order of age."""
        rows = self._db.execute(
            "SELECT ref, fence FROM subtask WHERE session=? AND state=4 ORDER BY ref", (session,)
        )
        return [HeldClaim(subtask_ref=ref, fence=fence) for ref, fence in rows]

    def grants(self, refs: Sequence[GrantRef]) -> list[Grant]:
        """The work behind granted claims, in their order; those no longer current are left out.

        `lease_ms_left` is what the ledger itself counts as left at its revision.
        """
        found: list[Grant] = []
        for at in range(0, len(refs), REFS_PER_QUERY):
            found.extend(self._grants(refs[at : at + REFS_PER_QUERY]))
        return found

    def _grants(self, refs: Sequence[GrantRef]) -> list[Grant]:
        marks = ",".join("?" * len(refs))
        rows: dict[int, Any] = {
            row[0]: row
            for row in self._db.execute(
                "SELECT s.ref, s.fence, t.task_id, s.id, c.skill, s.attempt, i.data,"
                " i.content_type,"
                " s.timeout_ms, s.need_count, w.lease_until_ms, l.counted_ms, e.needs"
                " FROM subtask s JOIN task t ON t.seq = s.ref >> 20"
                " JOIN class c ON c.class_id = s.class_id JOIN session w ON w.session = s.session"
                " JOIN ledger l LEFT JOIN input i ON i.ref = s.ref"
                " LEFT JOIN edge e ON e.ref = s.ref"
                f" WHERE s.ref IN ({marks}) AND s.state=4",
                [ref.subtask_ref for ref in refs],
            )
        }
        wanted = {ref: _need_refs(ref, row[12]) for ref, row in rows.items() if row[9]}
        # Two grants that need the same are served by one read.
        given = taskview.given(
            self._db, list(dict.fromkeys(need for needs in wanted.values() for need in needs))
        )
        grants = []
        for ref in refs:
            row = rows.get(ref.subtask_ref)
            if row is None or row[1] != ref.fence:
                continue
            grant = Grant(
                subtask_ref=row[0],
                fence=row[1],
                task_id=row[2],
                subtask=row[3],
                skill=row[4],
                attempt=row[5],
                lease_ms_left=max(0, row[10] - row[11]),
                timeout_ms=row[8],
            )
            grant.input.data = row[6] or b""
            grant.input.content_type = row[7] or ""
            grant.needs.extend(given[need] for need in wanted.get(row[0], ()) if need in given)
            grants.append(grant)
        return grants


def _need_refs(ref: int, needs: str) -> list[int]:
    base = ref >> REF_SHIFT << REF_SHIFT
    return [base | int(n) for n in needs.split()]


def _page(size: int) -> int:
    return min(size or 100, PAGE_MAX)


def _number(token: bytes, *, otherwise: int) -> int:
    if not token:
        return otherwise
    if not token.isdigit() or len(token) > 18:
        raise ValueError("the page token was not given by a page")
    return int(token)


def _lock_key(token: bytes) -> tuple[bytes, int]:
    if not token:
        return b"", -1
    number, colon, session = token.partition(b":")
    if not colon:
        raise ValueError("the page token was not given by a page")
    return session, _number(number, otherwise=-1)

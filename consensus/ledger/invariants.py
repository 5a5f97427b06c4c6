"""What must hold after every entry, in the words of schema.sql."""

from __future__ import annotations

import sqlite3

from consensus.ledger.store import Store

_CHECKS: tuple[tuple[str, str], ...] = (
    (
        "the counts of tasks and ready subtasks are right",
        "SELECT task_count || ' ' || running_count || ' ' || ready_count FROM ledger"
        " WHERE task_count != (SELECT count(*) FROM task)"
        " OR running_count != (SELECT count(*) FROM task WHERE state = 1)"
        " OR ready_count != (SELECT count(*) FROM subtask WHERE state = 3)",
    ),
    (
        "no claim carries a fence above the last one given",
        "SELECT ref FROM subtask WHERE fence > (SELECT fence FROM ledger)",
    ),
    (
        "a session's held equals its claimed subtasks",
        "SELECT hex(w.session) FROM session w WHERE w.held !="
        " (SELECT count(*) FROM subtask s WHERE s.session = w.session AND s.state = 4)",
    ),
    (
        "a task's counters match its subtasks",
        "SELECT t.seq FROM task t WHERE (t.state = 1 OR t.due_ms > (SELECT counted_ms FROM ledger))"
        " AND (t.subtask_count != (SELECT count(*) FROM subtask s WHERE s.ref >> 20 = t.seq)"
        " OR t.ended_count !="
        " (SELECT count(*) FROM subtask s WHERE s.ref >> 20 = t.seq AND s.state >= 6))",
    ),
    (
        "no ready subtask has an open need",
        "SELECT ref FROM subtask WHERE state IN (2,3,4,5,6) AND open_needs != 0",
    ),
    (
        "a fence belongs to one claim only",
        "SELECT fence FROM subtask WHERE fence > 0 GROUP BY fence HAVING count(*) > 1",
    ),
    (
        "only a claimed subtask has a holder",
        "SELECT ref FROM subtask WHERE (state = 4) != (session IS NOT NULL)",
    ),
    (
        "a decided ballot has no running straggler",
        "SELECT s.ref FROM subtask s JOIN ballot b ON b.ref = (s.ref & ~1048575) | s.ballot_n"
        " WHERE s.ballot_n > 0 AND b.state = 1 AND s.state < 6",
    ),
    (
        "an ended task has nothing running",
        "SELECT s.ref FROM subtask s JOIN task t ON t.seq = s.ref >> 20"
        " WHERE t.state != 1 AND s.state < 6",
    ),
    (
        "a running task has something left to do",
        "SELECT seq FROM task WHERE state = 1 AND ended_count >= subtask_count",
    ),
    (
        "a subtask has waiting time only while it backs off or is claimed",
        "SELECT ref FROM subtask WHERE due_ms IS NOT NULL AND state NOT IN (2, 4)",
    ),
    (
        "only a voter is leaving",
        "SELECT node_id FROM member WHERE leaving = 1 AND voter = 0",
    ),
)


def violations(connection: sqlite3.Connection) -> list[str]:
    """What does not hold, each with the rows that show it; empty when all is well."""
    found = []
    for words, query in _CHECKS:
        rows = connection.execute(f"{query} LIMIT 5").fetchall()
        if rows:
            found.append(f"{words}: {', '.join(str(row[0]) for row in rows)}")
    found.extend(_open_needs(connection))
    found.extend(_unserved(connection))
    return found


def _open_needs(connection: sqlite3.Connection) -> list[str]:
    """Invariant: open needs are counted rightly."""
    ended = {
        ref
        for (ref,) in connection.execute(
            "SELECT ref FROM subtask WHERE state >= 6"
            " UNION ALL SELECT ref FROM ballot WHERE state = 1"
        )
    }
    wrong = []
    for ref, open_needs, needs in connection.execute(
        "SELECT s.ref, s.open_needs, e.needs FROM subtask s JOIN edge e ON e.ref = s.ref"
        " WHERE s.state = 1 ORDER BY s.ref"
    ):
        base = ref >> 20 << 20
        counted = sum(1 for n in needs.split() if (base | int(n)) not in ended)
        if counted != open_needs or counted == 0:
            wrong.append(str(ref))
    return [f"open needs are counted rightly: {', '.join(wrong[:5])}"] if wrong else []


def _unserved(connection: sqlite3.Connection) -> list[str]:
    """Invariant: no ready subtask is left that a worker with a free slot could take."""
    store = Store(connection)
    ready = {
        class_id
        for (class_id,) in connection.execute("SELECT DISTINCT class_id FROM subtask WHERE state=3")
    }
    wrong = [
        f"class {class_id} by {name.hex()}"
        for class_id in sorted(ready)
        for name, session in sorted(store.classes[class_id].sessions.items())
        if session.free > 0
    ]
    words = "no ready subtask is left that a worker with a free slot could take"
    return [f"{words}: {', '.join(wrong[:5])}"] if wrong else []

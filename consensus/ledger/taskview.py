"""Tasks as people see them: read from rows, with why something waits in words."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Sequence

from quorumesh.v1.tasks_pb2 import BallotInfo, SubtaskInfo, SubtaskSpec, TaskInfo
from quorumesh.v1.values_pb2 import Failure, Value
from quorumesh.v1.workers_pb2 import NeedOutput, WorkerHello

from consensus.ledger.records import (
    BACKOFF,
    BALLOT_DECIDED,
    BALLOT_UNDECIDED,
    DELEGATED,
    FAILED,
    N_MASK,
    READY,
    REF_SHIFT,
    SUCCEEDED,
    TASK_SUCCEEDED,
    WAITING,
    Ballot,
    Requirement,
    Session,
    Subtask,
    Task,
)
from consensus.ledger.store import SELECT_COLUMNS

NAMES_SHOWN_MAX = 5
NUMBERS_PER_QUERY = 500


def find(db: sqlite3.Connection, task_id: bytes) -> Task | None:
    query = f"{SELECT_COLUMNS['task']} WHERE task_id=? ORDER BY tenant LIMIT 1"
    row = db.execute(query, (task_id,)).fetchone()
    return None if row is None else Task(*row)


def page(db: sqlite3.Connection, *, state: int, before: int, limit: int) -> list[Task]:
    query = (
        f"{SELECT_COLUMNS['task']} WHERE seq < ?1 AND (?2 = 0 OR state = ?2)"
        " ORDER BY seq DESC LIMIT ?3"
    )
    return [Task(*row) for row in db.execute(query, (before, state, limit))]


def task_info(task: Task) -> TaskInfo:
    info = TaskInfo(
        task_id=task.task_id,
        name=task.name,
        state=task.state,  # type: ignore[arg-type]  # an enum's number is an int in rows
        subtask_count=task.subtask_count,
        ended_count=task.ended_count,
        submitted_wall_ms=task.submitted_wall_ms,
        ended_wall_ms=task.ended_wall_ms,
        revision=task.revision,
        principal=task.principal,
        band=task.band,
    )
    if task.failure_code:
        info.failure.CopyFrom(Failure(code=task.failure_code, message=task.failure_message))
    return info


def _range(seq: int) -> tuple[int, int]:
    return seq << REF_SHIFT, (seq << REF_SHIFT) | N_MASK


def _outputs(db: sqlite3.Connection, seq: int) -> dict[int, Value]:
    rows = db.execute(
        "SELECT ref, data, content_type FROM output WHERE ref BETWEEN ? AND ? ORDER BY ref",
        _range(seq),
    )
    return {ref & N_MASK: Value(data=data, content_type=kind) for ref, data, kind in rows}


def _subtasks(db: sqlite3.Connection, seq: int) -> list[Subtask]:
    query = f"{SELECT_COLUMNS['subtask']} WHERE ref BETWEEN ? AND ? ORDER BY ref"
    return [Subtask(*row) for row in db.execute(query, _range(seq))]


def _ballots(db: sqlite3.Connection, seq: int) -> list[Ballot]:
    query = f"{SELECT_COLUMNS['ballot']} WHERE ref BETWEEN ? AND ? ORDER BY ref"
    return [Ballot(*row) for row in db.execute(query, _range(seq))]


def add_subtasks(db: sqlite3.Connection, task: Task, info: TaskInfo, *, with_outputs: bool) -> None:
    """Fill in all subtasks and ballots of a task."""
    subtasks, ballots = _subtasks(db, task.seq), _ballots(db, task.seq)
    nodes: list[Subtask | Ballot] = [*subtasks, *ballots]
    names = {node.ref & N_MASK: node.id for node in nodes}
    ended = {s.n for s in subtasks if s.has_ended} | {
        b.ref & N_MASK for b in ballots if b.state != 0
    }
    needs = {
        ref & N_MASK: [int(n) for n in text.split()]
        for ref, text in db.execute(
            "SELECT ref, needs FROM edge WHERE ref BETWEEN ? AND ? ORDER BY ref", _range(task.seq)
        )
    }
    outputs = _outputs(db, task.seq) if with_outputs else {}
    classes = _Workers(db)
    for subtask in subtasks:
        item = _subtask_info(subtask, classes.skill(subtask.class_id))
        item.needs.extend(names[n] for n in needs.get(subtask.n, []))
        item.parent = names.get(subtask.parent_n, "")
        item.ballot = names.get(subtask.ballot_n, "")
        still_open = [names[n] for n in needs.get(subtask.n, []) if n not in ended]
        item.waiting_reason = _waiting_reason(subtask, still_open, classes)
        if subtask.output_n and with_outputs:
            item.output.CopyFrom(outputs.get(subtask.output_n, Value()))
        info.subtasks.append(item)
    info.ballots.extend(_ballot_info(ballot) for ballot in ballots)


def _subtask_info(subtask: Subtask, skill: str) -> SubtaskInfo:
    item = SubtaskInfo(
        id=subtask.id,
        skill=skill,
        state=subtask.state,  # type: ignore[arg-type]  # an enum's number is an int in rows
        attempt=subtask.attempt,
        fence=subtask.fence,
        node_id=subtask.node_id,
        worker=subtask.worker,
        claimed_wall_ms=subtask.claimed_wall_ms,
        ended_wall_ms=subtask.ended_wall_ms,
        label=subtask.label or "",
    )
    if subtask.failure_code and subtask.state != SUCCEEDED:
        item.failure.code = subtask.failure_code
        item.failure.message = subtask.failure_message
    return item


def _ballot_info(ballot: Ballot) -> BallotInfo:
    info = BallotInfo.FromString(ballot.tallies)
    info.id = ballot.id
    info.decided = ballot.state == BALLOT_DECIDED
    info.label = ballot.label
    if ballot.state == BALLOT_UNDECIDED:
        info.failure.code = "UNDECIDED"
        info.failure.message = "no label has a majority"
    return info


class _Workers:
    """Which open workers satisfy a class, looked up at most once per class."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._classes: dict[int, Requirement] = {}
        for class_id, skill, labels in db.execute("SELECT class_id, skill, labels FROM class"):
            where = SubtaskSpec.FromString(labels).where
            self._classes[class_id] = Requirement(
                class_id, skill, frozenset((x.key, x.value) for x in where)
            )
        self._sessions: list[Session] = []
        for row in db.execute(f"{SELECT_COLUMNS['session']} WHERE is_open=1 ORDER BY session"):
            session = Session(*row)
            hello = WorkerHello.FromString(session.profile)
            session.skills = frozenset(hello.skills)
            session.labels = frozenset((x.key, x.value) for x in hello.labels)
            self._sessions.append(session)
        self._reasons: dict[int, str] = {}

    def skill(self, class_id: int) -> str:
        return self._classes[class_id].skill

    def why_ready_waits(self, class_id: int) -> str:
        if class_id not in self._reasons:
            self._reasons[class_id] = self._reason(self._classes[class_id])
        return self._reasons[class_id]

    def _reason(self, requirement: Requirement) -> str:
        skilled = [s for s in self._sessions if requirement.skill in s.skills]
        if not skilled:
            return f"no worker has the skill {requirement.skill!r}"
        able = [s for s in skilled if requirement.is_met_by(s)]
        if not able:
            wanted = ", ".join(f"{key}={value}" for key, value in sorted(requirement.labels))
            return f"no worker with the skill {requirement.skill!r} carries {wanted}"
        if not any(session.slots for session in able):
            return f"no worker with the skill {requirement.skill!r} offers a slot now"
        return f"all {len(able)} able workers are busy"


def _waiting_reason(subtask: Subtask, still_open: list[str], workers: _Workers) -> str:
    if subtask.state == WAITING:
        shown = ", ".join(still_open[:NAMES_SHOWN_MAX])
        more = len(still_open) - NAMES_SHOWN_MAX
        return f"needs {shown}" + (f" and {more} more" if more > 0 else "")
    if subtask.state == BACKOFF:
        return (
            f"waits before another attempt: {subtask.failed_count} of {subtask.attempts_max} failed"
        )
    if subtask.state == DELEGATED:
        return "waits for what it spawned"
    if subtask.state == READY:
        return workers.why_ready_waits(subtask.class_id)
    return ""


def add_output(db: sqlite3.Connection, task: Task, info: TaskInfo) -> None:
    """Fill in the output of a task that has succeeded."""
    if task.state != TASK_SUCCEEDED:
        return
    if task.output_n:
        (found,) = needs(db, task.seq << REF_SHIFT, [task.output_n])
        info.output.CopyFrom(found.output)
        return
    sinks = _sinks(db, task)
    if len(sinks) == 1:
        info.output.CopyFrom(sinks[0].output)
        return
    parts = [f"{json.dumps(sink.id)}:".encode() + _as_json(sink.output) for sink in sinks]
    info.output.data = b"{" + b",".join(parts) + b"}"


def _sinks(db: sqlite3.Connection, task: Task) -> list[NeedOutput]:
    """What nobody needs, of the subtasks and ballots that were submitted."""
    rows = db.execute(
        "SELECT s.ref FROM subtask s WHERE s.ref BETWEEN ?1 AND ?2 AND s.parent_n=0"
        " AND s.dependent_count=0 AND s.ballot_n=0 UNION ALL"
        " SELECT b.ref FROM ballot b JOIN edge e ON e.ref = b.ref"
        " WHERE b.ref BETWEEN ?1 AND ?2 AND b.parent_n=0 AND e.dependents='' ORDER BY 1",
        _range(task.seq),
    ).fetchall()
    return needs(db, task.seq << REF_SHIFT, [ref & N_MASK for (ref,) in rows])


def _as_json(value: Value) -> bytes:
    if not value.data:
        return b"null"
    if value.content_type in ("", "application/json"):
        return value.data
    return json.dumps(base64.b64encode(value.data).decode()).encode()


def needs(db: sqlite3.Connection, base: int, numbers: Sequence[int]) -> list[NeedOutput]:
    """What subtasks and ballots of one task gave, in the order asked for."""
    found = given(db, [base | n for n in numbers])
    return [found[base | n] for n in numbers if base | n in found]


def given(db: sqlite3.Connection, refs: Sequence[int]) -> dict[int, NeedOutput]:
    """What subtasks and ballots gave, by ref."""
    found: dict[int, NeedOutput] = {}
    for at in range(0, len(refs), NUMBERS_PER_QUERY):
        part = refs[at : at + NUMBERS_PER_QUERY]
        marks = ",".join("?" * len(part))
        for row in db.execute(
            "SELECT s.ref, s.id, s.state, s.failure_code, s.failure_message, o.data, o.content_type"
            " FROM subtask s LEFT JOIN output o ON o.ref = (s.ref & ~1048575) | s.output_n"
            f" WHERE s.ref IN ({marks})",
            part,
        ):
            found[row[0]] = _subtask_output(*row[1:])
        ballots = [ref for ref in part if ref not in found]
        if ballots:
            _add_ballots(db, ballots, found)
    return found


def _add_ballots(db: sqlite3.Connection, refs: Sequence[int], found: dict[int, NeedOutput]) -> None:
    for row in db.execute(
        "SELECT b.ref, b.id, b.label, b.tallies, o.data, o.content_type"
        " FROM ballot b LEFT JOIN output o ON o.ref = (b.ref & ~1048575) | b.output_n"
        f" WHERE b.ref IN ({','.join('?' * len(refs))})",
        refs,
    ):
        found[row[0]] = NeedOutput(
            id=row[1],
            label=row[2],
            tallies=BallotInfo.FromString(row[3]).tallies,
            output=Value(data=row[4] or b"", content_type=row[5] or ""),
        )


def _subtask_output(
    name: str, state: int, code: str, message: str, data: bytes | None, kind: str | None
) -> NeedOutput:
    if state == SUCCEEDED:
        return NeedOutput(id=name, output=Value(data=data or b"", content_type=kind or ""))
    if state != FAILED:
        code, message = "CANCELLED", "it was cancelled"
    return NeedOutput(id=name, failure=Failure(code=code, message=message))

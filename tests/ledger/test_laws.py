"""The laws of the ledger, one by one: pure, the same everywhere or not at all, by version, by name."""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from quorumesh.v1 import values_pb2 as r
from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Bootstrap,
    Cancel,
    CloseSession,
    Command,
    Entry,
    Renew,
    SessionEpoch,
    Submit,
)
from quorumesh.v1.tasks_pb2 import TaskSpec

import consensus.ledger as ledger_package
from consensus.ledger import APPLY_VERSION, Applied, Ledger
from consensus.ledger.dump import TABLES
from consensus.ledger.results import CannotApply
from consensus.ledger.steps import DETERMINISTIC_ERRORS
from tests.ledger.replay import History, apply, replay, written
from tests.ledger.world import (
    World,
    complete_command,
    entry_of,
    fail_command,
    open_command,
    sub,
    submit_command,
)

FOLDER = Path(ledger_package.__file__).parent
ROOT = FOLDER.parents[1]
# Asked by people and by checks, never by apply: what they answer is not replicated.
READING = {"reader.py", "taskview.py", "invariants.py", "parts.py"}


def sources(*, without: Collection[str] = ()) -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(FOLDER.glob("*.py")):
        if path.name not in without:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                yield path.name, node


# Law: pure.


def test_law_pure_it_calls_nothing_that_could_differ_between_nodes() -> None:
    banned = {"hash", "id", "open", "input", "print", "eval", "exec", "globals", "vars", "float"}
    found = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, node in sources()
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in banned
    ]

    assert found == []


def test_law_pure_it_counts_in_integers_only() -> None:
    found = [
        f"{name}:{node.lineno} {ast.unparse(node)}"
        for name, node in sources()
        if (isinstance(node, ast.Constant) and isinstance(node.value, float))
        or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
    ]

    assert found == []


def test_law_pure_nothing_is_done_in_the_order_of_a_set() -> None:
    found = [
        f"{name} {ast.unparse(node.iter)}"
        for name, node in sources(without=READING)
        if isinstance(node, (ast.For, ast.comprehension))
        and (
            isinstance(node.iter, (ast.Set, ast.SetComp))
            or re.match(r"(frozen)?set\(", ast.unparse(node.iter))
        )
    ]

    assert found == []


def test_law_pure_its_sql_asks_for_no_time_chance_or_order_of_rows() -> None:
    words = re.compile(
        r"\b(random|randomblob|date|time|datetime|julianday|strftime|current_\w+|json\w*\(|analyze"
        r"|group_concat|total|avg|last_insert_rowid|changes)\s*\(|\bANALYZE\b|\bREAL\b|CURRENT_TIME",
        re.IGNORECASE,
    )
    texts = [("schema.sql", (FOLDER / "schema.sql").read_text(encoding="utf-8"))]
    for name, node in sources():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append((f"{name}:{node.lineno}", node.value))
    sql = [(where, text) for where, text in texts if re.search(r"\b(SELECT|CREATE)\b", text)]
    code = [(where, re.sub(r"--[^\n]*", "", text)) for where, text in sql]

    assert [where for where, text in code if words.search(text)] == []
    assert [w for w, text in code if " LIMIT " in text and " ORDER BY " not in text] == []


def test_law_pure_every_table_is_strict_and_holds_no_reals() -> None:
    ledger = Ledger.open(":memory:")
    tables = ledger.connection.execute("PRAGMA table_list").fetchall()
    ours = {row[1]: row[5] for row in tables if not row[1].startswith("sqlite_")}

    assert set(ours.values()) == {1} and ours.keys() == TABLES.keys()
    for table in ours:
        columns = ledger.connection.execute(f"PRAGMA table_info({table})").fetchall()
        assert {column[2] for column in columns} <= {"INTEGER", "TEXT", "BLOB"}


@pytest.fixture(scope="module")
def history() -> History:
    history = History(seed=3)
    history.grow(250)
    assert len(history.grants) > 100, "too little happened for the test to show anything"
    return history


ELSEWHERE: dict[str, tuple[dict[str, str], list[str]]] = {
    "other hashes, time zone and locale": (
        {"PYTHONHASHSEED": "1", "TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8"},
        [],
    ),
    "no asserts and no UTF-8": (
        {"PYTHONHASHSEED": "4242", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        ["-O"],
    ),
    "another allocator": ({"PYTHONHASHSEED": "7", "PYTHONMALLOC": "malloc"}, []),
}


@pytest.mark.parametrize("where", ELSEWHERE)
def test_law_pure_the_same_entries_give_the_same_ledger_elsewhere(
    tmp_path: Path, history: History, where: str
) -> None:
    """Another process, in another folder, on disk, closed and opened again and again."""
    more, flags = ELSEWHERE[where]
    path, folder = tmp_path / "history", tmp_path / "there"
    path.write_bytes(written(history.entries))
    folder.mkdir()
    sources_path = os.pathsep.join((str(ROOT), str(ROOT / "proto")))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": sources_path, **more}

    run = subprocess.run(
        [sys.executable, *flags, "-m", "tests.ledger.replay", str(path), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == replay(history.entries)


# Law: the same everywhere, or not at all.


@dataclass
class Breaks:
    """A command at which something breaks, as a port would hand it in."""

    error: BaseException

    def WhichOneof(self, group: str) -> str:
        raise self.error


@dataclass
class Carried:
    command: Any


@dataclass
class Handed:
    """An entry that was parsed, with something in it that breaks."""

    entry: Entry
    error: BaseException
    apply_version: int = APPLY_VERSION
    counted_ms: int = 0
    wall_ms: int = 0
    proposals: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counted_ms, self.wall_ms = self.entry.counted_ms, self.entry.wall_ms
        self.proposals = [*self.entry.proposals, Carried(Breaks(self.error))]


def busy_world(path: str = ":memory:") -> World:
    world = World(path)
    world.work(slots=2)
    world.submit("before", sub("a"), sub("b", "a"))
    return world


def stand(world: World) -> tuple[object, ...]:
    ledger = world.ledger
    return (
        ledger.applied_index,
        ledger.applied_term,
        ledger.counted_ms,
        ledger.digest,
        ledger.full_digest(),
        ledger.next_due_ms(),
    )


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        sqlite3.OperationalError("disk I/O error"),
        sqlite3.DatabaseError("database disk image is malformed"),
        sqlite3.InternalError("out of step"),
        sqlite3.NotSupportedError("an older SQLite"),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        OSError(5, "Input/output error"),
        SystemError("an error of the interpreter"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_law_what_may_differ_between_nodes_rolls_back_the_whole_entry(
    tmp_path: Path, error: BaseException
) -> None:
    world, twin = busy_world(str(tmp_path / "ledger.db")), busy_world()
    before = stand(world)
    entry = entry_of(
        submit_command("t", TaskSpec(subtasks=[sub("a")])),
        complete_command(world.grants["a"], '"done"'),
        now_ms=700,
    )

    for _ in range(2):  # it is retried, and may break again
        with pytest.raises(type(error)):
            world.ledger.apply(world.ledger.applied_index + 1, 1, Handed(entry, error))  # type: ignore[arg-type]
        assert stand(world) == before

    applied = world.ledger.apply(world.ledger.applied_index + 1, 1, entry)
    twin_applied = twin.ledger.apply(twin.ledger.applied_index + 1, 1, entry)
    assert applied == twin_applied
    assert stand(world) == stand(twin)


def test_law_only_a_closed_list_of_errors_is_taken_for_the_same_everywhere() -> None:
    names = {error.__name__ for error in DETERMINISTIC_ERRORS}

    assert names == {
        "Bug",
        "AssertionError",
        "ArithmeticError",
        "AttributeError",
        "LookupError",
        "StopIteration",
        "TypeError",
        "ValueError",
        "IntegrityError",
    }


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), ZeroDivisionError(), TypeError()]
)
def test_law_a_deterministic_error_becomes_an_outcome_and_costs_its_command_alone(
    error: Exception,
) -> None:
    world = busy_world()
    entry = entry_of(submit_command("t", TaskSpec(subtasks=[sub("a")])), now_ms=1)

    applied = world.ledger.apply(world.ledger.applied_index + 1, 1, Handed(entry, error))  # type: ignore[arg-type]

    assert [outcome.reason for outcome in applied.outcomes] == [0, r.INTERNAL]
    assert world.reader.task(b"t") is not None


# Law: versions.


def test_law_an_entry_of_a_newer_version_changes_nothing_and_stops_the_node() -> None:
    world = busy_world()
    before = stand(world)
    entry = entry_of(submit_command("t", TaskSpec(subtasks=[sub("a")])), now_ms=900)
    entry.apply_version = APPLY_VERSION + 1

    with pytest.raises(CannotApply):
        world.ledger.apply(world.ledger.applied_index + 1, 1, entry)

    assert stand(world) == before


def test_law_entries_of_every_older_version_are_still_applied() -> None:
    for version in range(1, APPLY_VERSION + 1):
        world = busy_world()
        entry = entry_of(submit_command("t", TaskSpec(subtasks=[sub("a")])), now_ms=900)
        entry.apply_version = version

        world.ledger.apply(world.ledger.applied_index + 1, 1, entry)

        assert world.reader.task(b"t") is not None


# Law: time is counted, never read.


def test_law_counted_time_never_goes_back_whatever_a_deposed_leader_stamped() -> None:
    world = World()
    world.wait(5_000)

    for late_ms in (4_999, 0, 5_000):
        entry = Entry(apply_version=APPLY_VERSION, counted_ms=late_ms, wall_ms=late_ms)
        applied = world.ledger.apply(world.ledger.applied_index + 1, 1, entry)
        assert applied.counted_ms == world.ledger.counted_ms == 5_000


def test_law_wall_time_moves_no_timer() -> None:
    world = busy_world()
    entry = Entry(apply_version=APPLY_VERSION, counted_ms=1, wall_ms=10**15)

    applied = world.ledger.apply(world.ledger.applied_index + 1, 1, entry)

    assert applied.events == [] and applied.revokes == []


# Law: idempotent by name.


def rows(world: World) -> dict[str, list[Any]]:
    """What there is; not where the log stands, nor the story, which tells of refusals too."""
    told = ("ledger", "event", "task_event")
    ordered = {table: key for table, key in TABLES.items() if table not in told}
    return {
        table: world.ledger.connection.execute(f"SELECT * FROM {table} ORDER BY {key}").fetchall()
        for table, key in ordered.items()
    }


TOKEN = {"token_id": b"k", "secret_digest": b"d" * 32}
BY_NAME: dict[str, Command] = {
    "bootstrap": Command(bootstrap=Bootstrap(mesh_id="m", node_id="n1", address="h:1")),
    "submit": submit_command("t", TaskSpec(subtasks=[sub("a"), sub("b", "a")])),
    "open": open_command("new", "s", nonce=77),
    "close": Command(close_session=CloseSession(session=b"w", epoch=1)),
    "renew": Command(renew=Renew(sessions=[SessionEpoch(session=b"w", epoch=1)])),
    "cancel": Command(cancel=Cancel(task_id=b"before")),
    "token": Command(add_token=AddToken(**TOKEN, ttl_ms=60_000)),  # type: ignore[arg-type]
    "admit": Command(admit=Admit(**TOKEN, node_id="n2", address="h:2")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", [*BY_NAME, "claim", "complete", "fail"])
def test_law_a_command_that_comes_twice_has_the_effect_of_one(name: str) -> None:
    world = busy_world()
    if name == "admit":
        world.one(BY_NAME["token"])
    grant = world.grants["a"]
    late = {
        "claim": lambda: world.claim_command("w", 1, 5),
        "complete": lambda: complete_command(grant, '"x"'),
        "fail": lambda: fail_command(grant),
    }
    command = late[name]() if name in late else BY_NAME[name]
    first = world.one(command)
    after_first = rows(world)

    again = world.one(command)
    both = world.apply(command, command)

    assert [first.reason, again.reason] == [0, 0], (first, again)
    assert [outcome.reason for outcome in both.outcomes] == [0, 0]
    assert rows(world) == after_first
    assert (again.epoch, list(again.held)) == (first.epoch, list(first.held))


def test_law_the_same_name_with_another_content_is_refused() -> None:
    world = busy_world()
    other = Command(submit=Submit(task_id=b"before", spec=TaskSpec().SerializeToString()))
    digest = rows(world)

    assert world.one(other).reason in (r.ALREADY_EXISTS, r.INVALID)
    assert rows(world) == digest


# Law: fences.


def lost_and_granted_again(world: World) -> tuple[Any, Any]:
    """A claim whose lease ran out, and the next one of the same subtask."""
    old = world.grants["a"]
    world.wait(3_001)
    world.work("heir", slots=1)
    new = world.grants["a"]
    assert new.fence > old.fence and new.subtask_ref == old.subtask_ref
    return old, new


@pytest.mark.parametrize("verb", ["complete", "fail"])
def test_law_every_verb_with_an_old_fence_is_refused_and_changes_nothing(verb: str) -> None:
    world = busy_world()
    old, new = lost_and_granted_again(world)
    before = rows(world)
    command = complete_command(old, '"late"') if verb == "complete" else fail_command(old)

    assert world.one(command).reason == r.STALE_FENCE
    assert rows(world) == before
    assert world.one(complete_command(new, '"right"')).reason == 0


def test_law_fences_grow_mesh_wide_over_every_grant_of_a_long_history(history: History) -> None:
    fences = [grant.fence for grant in history.grants]

    assert fences == sorted(set(fences)) and len(fences) > 100


def test_law_no_subtask_takes_effect_twice_in_a_long_history(history: History) -> None:
    ledger, ended = Ledger.open(":memory:"), set[tuple[bytes, str]]()
    for data in history.entries:
        applied: Applied = apply(ledger, data)
        for event in applied.events:
            if event.kind == event.SUBTASK_SUCCEEDED:
                assert (event.task_id, event.subtask) not in ended
                ended.add((event.task_id, event.subtask))
    assert len(ended) > 25

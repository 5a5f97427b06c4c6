"""Bugs cost what they touch; failures of the world cost the entry. Both are made, not pretended.

A bug is provoked by rows that contradict each other, which no command leaves behind; a full disk by
a bound on the pages of the file.
"""

from __future__ import annotations

import ast
import sqlite3
from pathlib import Path

import pytest
from quorumesh.v1 import values_pb2 as r
from quorumesh.v1.ledger_pb2 import Cancel, Command
from quorumesh.v1.tasks_pb2 import TaskEvent, TaskSpec

import consensus.ledger as ledger_package
from consensus.ledger import Applied, Ledger, invariants, limits
from consensus.ledger.steps import DETERMINISTIC_ERRORS
from tests.ledger.world import World, complete_command, entry_of, sub, submit_command


def damaged(tmp_path: Path, world: World, *statements: str) -> list[Ledger]:
    """Two copies of a world's ledger with rows changed behind its back."""
    copies = []
    for name in ("one.db", "two.db"):
        path = str(tmp_path / name)
        with sqlite3.connect(path) as copy:
            world.ledger.connection.backup(copy)
            for statement in statements:
                copy.execute(statement)
        copies.append(Ledger.open(path))
    return copies


def apply_alike(ledgers: list[Ledger], *commands: Command, now_ms: int = 0) -> Applied:
    """Apply to all, which must agree; the last one's answer."""
    for ledger in ledgers:
        applied = ledger.apply(ledger.applied_index + 1, 1, entry_of(*commands, now_ms=now_ms))
    assert len({ledger.digest for ledger in ledgers}) == 1
    assert len({ledger.full_digest() for ledger in ledgers}) == 1
    return applied


def alarms(applied: Applied) -> list[str]:
    return [event.detail for event in applied.events if event.kind == TaskEvent.ALARM]


def test_a_bug_in_one_command_costs_only_that_command(tmp_path: Path) -> None:
    world = World()
    world.submit("t", sub("a"), sub("b"))
    world.work(slots=2)
    ledgers = damaged(tmp_path, world, "UPDATE subtask SET session=NULL WHERE id='a'")
    spec = TaskSpec(subtasks=[sub("a")])

    applied = apply_alike(
        ledgers,
        submit_command("t1", spec),
        complete_command(world.grants["a"], "1"),
        complete_command(world.grants["b"], "2"),
    )

    assert [outcome.reason for outcome in applied.outcomes] == [0, r.INTERNAL, 0]
    assert applied.outcomes[1].message == "a bug in this program; nothing was changed"
    assert len(applied.faults) == 1 and "has no holder" in applied.faults[0]
    info = ledgers[0].reader().task(b"t", with_subtasks=True)
    assert info is not None
    assert [s.state for s in info.subtasks] == [r.CLAIMED, r.SUCCEEDED]


def test_a_bug_in_a_timer_is_put_off_with_an_alarm_and_the_others_fire(tmp_path: Path) -> None:
    world = World()
    world.submit("t", sub("a", timeout_ms=500), sub("b", timeout_ms=500))
    world.work(slots=2)
    ledgers = damaged(tmp_path, world, "UPDATE subtask SET session=NULL WHERE id='a'")

    applied = apply_alike(ledgers, now_ms=500)

    assert alarms(applied) == [
        f"a bug in this program: a is put off for {limits.FAULT_PAUSE_MS} ms"
    ]
    info = ledgers[0].reader().task(b"t", with_subtasks=True)
    assert info is not None
    assert [s.state for s in info.subtasks] == [r.CLAIMED, r.BACKOFF]
    later_ms = 500 + limits.FAULT_PAUSE_MS
    assert alarms(apply_alike(ledgers, now_ms=later_ms - 1)) == []
    assert len(alarms(apply_alike(ledgers, now_ms=later_ms))) == 1


def test_a_bug_in_a_lease_is_put_off_and_the_others_end(tmp_path: Path) -> None:
    world = World()
    world.submit("t", sub("a"), sub("b"))
    world.work("w1")
    world.work("w2")
    ledgers = damaged(
        tmp_path, world, f"UPDATE subtask SET past='{'1' * 9}', class_id=99 WHERE id='a'"
    )

    applied = apply_alike(ledgers, now_ms=limits.LEASE_MS)

    assert [ref.session for ref in applied.revokes] == [b"w2"]
    assert len(alarms(applied)) == 1
    assert ledgers[0].next_due_ms() == limits.LEASE_MS + limits.FAULT_PAUSE_MS


def test_a_bug_in_a_deadline_is_put_off(tmp_path: Path) -> None:
    world = World()
    world.submit("t", sub("a"), deadline_ms=1000)
    world.submit("u", sub("b"), deadline_ms=1000)
    world.work()
    ledgers = damaged(tmp_path, world, "UPDATE subtask SET session=NULL WHERE id='a'")

    applied = apply_alike(ledgers, now_ms=1000)

    assert [e.task_id for e in applied.events if e.kind == TaskEvent.TASK_FAILED] == [b"u"]
    assert ledgers[0].next_due_ms() is not None
    assert alarms(applied) == [
        f"a bug in this program: task 1 is put off for {limits.FAULT_PAUSE_MS} ms"
    ]


def test_a_bug_in_granting_puts_that_subtask_off_and_grants_the_others(tmp_path: Path) -> None:
    world = World()
    world.submit("lost", sub("a"), sub("b"))
    world.submit("t", sub("c"))
    epoch = world.work(slots=0)
    ledgers = damaged(tmp_path, world, "DELETE FROM task WHERE seq=1")
    claim = world.claim_command("w", epoch, 9)

    applied = apply_alike(ledgers, claim)

    (grant,) = applied.grants
    assert grant.fence == 1
    assert len(alarms(applied)) == 2
    assert ledgers[0].reader().counts().ready_count == 0
    assert alarms(apply_alike(ledgers)) == []


def test_granting_gives_up_after_many_faults_and_goes_on_in_the_next_entry(tmp_path: Path) -> None:
    world = World()
    most = limits.FAULTS_PER_ENTRY_MAX
    world.submit("lost", *(sub(f"a{n}") for n in range(most + 1)))
    world.submit("t", sub("c"))
    epoch = world.work(slots=0)
    ledgers = damaged(tmp_path, world, "DELETE FROM task WHERE seq=1")

    applied = apply_alike(ledgers, world.claim_command("w", epoch, 9))

    assert (len(applied.grants), len(alarms(applied))) == (0, most)
    applied = apply_alike(ledgers)
    assert (len(applied.grants), len(alarms(applied))) == (1, 1)


def test_a_bug_in_granting_as_a_whole_grants_nothing_and_says_so(tmp_path: Path) -> None:
    world = World()
    world.submit("t", sub("a"))
    epoch = world.work(slots=0)
    ledgers = damaged(
        tmp_path,
        world,
        "CREATE TRIGGER broken BEFORE UPDATE ON subtask WHEN new.state IN (2, 4)"
        " BEGIN SELECT RAISE(ABORT, 'neither granted nor put off'); END",
    )
    offer = world.claim_command("w", epoch, 9)

    applied = apply_alike(ledgers, offer, submit_command("u", TaskSpec(subtasks=[sub("b")])))

    assert [outcome.reason for outcome in applied.outcomes] == [0, 0]
    assert alarms(applied) == ["a bug in this program: this entry grants nothing"]
    assert ledgers[0].reader().counts().ready_count == 2
    for ledger in ledgers:
        ledger.connection.execute("DROP TRIGGER broken")
    assert len(apply_alike(ledgers).grants) == 2


def test_a_full_disk_rolls_everything_back_and_the_same_entry_can_be_applied_later(
    tmp_path: Path,
) -> None:
    world = World(str(tmp_path / "ledger.db"))
    world.submit("t", sub("a"))
    ledger = world.ledger
    before = (ledger.full_digest(), ledger.digest, ledger.applied_index)
    (pages,) = ledger.connection.execute("PRAGMA page_count").fetchone()
    big = TaskSpec(subtasks=[sub(f"a{n}") for n in range(2000)])
    entry = entry_of(submit_command("big", big))

    ledger.connection.execute(f"PRAGMA max_page_count={pages}").fetchone()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        ledger.apply(ledger.applied_index + 1, 1, entry)

    assert (ledger.full_digest(), ledger.digest, ledger.applied_index) == before
    ledger.connection.execute("PRAGMA max_page_count=1000000").fetchone()
    applied = ledger.apply(ledger.applied_index + 1, 1, entry)
    assert applied.outcomes[0].reason == 0
    assert ledger.reader().counts().ready_count == 2001
    assert invariants.violations(ledger.connection) == []


def test_errors_that_may_differ_between_nodes_are_never_taken_for_bugs() -> None:
    for error in (
        sqlite3.OperationalError,
        sqlite3.DatabaseError,
        MemoryError,
        RecursionError,
        OSError,
        KeyboardInterrupt,
    ):
        assert not issubclass(error, DETERMINISTIC_ERRORS)
    assert issubclass(AssertionError, DETERMINISTIC_ERRORS)


def test_apply_asserts_nothing_that_a_flag_could_switch_off() -> None:
    found = [
        f"{path.name}:{node.lineno}"
        for path in sorted(Path(ledger_package.__path__[0]).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert)
    ]

    assert found == []


def test_an_entry_out_of_turn_stops_the_node() -> None:
    world = World()
    for index in (0, 2):
        with pytest.raises(AssertionError, match="after 0"):
            world.ledger.apply(index, 1, entry_of())
    assert world.ledger.applied_index == 0


def test_cancelling_a_task_with_a_fault_leaves_it_as_it_was(tmp_path: Path) -> None:
    world = World()
    world.submit("t", sub("a"), sub("b", "a"))
    world.work()
    ledgers = damaged(tmp_path, world, "UPDATE subtask SET session=NULL WHERE id='a'")
    before = ledgers[0].reader().task(b"t", with_subtasks=True)

    applied = apply_alike(ledgers, Command(cancel=Cancel(task_id=b"t")))

    assert [outcome.reason for outcome in applied.outcomes] == [r.INTERNAL]
    assert applied.events == [] and applied.revokes == []
    assert ledgers[0].reader().task(b"t", with_subtasks=True) == before

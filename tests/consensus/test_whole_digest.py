"""What is hashed before a copy is handed out: every value of every table, and no index need be."""

from __future__ import annotations

from pathlib import Path

import pytest

from consensus.copying import copy_ledger
from consensus.engine.disk import Disk
from consensus.errors import Damaged
from consensus.ledger import Ledger
from consensus.ledger.parts import _line, all_lines, parts
from consensus.scrub import whole_digest
from tests.consensus.test_scrub_ranges import _lose_an_entry, _reading, ledger

__all__ = ["ledger"]  # a fixture


def test_what_is_hashed_of_a_row_is_the_same_bytes_for_ever(ledger: Ledger) -> None:
    db = ledger.connection
    db.execute("INSERT INTO departed VALUES ('n9', 'höst:1', 7, -5)")
    db.execute("INSERT INTO class VALUES (77, '', x'00ff')")
    db.execute("UPDATE task SET due_ms=9223372036854775807, name='a|b%s' WHERE seq=3")
    db.execute("UPDATE task SET due_ms=NULL, name='' WHERE seq=4")
    reading = _reading(ledger)
    lines = b"".join(all_lines(reading))
    task = next(part for part in parts() if part.name == "task")
    [[due], [none]] = (
        reading.execute(f"SELECT {_line(task)} FROM task WHERE seq=?", (seq,)).fetchall()
        for seq in (3, 4)
    )
    reading.close()

    assert b"\0departed\0t6E39|t68C3B67374 3A31|7|-5\n".replace(b" ", b"") in lines
    assert b"\n77|t|b00FF\n" in lines
    at = [column.name for column in task.columns].index
    assert due[0].split(b"|")[at("due_ms")] == b"9223372036854775807"
    assert due[0].split(b"|")[at("name")] == b"t617C622573"
    assert none[0].split(b"|")[at("due_ms")] == b"-" and none[0].split(b"|")[at("name")] == b"t"
    assert due[0] + b"\n" in lines and none[0] + b"\n" in lines


def test_any_changed_value_of_any_table_changes_the_hash_of_all_rows(ledger: Ledger) -> None:
    reading = _reading(ledger)
    before = whole_digest(reading, may_go_on=lambda: True)
    reading.close()
    changes = 0
    for part in parts():
        count = ledger.connection.execute(f"SELECT count(*) FROM {part.source}").fetchone()[0]
        if part.is_index or not count:
            continue
        for column in part.columns:
            bent = f"{column.name} + 1" if column.kind == "INTEGER" else f"{column.name} || 'x'"
            if column.kind == "BLOB":
                bent = f"CAST({bent} AS BLOB)"
            where = " AND ".join(f"{key.name}=?" for key in part.key)
            keys = ", ".join(key.name for key in part.key)
            last = ledger.connection.execute(
                f"SELECT {keys} FROM {part.source} WHERE {column.name} IS NOT NULL "
                f"ORDER BY {keys} DESC LIMIT 1"
            ).fetchone()
            if last is None or column.name in ("one", "applied_index", "voter", "leaving"):
                continue
            ledger.connection.execute("SAVEPOINT bent")
            ledger.connection.execute(
                f"UPDATE OR IGNORE {part.name} SET {column.name}={bent} WHERE {where}", last
            )
            ledger.connection.text_factory = bytes
            changes += 1
            assert whole_digest(ledger.connection, may_go_on=lambda: True) != before, column
            ledger.connection.text_factory = str
            ledger.connection.execute("ROLLBACK TO bent")
            ledger.connection.execute("RELEASE bent")
    assert changes > 80


def test_no_copy_is_made_with_an_index_that_lost_an_entry(ledger: Ledger, tmp_path: Path) -> None:
    path = Path(ledger.connection.execute("PRAGMA database_list").fetchone()[2])
    assert copy_ledger(path, tmp_path, Disk()).index == ledger.applied_index
    _lose_an_entry(ledger.connection)

    with pytest.raises(Damaged, match="missing from index task_due"):
        copy_ledger(path, tmp_path, Disk())

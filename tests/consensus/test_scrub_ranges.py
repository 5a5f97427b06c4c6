"""The ranges of a scrub: every row of every table and index is read once, within the format's bounds."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Scrub, ScrubKey

from consensus.ledger import Ledger
from consensus.ledger.parts import (
    RANGE_BYTES_MAX,
    RANGE_ROWS_MAX,
    first_range,
    parts,
    read_range,
)
from consensus.scrub import open_at
from tests.ledger.world import World, sub


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    world = World(str(tmp_path / "ledger.db"))
    world.work(slots=3)
    for number in range(20):
        world.submit(f"t{number}", sub("a"), sub("b", "a"))
    world.complete("a")
    return world.ledger


def _reading(ledger: Ledger) -> sqlite3.Connection:
    path = ledger.connection.execute("PRAGMA database_list").fetchone()[2]
    return open_at(Path(path), ledger.applied_index)


def _digests(ledger: Ledger, rows_max: int, bytes_max: int = 1 << 20) -> list[bytes]:
    reading = _reading(ledger)
    scrub: Scrub | None = first_range(rows_max=rows_max, bytes_max=bytes_max)
    found = []
    while scrub is not None:
        read = read_range(reading, scrub)
        assert read.row_count <= rows_max
        found.append(read.digest)
        scrub = read.following
    reading.close()
    return found


def test_every_table_and_every_index_is_a_part(ledger: Ledger) -> None:
    names = ledger.connection.execute(
        "SELECT name FROM sqlite_schema WHERE type IN ('table', 'index')"
    ).fetchall()
    without_rowid = {"sqlite_autoindex_member_1", "sqlite_autoindex_token_1"}
    without_rowid |= {"sqlite_autoindex_session_1", "sqlite_autoindex_task_event_1"}

    assert {part.name for part in parts()} == {name for (name,) in names} - without_rowid


def test_ranges_of_any_size_read_every_row_once(ledger: Ledger) -> None:
    reading = _reading(ledger)
    counts = []
    for rows_max, bytes_max in ((1, 1 << 20), (7, 1 << 20), (5_000, 1 << 20), (5_000, 500)):
        scrub: Scrub | None = first_range(rows_max=rows_max, bytes_max=bytes_max)
        counts.append(0)
        while scrub is not None:
            read = read_range(reading, scrub)
            counts[-1] += read.row_count
            scrub = read.following
    reading.close()

    everything = 0
    for part in parts():
        where = f" WHERE {part.where}" if part.where else ""
        query = f"SELECT count(*) FROM {part.source}{where}"
        everything += ledger.connection.execute(query).fetchone()[0]
    assert counts == [everything] * 4


@pytest.mark.parametrize("rows_max", [3, 5_000])
def test_any_changed_value_changes_the_hash_of_its_range(ledger: Ledger, rows_max: int) -> None:
    before = _digests(ledger, rows_max)
    changes = [
        "UPDATE subtask SET attempt = attempt + 1 WHERE ref = (SELECT max(ref) FROM subtask)",
        "UPDATE task SET name = 'x' WHERE seq = 7",
        "UPDATE output SET data = CAST('\"ouT\"' AS BLOB)",
        "UPDATE subtask SET label = '' WHERE ref = (SELECT min(ref) FROM subtask)",
        "DELETE FROM task_event WHERE seq = 3",
        "UPDATE session SET profile = CAST('a' AS BLOB)",
    ]

    for change in changes:
        ledger.connection.execute("BEGIN")
        assert ledger.connection.execute(change).rowcount > 0
        ledger.connection.execute("COMMIT")
        after = _digests(ledger, rows_max)
        assert after != before, change
        before = after


def _lose_an_entry(db: sqlite3.Connection) -> None:
    """An index that knows less than its table: rebuilt while a row was not due, then told nothing."""
    definition = db.execute("SELECT sql FROM sqlite_schema WHERE name='task_due'").fetchone()[0]
    db.execute("UPDATE task SET due_ms = due_ms + 1 WHERE seq = 5")
    db.execute("DROP INDEX task_due")
    db.execute(definition.replace("IS NOT NULL", "IS NOT NULL AND seq != 5"))
    db.execute("UPDATE task SET due_ms = due_ms - 1 WHERE seq = 5")
    db.execute("PRAGMA writable_schema=ON")
    db.execute("UPDATE sqlite_schema SET sql=? WHERE name='task_due'", (definition,))
    db.execute("PRAGMA writable_schema=OFF")


def test_an_index_that_lost_an_entry_changes_the_hash(ledger: Ledger) -> None:
    before, db = _digests(ledger, 5_000), ledger.connection
    rows = db.execute("SELECT * FROM task ORDER BY seq").fetchall()

    _lose_an_entry(db)

    assert db.execute("SELECT * FROM task ORDER BY seq").fetchall() == rows
    assert _digests(ledger, 5_000) != before


def test_a_scrub_that_makes_no_sense_is_an_error_of_sqlite_or_reads_nothing(ledger: Ledger) -> None:
    reading = _reading(ledger)

    assert read_range(reading, Scrub(part=999, rows_max=5)).row_count == 0
    with pytest.raises(sqlite3.Error):
        read_range(reading, Scrub(part=0, rows_max=5, after=[ScrubKey(number=1)] * 3))
    assert read_range(reading, Scrub(rows_max=1 << 30, bytes_max=1 << 60)).row_count <= 5_000
    reading.close()


def _part_number(name: str) -> int:
    return [part.name for part in parts()].index(name)


def _fill(ledger: Ledger, count: int, *, address_bytes: int) -> None:
    rows = ((f"r{number:05}", "a" * address_bytes, 100, 10) for number in range(count))
    ledger.connection.executemany("INSERT INTO departed VALUES (?,?,?,?)", rows)


@pytest.mark.parametrize("rows_max", [0, RANGE_ROWS_MAX, RANGE_ROWS_MAX + 1, (1 << 32) - 1])
def test_no_scrub_reads_more_rows_in_one_range_than_the_format_allows(
    ledger: Ledger, rows_max: int
) -> None:
    _fill(ledger, RANGE_ROWS_MAX + 1, address_bytes=1)
    reading = _reading(ledger)

    read = read_range(reading, Scrub(part=_part_number("departed"), rows_max=rows_max))
    one = read_range(reading, Scrub(part=_part_number("departed"), rows_max=1))
    reading.close()

    assert (read.row_count, one.row_count) == (RANGE_ROWS_MAX, 1)
    assert read.following is not None
    last = f"r{RANGE_ROWS_MAX - 1:05}".encode()
    assert [key.data for key in read.following.after] == [last]


@pytest.mark.parametrize("bytes_max", [0, RANGE_BYTES_MAX, RANGE_BYTES_MAX + 1, (1 << 64) - 1])
def test_no_scrub_hashes_more_bytes_in_one_range_than_the_format_allows(
    ledger: Ledger, bytes_max: int
) -> None:
    # A row's line is its values as t and hex digits, with bars between: four fill a range exactly.
    others_bytes = len("t" + 12 * "f" + "|" + "t" + "|100|10")
    _fill(ledger, 6, address_bytes=((1 << 20) - others_bytes) // 2)
    reading = _reading(ledger)

    read = read_range(reading, Scrub(part=_part_number("departed"), bytes_max=bytes_max))
    one = read_range(reading, Scrub(part=_part_number("departed"), bytes_max=1))
    less = read_range(
        reading, Scrub(part=_part_number("departed"), bytes_max=RANGE_BYTES_MAX - (1 << 20))
    )
    reading.close()

    assert (read.row_count, less.row_count, one.row_count) == (4, 3, 1)

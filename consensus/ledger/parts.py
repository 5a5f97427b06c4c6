"""The ledger in ranges: every table and every index, read a piece at a time, each piece as one hash.

Reading the indexes as well as the tables finds an index that has lost what its table still holds.
It changes nothing, and trusts nothing of what it reads but the order of the parts, which comes from
schema.sql.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from importlib.resources import files

from quorumesh.v1.ledger_pb2 import Scrub, ScrubKey

Key = tuple[int | bytes | None, ...]

# Invariant: the same on every node for ever, since all hash what one Scrub entry names. Another
# bound is another apply_version.
RANGE_ROWS_MAX = 5_000
RANGE_BYTES_MAX = 4 << 20  # as hashed; the row that reaches it is the range's last

BLOCK_ROWS_MAX = 256
BLOCK_BYTES_MAX = 256 << 10  # and one row


@dataclass(frozen=True, slots=True)
class Column:
    """One column as a range reads it."""

    name: str
    kind: str  # INTEGER, TEXT or BLOB


@dataclass(frozen=True, slots=True)
class Part:
    """A table, or one index of it: what is read and in which order."""

    name: str
    source: str  # what follows FROM
    where: str  # of a partial index; empty: all rows
    columns: tuple[Column, ...]
    key: tuple[Column, ...]  # what its rows are ordered by, without doubles
    is_index: bool


@dataclass(frozen=True, slots=True)
class Range:
    """What was read: its hash, how many rows, and from where to read on (None: all was read)."""

    digest: bytes
    row_count: int
    following: Scrub | None


def first_range(*, rows_max: int = RANGE_ROWS_MAX, bytes_max: int = RANGE_BYTES_MAX) -> Scrub:
    """Where a round over the whole ledger begins."""
    return Scrub(part=0, rows_max=rows_max, bytes_max=bytes_max)


def read_range(db: sqlite3.Connection, scrub: Scrub) -> Range:
    """Hash the rows that a Scrub names. `db` must give text as bytes; raises what SQLite raises.

    A range goes on over several parts until it has rows_max rows or bytes_max bytes. More than
    RANGE_ROWS_MAX or RANGE_BYTES_MAX, and 0, stand for these.
    """
    chain = blake2b(digest_size=32)
    rows_max = min(scrub.rows_max or RANGE_ROWS_MAX, RANGE_ROWS_MAX)
    bytes_left = min(scrub.bytes_max or RANGE_BYTES_MAX, RANGE_BYTES_MAX)
    row_count = 0
    after: Key | None = _unpacked(scrub.after) if scrub.after else None
    for number in range(scrub.part, len(parts())):
        part = parts()[number]
        chain.update(b"\0%s\0" % part.name.encode())
        for *key, line in db.execute(*_query(part, after, rows_max - row_count)):
            chain.update(line)
            chain.update(b"\n")
            row_count += 1
            bytes_left -= len(line)
            if row_count >= rows_max or bytes_left <= 0:
                following = Scrub(
                    part=number,
                    after=_packed(key),
                    rows_max=scrub.rows_max,
                    bytes_max=scrub.bytes_max,
                )
                return Range(chain.digest(), row_count, following)
        after = None
    return Range(chain.digest(), row_count, None)


def all_lines(db: sqlite3.Connection) -> Iterator[bytes]:
    """Every row of every table, some rows at a time. `db` must give text as bytes.

    Invariant: put together they are the same bytes for ever: all nodes hash what one Scrub entry
    names. Indexes are left out: `PRAGMA integrity_check` holds each of them against its table.
    """
    for part in parts():
        if part.is_index:
            continue
        yield b"\0%s\0" % part.name.encode()
        keys = ", ".join(column.name for column in part.key)
        lines, bytes_count = [], 0
        # Row by row: at each the loop's thread comes first, while SQLite could go on beside it for
        # long (put together there, rows take as much of the processor, and the loop waits for it).
        for (line,) in db.execute(f"SELECT {_line(part)} FROM {part.source} ORDER BY {keys}"):
            lines.append(line)
            bytes_count += len(line)
            if len(lines) >= BLOCK_ROWS_MAX or bytes_count >= BLOCK_BYTES_MAX:
                yield b"\n".join((*lines, b""))
                lines, bytes_count = [], 0
        yield b"\n".join((*lines, b""))


def foreign_schema(db: sqlite3.Connection) -> str:
    """Which table or index is not what schema.sql makes it; empty when all are.

    A bit flipped in their definitions leaves the file's structure whole: SQLite only says of a
    statement that it makes no sense, as it would of one of ours that has a bug.
    """
    found = _definitions(db)
    for name, definition in _own_definitions().items():
        if found.get(name) != definition:
            return name
    return ""


@cache
def _own_definitions() -> dict[str, str]:
    with closing(_in_memory()) as db:
        return _definitions(db)


def _definitions(db: sqlite3.Connection) -> dict[str, str]:
    """Name to definition, without the comments and the way it is laid out."""
    found = {}
    for row in db.execute("SELECT name, type, tbl_name, sql FROM sqlite_schema ORDER BY name"):
        name, *told = (_text(value) for value in row)
        found[name] = " ".join(re.sub(r"--[^\n]*", "", " ".join(told)).split())
    return found


def _text(value: str | bytes | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _in_memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.executescript(files("consensus.ledger").joinpath("schema.sql").read_text("utf-8"))
    return db


@cache
def parts() -> tuple[Part, ...]:
    """All tables by name, then all indexes by name, as schema.sql has them."""
    with closing(_in_memory()) as db:
        query = "SELECT name FROM sqlite_schema WHERE type='table' ORDER BY name"
        tables = [_table(db, name) for (name,) in db.execute(query).fetchall()]
        indexes = [index for table in tables for index in _indexes(db, table)]
        return (*tables, *sorted(indexes, key=lambda index: index.name))


def _table(db: sqlite3.Connection, name: str) -> Part:
    rows = db.execute(f"SELECT name, type, pk FROM pragma_table_info('{name}') ORDER BY cid")
    found = [(Column(column, kind), pk) for column, kind, pk in rows]
    key = sorted(((pk, column) for column, pk in found if pk), key=lambda each: each[0])
    return Part(
        name=name,
        source=f"{name} NOT INDEXED",
        where="",
        columns=tuple(column for column, _ in found),
        key=tuple(column for _, column in key),
        is_index=False,
    )


def _indexes(db: sqlite3.Connection, table: Part) -> list[Part]:
    """The index that is a WITHOUT ROWID table itself is left out: it is read as the table."""
    found = []
    for (name,) in db.execute(
        f"SELECT name FROM pragma_index_list('{table.name}') WHERE origin != 'pk' ORDER BY name"
    ).fetchall():
        named = [
            column
            for (column,) in db.execute(
                f"SELECT name FROM pragma_index_info('{name}') ORDER BY seqno"
            )
        ]
        by_name = {column.name: column for column in table.columns}
        key = [by_name[column] for column in named]
        key.extend(column for column in table.key if column.name not in named)
        (sql,) = db.execute("SELECT sql FROM sqlite_schema WHERE name=?", (name,)).fetchone()
        found.append(
            Part(
                name=name,
                source=f"{table.name} INDEXED BY {name}",
                where=(sql or "").partition(" WHERE ")[2],
                columns=tuple(key),
                key=tuple(key),
                is_index=True,
            )
        )
    return found


def _query(part: Part, after: Key | None, rows_max: int) -> tuple[str, Key]:
    keys = ", ".join(column.name for column in part.key)
    conditions = [part.where] if part.where else []
    bound: Key = ()
    if after is not None:
        marks = ", ".join(
            "CAST(? AS TEXT)" if column.kind == "TEXT" else "?" for column in part.key
        )
        conditions.append(f"({keys}) > ({marks})")
        bound = after
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    query = f"SELECT {keys}, {_line(part)} FROM {part.source}{where} ORDER BY {keys} LIMIT ?"
    return query, (*bound, rows_max)


def _line(part: Part) -> str:
    """One row as bytes. Made by SQLite, not here: a round must not hold up the loop's thread.

    Invariant: the same bytes for ever. printf makes them in half the time of as many `||`.
    """
    form = "|".join("%s" for _ in part.columns)
    return f"CAST(printf('{form}',{','.join(map(_as_text, part.columns))}) AS BLOB)"


def _as_text(column: Column) -> str:
    if column.kind == "INTEGER":
        return f"ifnull({column.name},'-')"
    # One flipped bit turns a blob into a text of the same bytes.
    name = column.name
    return f"iif({name} IS NULL,'-',substr(typeof({name}),1,1)||hex({name}))"


def _packed(key: Sequence[int | bytes | None]) -> list[ScrubKey]:
    packed = []
    for value in key:
        match value:
            case None:
                packed.append(ScrubKey())
            case int():
                packed.append(ScrubKey(number=value))
            case _:
                packed.append(ScrubKey(data=bytes(value)))
    return packed


def _unpacked(key: Sequence[ScrubKey]) -> Key:
    values: list[int | bytes | None] = []
    for one in key:
        match one.WhichOneof("kind"):
            case "number":
                values.append(one.number)
            case "data":
                values.append(one.data)
            case _:
                values.append(None)
    return tuple(values)

"""All tables of a ledger, in order, as one hash."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

TABLES = {
    "ledger": "one",
    "member": "node_id",
    "departed": "node_id",
    "token": "token_id",
    "class": "class_id",
    "session": "session",
    "task": "seq",
    "subtask": "ref",
    "input": "ref",
    "output": "ref",
    "edge": "ref",
    "ballot": "ref",
    "event": "revision",
    "task_event": "seq, revision",
}


def hash_tables(db: sqlite3.Connection) -> bytes:
    """A hash over every row of every table, each in the order of its key."""
    chain = blake2b(digest_size=32)
    for table, key in TABLES.items():
        chain.update(f"\0{table}\0".encode())
        for row in db.execute(f"SELECT * FROM {table} ORDER BY {key}"):
            for value in row:
                _add(chain, value)
    return chain.digest()


def _add(chain: blake2b, value: int | str | bytes | None) -> None:
    match value:
        case None:
            chain.update(b"n")
        case int():
            chain.update(b"i%d;" % value)
        case str():
            data = value.encode()
            chain.update(b"t%d:" % len(data))
            chain.update(data)
        case _:
            chain.update(b"b%d:" % len(value))
            chain.update(value)

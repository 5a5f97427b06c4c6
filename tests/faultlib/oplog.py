"""Reading the log that the library writes: what was done to the files below a folder, in order."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

HEAD = struct.Struct("<QQQQqII")


class LogIncomplete(AssertionError):
    """The log does not tell all that happened to the folder: nothing can be said from it."""


class Kind(IntEnum):
    """`enum kind` of faultlib.h."""

    WRITE = 1
    TRUNCATE = 2
    SYNC = 3
    SYNC_FAILED = 4
    SYNC_FOLDER = 5
    CREATE = 6
    NAMED = 7
    RENAME = 8
    UNLINK = 9
    MKDIR = 10
    RMDIR = 11
    LINK = 12
    VOID = 13
    UNSEEN = 14


@dataclass(frozen=True, slots=True)
class Record:
    """One record; which fields mean what is told in faultlib.h."""

    kind: Kind
    ticket: int
    call: int
    file: int
    offset: int
    name: str
    data: bytes


def read(path: Path) -> list[Record]:
    """All records that came to pass. A record that was not written whole was not acted upon."""
    data = path.read_bytes() if path.exists() else b""
    records: list[Record] = []
    voided: set[int] = set()
    at = 0
    while at + HEAD.size <= len(data):
        kind, ticket, call, file, offset, name_bytes, data_bytes = HEAD.unpack_from(data, at)
        body, end = at + HEAD.size, at + HEAD.size + name_bytes + data_bytes
        if end > len(data):
            break
        record = Record(
            kind=Kind(kind),
            ticket=ticket,
            call=call,
            file=file,
            offset=offset,
            name=data[body : body + name_bytes].decode("utf-8", "surrogateescape"),
            data=data[body + name_bytes : end],
        )
        if record.kind is Kind.VOID:
            voided.add(record.offset)
        elif record.kind is Kind.UNSEEN:
            raise LogIncomplete(f"{record.name} did what the log cannot tell")
        else:
            records.append(record)
        at = end
    return [record for record in records if record.ticket not in voided]

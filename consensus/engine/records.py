"""Framing of the journal: length, CRC-32 and kind before each body.

    record := length u32 | crc u32 (over kind and body) | kind u8 | body

Kinds of record, all little endian:
    SEGMENT  sequence u64, base index u64, base term u64, fresh u8 (1: earlier segments are void)
    ENTRY    index u64, term u64, command
    GROUP    sequence u64, offset u64: everything before this position had been synced when this was
             written; it is the last record before each sync
    CUT      index u64: entries from this index on are withdrawn
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

FRAME = struct.Struct("<IIB")
SEGMENT_BODY = struct.Struct("<QQQB")
ENTRY_HEAD = struct.Struct("<QQ")
GROUP_BODY = struct.Struct("<QQ")
CUT_BODY = struct.Struct("<Q")
RECORD_BYTES_MAX = (1 << 20) + 64
GROUP_RECORD_BYTES = FRAME.size + GROUP_BODY.size


class Kind(IntEnum):
    SEGMENT = 1
    ENTRY = 2
    GROUP = 3
    CUT = 4


@dataclass(frozen=True, slots=True)
class Record:
    """One intact record; `end` is the offset after it."""

    kind: Kind
    body: bytes
    end: int


def encode(kind: Kind, body: bytes) -> bytes:
    """Frame one record."""
    return FRAME.pack(len(body), zlib.crc32(body, kind), kind) + body


def record_at(data: bytes, offset: int) -> Record | None:
    """The record at this offset, or None when there is no intact one."""
    if offset + FRAME.size > len(data):
        return None
    length, crc, kind = FRAME.unpack_from(data, offset)
    end = offset + FRAME.size + length
    if length > RECORD_BYTES_MAX or end > len(data) or not Kind.SEGMENT <= kind <= Kind.CUT:
        return None
    body = data[offset + FRAME.size : end]
    if zlib.crc32(body, kind) != crc:
        return None
    return Record(Kind(kind), body, end)


def intact_prefix(data: bytes) -> Iterator[Record]:
    """Records from the beginning up to the first one that is not intact."""
    offset = 0
    while (record := record_at(data, offset)) is not None:
        yield record
        offset = record.end


def groups_anywhere(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Positions named by every intact GROUP record from `start` on, wherever it lies.

    Bytes that look like one inside a command would need its CRC as well; the search is only made
    when something is damaged.
    """
    needle = struct.pack("<I", GROUP_BODY.size)
    offset = data.find(needle, start)
    while offset >= 0:
        record = record_at(data, offset)
        if record is not None and record.kind is Kind.GROUP:
            sequence, named = GROUP_BODY.unpack(record.body)
            yield sequence, named
        offset = data.find(needle, offset + 1)

"""Framing of the journal: length, CRC-32 and kind before each body.

    record := length u32 | crc u32 (over kind and body) | kind u8 | body

Kinds of record, all little endian:
    SEGMENT  sequence u64, base index u64, base term u64, origin u8, follows u64, follows_bytes u64:
             the first record of each file, and which file it goes on from, where that one ends
    ENTRY    index u64, term u64, command, kept apart so that it cannot look like a GROUP record
    GROUP    sequence u64, offset u64: everything before this position had been synced when this was
             written; it is the last record before each sync
             In a file that appeared whole, by rename, the first one names itself.
    CUT      index u64: entries from this index on are withdrawn
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

FRAME = struct.Struct("<IIB")
SEGMENT_BODY = struct.Struct("<QQQBQQ")
ENTRY_HEAD = struct.Struct("<QQ")
GROUP_BODY = struct.Struct("<QQ")
CUT_BODY = struct.Struct("<Q")
COMMAND_BYTES_MAX = 1 << 20
GROUP_RECORD_BYTES = FRAME.size + GROUP_BODY.size
GROUP_LENGTH = struct.pack("<I", GROUP_BODY.size)
# A GROUP record begins with its length. No command may hold that, or who submits a task could write
# one, and a crash in the middle of it would make a sound journal look damaged.
_LOOKS_LIKE_ONE, _KEPT_APART = GROUP_LENGTH[:3], GROUP_LENGTH[:3] + b"\xff"
RECORD_BYTES_MAX = ENTRY_HEAD.size + COMMAND_BYTES_MAX * len(_KEPT_APART) // len(_LOOKS_LIKE_ONE)


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


class Origin(IntEnum):
    """How a segment came to be, and what it makes void."""

    ROLLED = 0  # the one before had grown large: nothing
    FRESH = 1  # the journal began anew: every earlier segment
    RENEWED = 2  # what nothing proved synced was written again: those after the one it follows


@dataclass(frozen=True, slots=True)
class Head:
    """The first record of a segment."""

    sequence: int
    base_index: int
    base_term: int
    origin: Origin = Origin.ROLLED
    follows: int = 0
    follows_bytes: int = 0

    def body(self) -> bytes:
        return SEGMENT_BODY.pack(
            self.sequence,
            self.base_index,
            self.base_term,
            self.origin,
            self.follows,
            self.follows_bytes,
        )


def head_in(record: Record) -> Head | None:
    """The head that a record holds; None when it is none that this program writes."""
    if record.kind is not Kind.SEGMENT:
        return None
    sequence, index, term, origin, follows, follows_bytes = SEGMENT_BODY.unpack(record.body)
    if origin > Origin.RENEWED:
        return None
    return Head(sequence, index, term, Origin(origin), follows, follows_bytes)


def encode(kind: Kind, body: bytes) -> bytes:
    """Frame one record."""
    return FRAME.pack(len(body), zlib.crc32(body, kind), kind) + body


def entry_body(index: int, term: int, command: bytes) -> bytes:
    """The body of an ENTRY record."""
    return ENTRY_HEAD.pack(index, term) + command.replace(_LOOKS_LIKE_ONE, _KEPT_APART)


def entry_in(body: bytes) -> tuple[bytes, int, int]:
    """Command, index and term that the body of an ENTRY record holds."""
    index, term = ENTRY_HEAD.unpack_from(body)
    return body[ENTRY_HEAD.size :].replace(_KEPT_APART, _LOOKS_LIKE_ONE), index, term


def record_at(data: bytes, offset: int) -> Record | None:
    """The record at this offset, or None when there is no intact one."""
    if offset + FRAME.size > len(data):
        return None
    length, crc, kind = FRAME.unpack_from(data, offset)
    end = offset + FRAME.size + length
    if end > len(data) or not _is_shaped(kind, length):
        return None
    body = data[offset + FRAME.size : end]
    if zlib.crc32(body, kind) != crc:
        return None
    return Record(Kind(kind), body, end)


def _is_shaped(kind: int, length_bytes: int) -> bool:
    match kind:
        case Kind.SEGMENT:
            return length_bytes == SEGMENT_BODY.size
        case Kind.ENTRY:
            return ENTRY_HEAD.size < length_bytes <= RECORD_BYTES_MAX
        case Kind.GROUP:
            return length_bytes == GROUP_BODY.size
        case Kind.CUT:
            return length_bytes == CUT_BODY.size
        case _:
            return False


def intact_prefix(data: bytes) -> Iterator[Record]:
    """Records from the beginning up to the first one that is not intact."""
    offset = 0
    while (record := record_at(data, offset)) is not None:
        yield record
        offset = record.end


def groups_anywhere(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Positions named by every intact GROUP record from `start` on, wherever it lies.

    No command holds the bytes that one begins with; the search is only made when something is
    damaged or torn.
    """
    offset = data.find(GROUP_LENGTH, start)
    while offset >= 0:
        record = record_at(data, offset)
        if record is not None and record.kind is Kind.GROUP:
            sequence, named = GROUP_BODY.unpack(record.body)
            yield sequence, named
        offset = data.find(GROUP_LENGTH, offset + 1)

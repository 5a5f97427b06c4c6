"""Reading a journal back: what is intact, what may be cut, and what must stop the node."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.engine.records import (
    CUT_BODY,
    ENTRY_HEAD,
    GROUP_BODY,
    SEGMENT_BODY,
    Kind,
    Record,
    groups_anywhere,
    intact_prefix,
)
from consensus.errors import Damaged

NO_CUT = 1 << 63
SUFFIX = ".journal"


@dataclass(slots=True)
class Segment:
    """One file. `cut_index` is the lowest index that a CUT record in it withdrew."""

    sequence: int
    base_index: int
    last_index: int
    bytes_used: int
    cut_index: int = NO_CUT


@dataclass(slots=True)
class Opened:
    """What a folder held."""

    segments: list[Segment] = field(default_factory=list)
    rows: list[tuple[bytes, int, int]] = field(default_factory=lambda: [(b"\x01", 0, 0)])


@dataclass(frozen=True, slots=True)
class Found:
    """One segment file as read: its intact records and whether bytes follow them."""

    sequence: int
    data: bytes
    records: list[Record]
    intact_bytes: int


def segment_name(sequence: int) -> str:
    return f"{sequence:012d}{SUFFIX}"


def open_segments(folder: Path, disk: Disk) -> Opened:
    """Read all segments, cut what nothing proves was synced, rebuild the rows. Raises Damaged."""
    found = [_read(folder, name, disk) for name in disk.names(folder) if name.endswith(SUFFIX)]
    found = _from_last_fresh(found, folder, disk)
    opened = Opened()
    proven = _proven_position(found)
    for at, segment in enumerate(found):
        broken = segment.intact_bytes < len(segment.data) or not segment.records
        missing = at > 0 and segment.sequence != found[at - 1].sequence + 1
        if missing:
            raise Damaged(f"journal segment {segment_name(segment.sequence - 1)} is missing")
        if broken and proven > (segment.sequence, segment.intact_bytes):
            raise Damaged(
                f"journal segment {segment_name(segment.sequence)} is damaged at byte "
                f"{segment.intact_bytes}, before {proven}, which had been synced"
            )
        if segment.records:
            _replay(segment, opened)
        if broken:
            _cut(found[at:], folder, disk)
            break
    if proven and opened.segments:
        last = opened.segments[-1]
        if proven > (last.sequence, last.bytes_used):
            raise Damaged(f"the journal ends before {proven}, which had been synced")
    return opened


def _read(folder: Path, name: str, disk: Disk) -> Found:
    data = disk.read(folder / name)
    records = list(intact_prefix(data))
    sequence = int(name.removesuffix(SUFFIX))
    if records and records[0].kind is not Kind.SEGMENT:
        raise Damaged(f"journal segment {name} does not begin with its head")
    return Found(sequence, data, records, records[-1].end if records else 0)


def _from_last_fresh(found: list[Found], folder: Path, disk: Disk) -> list[Found]:
    """A fresh segment voids the earlier ones; a crash may have left them behind."""
    for at in range(len(found) - 1, -1, -1):
        records = found[at].records
        if records and SEGMENT_BODY.unpack(records[0].body)[3]:
            for old in found[:at]:
                disk.remove(folder / segment_name(old.sequence))
            return found[at:]
    return found


def _proven_position(found: list[Found]) -> tuple[int, int]:
    """The last position that an intact GROUP record, even beyond damage, proves was synced."""
    proven = (0, 0)
    for segment in found:
        for record in segment.records:
            if record.kind is Kind.GROUP:
                sequence, offset = GROUP_BODY.unpack(record.body)
                proven = max(proven, (sequence, offset))
        for position in groups_anywhere(segment.data, segment.intact_bytes):
            proven = max(proven, position)
    return proven


def _replay(segment: Found, opened: Opened) -> None:
    sequence, base_index, base_term, _ = SEGMENT_BODY.unpack(segment.records[0].body)
    if not opened.segments:
        opened.rows = [(b"\x01", base_index, base_term)]
    rows = opened.rows
    if sequence != segment.sequence or (rows[-1][1], rows[-1][2]) != (base_index, base_term):
        raise Damaged(f"journal segment {segment_name(segment.sequence)} does not follow the last")
    state = Segment(sequence, base_index, base_index, segment.intact_bytes)
    for record in segment.records[1:]:
        if record.kind is Kind.ENTRY:
            index, term = ENTRY_HEAD.unpack_from(record.body)
            if index != rows[-1][1] + 1:
                raise Damaged(f"journal entry {index} follows {rows[-1][1]}")
            rows.append((record.body[ENTRY_HEAD.size :], index, term))
            state.last_index = max(state.last_index, index)
        elif record.kind is Kind.CUT:
            (index,) = CUT_BODY.unpack(record.body)
            if index <= rows[0][1]:
                raise Damaged(f"the journal withdraws entry {index}, before its base")
            del rows[index - rows[0][1] :]
            state.cut_index = min(state.cut_index, index)
    opened.segments.append(state)


def _cut(broken: list[Found], folder: Path, disk: Disk) -> None:
    """Remove what follows the last intact record, later files first."""
    for segment in reversed(broken[1:]):
        disk.remove(folder / segment_name(segment.sequence))
    first = broken[0]
    path = folder / segment_name(first.sequence)
    if first.records:
        disk.truncate(path, first.intact_bytes)
    else:
        disk.remove(path)
    disk.sync_folder(folder)

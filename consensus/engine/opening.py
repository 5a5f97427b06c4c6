"""Reading a journal back: what is intact, what is proven, and what must stop the node.

It only reads. What nothing proves to have been synced is for the journal to write anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.engine.records import (
    CUT_BODY,
    GROUP_BODY,
    GROUP_RECORD_BYTES,
    Head,
    Kind,
    Origin,
    entry_in,
    groups_anywhere,
    head_in,
    intact_prefix,
    record_at,
)
from consensus.errors import Damaged

NO_CUT = 1 << 63
SUFFIX = ".journal"
NO_OP_COMMAND = b"\x01"

Row = tuple[bytes, int, int]  # command, index, term
Position = tuple[int, int]  # sequence of a segment, offset in it
# Kind, body and end of a record: nothing that Python's collector of garbage would look at again and
# again while a long journal is read beside a loop that should not wait for it.
Plain = tuple[int, bytes, int]


@dataclass(slots=True)
class Segment:
    """One file. `cut_index` is the lowest index that a CUT record in it withdrew."""

    sequence: int
    base_index: int
    base_term: int
    last_index: int
    bytes_used: int
    cut_index: int = NO_CUT


@dataclass(slots=True)
class Opened:
    """What a folder holds."""

    segments: list[Segment] = field(default_factory=list)
    rows: list[Row] = field(default_factory=lambda: [(NO_OP_COMMAND, 0, 0)])
    proven: Position = (0, 0)  # everything before it had surely been synced
    proven_index: int = 0  # the last entry as of there
    torn_bytes: int = 0  # behind the last intact record
    next_sequence: int = 1  # of the next file; higher than any that is there
    leftovers: list[str] = field(default_factory=list)  # files that do not count any more
    is_whole: bool = True  # nothing had to be left out at the end

    @property
    def proven_count(self) -> int:
        """How many segments, from the first, are proven to their ends and may be written after."""
        count = sum((s.sequence, s.bytes_used) <= self.proven for s in self.segments)
        return count if self.is_whole else min(count, len(self.segments) - 1)


@dataclass(frozen=True, slots=True)
class Found:
    """One segment file as read. `named` is the furthest position that a GROUP in it names."""

    name: str
    sequence: int
    bytes_total: int
    head: Head | None
    records: list[Plain]  # the intact ones after the head, until they were replayed
    intact_bytes: int
    named: Position


def segment_name(sequence: int) -> str:
    return f"{sequence:012d}{SUFFIX}"


def read_journal(folder: Path, disk: Disk) -> Opened:
    """Read all segments and rebuild the rows. Raises Damaged; changes nothing."""
    names = [name for name in disk.names(folder) if name.endswith(SUFFIX)]
    found = sorted((_read(folder, name, disk) for name in names), key=lambda one: one.sequence)
    opened = Opened(next_sequence=found[-1].sequence + 1 if found else 1)
    chain = _chain(found)
    opened.proven = max((one.named for one in chain), default=(0, 0))
    for at, one in enumerate(chain):
        follower = chain[at + 1].head if at + 1 < len(chain) else None
        ends_at = follower.follows_bytes if follower is not None else one.bytes_total
        is_torn = one.head is None or one.intact_bytes < max(one.bytes_total, ends_at)
        if is_torn and opened.proven > (one.sequence, one.intact_bytes):
            raise Damaged(
                f"journal segment {one.name} is damaged at byte {one.intact_bytes}; all before "
                f"{_place(opened.proven)} had been synced"
            )
        if follower is not None and follower.follows and one.intact_bytes > ends_at:
            raise Damaged(f"journal segment {one.name} goes on behind {ends_at}, where it ended")
        if one.head is not None and not _replay(one, one.head, opened):
            if is_torn or follower is None:
                raise Damaged(f"journal segment {one.name} withdraws entries before its base")
            # Segments went one by one, and the last drop was cut short: it begins behind this one.
            opened.segments.clear()
            continue
        if is_torn:
            opened.is_whole = False
            opened.torn_bytes = sum(rest.bytes_total for rest in chain[at:]) - one.intact_bytes
            break
    _check_end(opened, found)
    held = {segment.sequence for segment in opened.segments}
    opened.leftovers = [one.name for one in found if one.sequence not in held]
    return opened


def _read(folder: Path, name: str, disk: Disk) -> Found:
    digits = name.removesuffix(SUFFIX)
    if not (digits.isascii() and digits.isdecimal() and segment_name(int(digits)) == name):
        raise Damaged(f"{folder / name} is not a journal segment's name")
    data, sequence = disk.read(folder / name), int(digits)
    first = record_at(data, 0)
    head = head_in(first) if first is not None else None
    if first is not None and (head is None or head.sequence != sequence):
        raise Damaged(f"journal segment {name} does not begin with its head")
    records = [(int(record.kind), record.body, record.end) for record in intact_prefix(data)]
    intact_bytes = records[-1][2] if records else 0
    named = _named(sequence, head, records)
    for position in groups_anywhere(data, intact_bytes):
        named = max(named, position)
    del records[:1]
    return Found(name, sequence, len(data), head, records, intact_bytes, named)


def _named(sequence: int, head: Head | None, records: list[Plain]) -> Position:
    """The furthest position that an intact GROUP record proves was synced.

    In a file that appeared whole the first one proves itself: it was synced before it had its name.
    """
    named, is_first = (0, 0), True
    for kind, body, end in records:
        if kind != Kind.GROUP:
            continue
        position = GROUP_BODY.unpack(body)
        own = (sequence, end - GROUP_RECORD_BYTES)
        is_whole = head is not None and head.origin is not Origin.ROLLED
        if is_whole and is_first and position == own:
            position = (sequence, end)
        named, is_first = max(named, position), False
    return named


def _chain(found: list[Found]) -> list[Found]:
    """The segments that count, in order: from the last one with a head back through those it follows.

    Behind it may lie files that never got one.
    """
    with_head = [at for at, one in enumerate(found) if one.head is not None]
    if not with_head:
        return list(found)
    chain = found[with_head[-1] :]
    below = found[: with_head[-1]]
    while below:
        head = chain[0].head
        if head is not None and head.origin is Origin.FRESH:
            break
        follows = head.follows if head is not None else below[-1].sequence
        below = [one for one in below if one.sequence <= follows]
        if not below:
            break
        if below[-1].sequence != follows:
            # Dropped ones need not vanish in order when the power goes. What was dropped the ledger
            # holds durably; the owner refuses a journal that begins after what its ledger holds.
            break
        chain.insert(0, below.pop())
    return chain


def _replay(one: Found, head: Head, opened: Opened) -> bool:
    """Take over one segment's entries. False: they go on from some that were dropped."""
    if not opened.segments:
        opened.rows = [(NO_OP_COMMAND, head.base_index, head.base_term)]
    rows = opened.rows
    if (rows[-1][1], rows[-1][2]) != (head.base_index, head.base_term):
        raise Damaged(f"journal segment {one.name} does not follow the last")
    segment = Segment(
        one.sequence, head.base_index, head.base_term, head.base_index, one.intact_bytes
    )
    for kind, body, end in one.records:
        if kind == Kind.ENTRY:
            command, index, term = entry_in(body)
            if index != rows[-1][1] + 1 or term < rows[-1][2]:
                raise Damaged(f"journal entry {index} of term {term} follows {rows[-1][1:]}")
            rows.append((command, index, term))
            segment.last_index = max(segment.last_index, index)
        elif kind == Kind.CUT:
            (index,) = CUT_BODY.unpack(body)
            if index <= rows[0][1]:
                return False
            del rows[index - rows[0][1] :]
            segment.cut_index = min(segment.cut_index, index)
        elif kind == Kind.SEGMENT:
            raise Damaged(f"journal segment {one.name} has a second head")
        if (one.sequence, end) <= opened.proven:
            opened.proven_index = rows[-1][1]
    opened.proven_index = max(opened.proven_index, rows[0][1])
    opened.segments.append(segment)
    one.records.clear()
    return True


def _check_end(opened: Opened, found: list[Found]) -> None:
    if not opened.segments:
        if found:
            # A first segment appears whole, by rename: a crash leaves none without a head.
            raise Damaged(f"no segment of the journal has a head, from {found[0].name} on")
        return
    last = opened.segments[-1]
    if opened.proven > (last.sequence, last.bytes_used):
        raise Damaged(
            f"the journal ends before {_place(opened.proven)}, and all before that had been synced"
        )


def _place(position: Position) -> str:
    sequence, offset = position
    return f"byte {offset} of {segment_name(sequence)}"

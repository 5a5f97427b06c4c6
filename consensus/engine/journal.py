"""The log on disk and in memory: append-only segments, group commit, whole segments dropped.

Bytes go out unsynced; `sync()` runs one fdatasync at a time through a Background and everything
waiting shares it. Positions (segment sequence, offset) only grow: entries are withdrawn by a CUT
record, not by shortening the file, so a GROUP record proves what was durable when it was written.
At open, damage before a proven position raises Damaged. What is intact but unproven is written to a
new file, and that one synced: after a sync that failed, the next one of the same file may lie.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.engine.opening import (
    NO_CUT,
    NO_OP_COMMAND,
    Opened,
    Position,
    Row,
    Segment,
    read_journal,
    segment_name,
)
from consensus.engine.records import (
    CUT_BODY,
    GROUP_BODY,
    Head,
    Kind,
    Origin,
    encode,
    entry_body,
)
from consensus.errors import StorageFailed
from consensus.ports import Background

SEGMENT_BYTES_DEFAULT = 8 << 20
ENTRY_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class Syncing:
    """One fdatasync under way: what it makes durable."""

    offset: int
    index: int
    position: Position
    handles: list[int]
    is_named_anew: bool  # the last segment's name is not durable yet either


class Journal:
    """Entries after `base_index`, in order and without gaps.

    Memory: every entry after the base is also held in memory; `drop_to` bounds that, so the owner
    who drops segments bounds both. Raises Damaged at open, StorageFailed when a write is refused;
    when one is refused at open, the journal can be read, and `failed` says why it takes nothing.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        background: Background,
        segment_bytes_max: int = SEGMENT_BYTES_DEFAULT,
        disk: Disk | None = None,
    ) -> None:
        self._folder = Path(directory)
        self._background = background
        self._segment_bytes_max = segment_bytes_max
        self._disk = disk if disk is not None else Disk()
        opened = read_journal(self._folder, self._disk)
        self._segments: list[Segment] = opened.segments
        self.rows: list[Row] = opened.rows  # rows[0] stands for the base entry itself
        self._buffer = bytearray()
        self._retired: list[int] = []
        self._syncing: Syncing | None = None
        self._handle = -1
        self._is_named_anew = False  # a segment was begun, and its folder not synced since
        self._is_closed = False
        self.failed: BaseException | None = None
        self.sync_count = 0
        self.written_offset = 0  # Invariant: synced_offset <= written_offset; both only grow.
        self.synced_offset = 0
        self.synced_index = opened.proven_index
        self._proven = opened.proven
        self._named = opened.proven  # the furthest position that the file itself proves
        try:
            self._start(opened)
        except OSError as error:
            self._fail(error)

    def _start(self, opened: Opened) -> None:
        """Make all that was read durable; only then it counts."""
        if not self._segments:
            self._write_whole(Head(opened.next_sequence, 0, 0, Origin.FRESH))
        elif opened.proven_count < len(self._segments):
            self._renew(opened)
        else:
            last = self._segments[-1]
            self._handle = self._disk.open_append(self._folder / segment_name(last.sequence))
        # A name that was given just before a crash, or a sync that failed, may not be durable yet.
        self._disk.renew_folder(self._folder)
        for name in self._disk.names(self._folder):
            if name in opened.leftovers or name.endswith(".tmp"):
                self._disk.remove(self._folder / name)
        self._proven = (self._segments[-1].sequence, self._segments[-1].bytes_used)
        self._named = self._proven
        self.synced_index = self.last_index

    def _renew(self, opened: Opened) -> None:
        """Write what is not proven anew, in a file of its own; the old files are not touched again."""
        kept, unproven = (
            self._segments[: opened.proven_count],
            self._segments[opened.proven_count :],
        )
        first, cut_index = unproven[0], min(segment.cut_index for segment in unproven)
        head = Head(opened.next_sequence, first.base_index, first.base_term, Origin.FRESH)
        if kept:
            last = kept[-1]
            head = replace(
                head,
                origin=Origin.RENEWED,
                follows=last.sequence,
                follows_bytes=last.bytes_used,
            )
        self._segments = kept
        try:
            self._write_whole(head, cut_index=cut_index)
        except OSError:
            self._segments = kept + unproven
            raise
        opened.leftovers.extend(segment_name(segment.sequence) for segment in unproven)

    def _write_whole(self, head: Head, *, cut_index: int = NO_CUT) -> None:
        """Make a segment of all entries after the head's base, durably, and go on in it."""
        data = bytearray(encode(Kind.SEGMENT, head.body()))
        if cut_index <= head.base_index:
            data += encode(Kind.CUT, CUT_BODY.pack(cut_index))
        after = min(head.base_index, cut_index - 1)
        for command, index, term in self.rows[after + 1 - self.base_index :]:
            data += encode(Kind.ENTRY, entry_body(index, term, command))
        # The first group of a segment that appears whole, by rename, proves itself.
        data += encode(Kind.GROUP, GROUP_BODY.pack(head.sequence, len(data)))
        path = self._folder / segment_name(head.sequence)
        self._disk.replace(path, bytes(data))
        self._handle = self._disk.open_append(path)
        segment = Segment(
            head.sequence,
            head.base_index,
            head.base_term,
            max(head.base_index, self.last_index),
            bytes_used=len(data),
        )
        if cut_index <= head.base_index:
            segment.cut_index = cut_index
        self._segments.append(segment)
        self._proven = self._named = (head.sequence, len(data))

    # What it holds.

    @property
    def base_index(self) -> int:
        return self.rows[0][1]

    @property
    def base_term(self) -> int:
        return self.rows[0][2]

    @property
    def last_index(self) -> int:
        return self.rows[-1][1]

    @property
    def last_term(self) -> int:
        return self.rows[-1][2]

    @property
    def bytes_on_disk(self) -> int:
        return sum(segment.bytes_used for segment in self._segments)

    @property
    def unproven_bytes(self) -> int:
        """About how much the next opening would write anew."""
        proven = self._proven
        return sum(s.bytes_used for s in self._segments if (s.sequence, s.bytes_used) > proven)

    @property
    def is_syncing(self) -> bool:
        return self._syncing is not None

    def term_at(self, index: int) -> int | None:
        """Term of the entry at this index, the base included; None when it is not held."""
        offset = index - self.base_index
        return self.rows[offset][2] if 0 <= offset < len(self.rows) else None

    def command_at(self, index: int) -> bytes:
        """Command of an entry after the base."""
        assert self.base_index < index <= self.last_index
        return self.rows[index - self.base_index][0]

    # What changes it.

    def append(self, index: int, term: int, command: bytes) -> None:
        """Add the next entry; it is durable once `synced_index` has reached it."""
        assert index == self.last_index + 1, f"entry {index} after {self.last_index}"
        assert term >= self.last_term and 0 < len(command) <= ENTRY_BYTES_MAX
        self._put(Kind.ENTRY, entry_body(index, term, command))
        self.rows.append((command, index, term))
        self._segments[-1].last_index = max(self._segments[-1].last_index, index)

    def truncate_from(self, index: int) -> None:
        """Withdraw the entries from this index on."""
        assert self.base_index < index
        if index > self.last_index:
            return
        self._put(Kind.CUT, CUT_BODY.pack(index))
        del self.rows[index - self.base_index :]
        segment = self._segments[-1]
        segment.cut_index = min(segment.cut_index, index)
        self.synced_index = min(self.synced_index, index - 1)
        if self._syncing is not None:
            self._syncing.index = min(self._syncing.index, index - 1)

    def drop_to(self, index: int) -> None:
        """Drop whole segments of entries at or below this index, which the caller holds durably.

        One that is closed drops nothing: somebody else may be reading its files.
        """
        if self._is_closed:
            return
        keep = 0
        for at in range(len(self._segments) - 1):
            base = self._segments[at + 1].base_index
            later_cut = min(segment.cut_index for segment in self._segments[at + 1 :])
            if max(s.last_index for s in self._segments[: at + 1]) > index or base > index:
                break
            if base < self.base_index:
                continue  # a reset that failed has left files of before it
            # What goes on without them must have its own head durably.
            if later_cut > base and self._proven[0] >= self._segments[at + 1].sequence:
                keep = at + 1
        if keep == 0:
            return
        keep = self._remove(keep)
        base = self._segments[keep].base_index
        del self._segments[:keep]
        _, base_index, base_term = self.rows[base - self.base_index]
        del self.rows[: base - self.base_index]
        self.rows[0] = (NO_OP_COMMAND, base_index, base_term)

    def _remove(self, count: int) -> int:
        """Remove the first segments' files, lowest first, or the rest would look lost; how many went."""
        for at in range(count):
            try:
                self._disk.remove(self._folder / segment_name(self._segments[at].sequence))
            except OSError:
                return at
        return count

    def reset(self, base_index: int, base_term: int, *, keep_suffix: bool) -> None:
        """Begin anew after this entry, durably, keeping what follows it if asked. Blocks.

        Raises OSError, and is failed then: whether it began anew shows at the next opening.
        """
        if self.failed is not None:
            raise StorageFailed(f"the journal failed before: {self.failed}") from self.failed
        assert not keep_suffix or self.term_at(base_index) == base_term
        suffix = self.rows[base_index - self.base_index + 1 :] if keep_suffix else []
        old = self._segments
        self._retire_handle()
        self._buffer.clear()
        self.rows, self._segments = [(NO_OP_COMMAND, base_index, base_term), *suffix], []
        try:
            self._write_whole(Head(old[-1].sequence + 1, base_index, base_term, Origin.FRESH))
        except OSError as error:
            self._segments = old
            self._fail(error)
            raise
        for segment in old:
            self._disk.remove(self._folder / segment_name(segment.sequence))
        self.written_offset += self._segments[-1].bytes_used
        self.synced_offset, self.synced_index = self.written_offset, self.last_index
        if self._syncing is not None:
            self._syncing.index = min(self._syncing.index, self.synced_index)

    def sync(self, done: Callable[[], None]) -> None:
        """Make everything written so far durable, off the loop; `done` after each sync that ended.

        One at a time: nothing starts while one is under way (ask again in `done`), nor after a
        failure: a sync that failed is never tried again as if it had worked.
        """
        if self._syncing is not None or self.failed is not None or self._is_closed:
            return
        if self.synced_offset == self.written_offset and not self._buffer:
            return
        self._name_proven()
        self._write_buffer()
        segment = self._segments[-1]
        syncing = Syncing(
            self.written_offset,
            self.last_index,
            (segment.sequence, segment.bytes_used),
            [*self._retired, self._handle],
            self._is_named_anew,
        )
        self._syncing = syncing

        def work() -> None:
            for handle in syncing.handles:
                self._disk.sync(handle)
            if syncing.is_named_anew:
                self._disk.sync_folder(self._folder)

        def finish(error: BaseException | None) -> None:
            self._finish_sync(syncing, error)
            done()

        self._background.run(work, finish)

    def _finish_sync(self, syncing: Syncing, error: BaseException | None) -> None:
        self._syncing = None
        if error is not None:
            self._fail(error)
            return
        self.sync_count += 1
        self.synced_offset = max(self.synced_offset, syncing.offset)
        self.synced_index = max(self.synced_index, syncing.index)
        self._proven = max(self._proven, syncing.position)
        self._is_named_anew = self._is_named_anew and not syncing.is_named_anew
        for handle in syncing.handles:
            if handle in self._retired:
                self._retired.remove(handle)
                self._disk.close(handle)
            elif self._is_closed:
                self._disk.close(handle)
        segment = self._segments[-1]
        if segment.bytes_used >= self._segment_bytes_max and not self._is_closed:
            self._roll()

    def close(self) -> None:
        """Write what is buffered, sync it, prove it and let go of the file."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self.failed is None:
                self._sync_at_end()
        except OSError as error:
            self._fail(error)
            raise
        finally:
            self._close_handles()

    def let_go(self) -> None:
        """Close the file and write nothing to it: for a node that does not start after all."""
        if not self._is_closed:
            self._is_closed = True
            self._close_handles()

    def _close_handles(self) -> None:
        busy = self._syncing.handles if self._syncing is not None else []
        for handle in [*self._retired, self._handle]:
            if handle >= 0 and handle not in busy:
                self._disk.close(handle)
        self._retired, self._handle = [], -1

    def _sync_at_end(self) -> None:
        is_all_synced = not self._buffer and self.synced_offset == self.written_offset
        if not is_all_synced:
            self._name_proven()
            self._write_buffer()
        if self._syncing is not None:
            # If that one fails, a sync beside it may lie: what it was to make durable is unproven.
            return
        if not is_all_synced:
            for handle in [*self._retired, self._handle]:
                self._disk.sync(handle)
            if self._is_named_anew:
                self._disk.sync_folder(self._folder)
            self._proven = (self._segments[-1].sequence, self._segments[-1].bytes_used)
        if self._named < self._proven:
            self._name_proven()
            self._write_buffer()
            self._disk.sync(self._handle)

    # Inside.

    def _name_proven(self) -> None:
        self._put(Kind.GROUP, GROUP_BODY.pack(*self._proven))
        self._named = self._proven

    def _put(self, kind: Kind, body: bytes) -> None:
        if self.failed is not None:
            raise StorageFailed(f"the journal failed before: {self.failed}") from self.failed
        record = encode(kind, body)
        self._buffer += record
        self._segments[-1].bytes_used += len(record)
        self.written_offset += len(record)

    def _write_buffer(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        try:
            self._disk.write(self._handle, data)
        except OSError as error:
            self._fail(error)
            raise StorageFailed(f"the journal cannot be written: {error}") from error

    def _fail(self, error: BaseException) -> None:
        if self.failed is None:
            self.failed = error

    def _roll(self) -> None:
        try:
            if self._buffer:
                self._write_buffer()
            self._retire_handle(unsynced=True)
            self._begin_segment()
            self._is_named_anew = True
        except (OSError, StorageFailed) as error:
            self._fail(error)

    def _begin_segment(self) -> None:
        last = self._segments[-1]
        head = Head(
            last.sequence + 1,
            self.last_index,
            self.last_term,
            follows=last.sequence,
            follows_bytes=last.bytes_used,
        )
        self._handle = self._disk.open_append(self._folder / segment_name(head.sequence))
        segment = Segment(head.sequence, head.base_index, head.base_term, head.base_index, 0)
        self._segments.append(segment)
        self._put(Kind.SEGMENT, head.body())
        self._name_proven()

    def _retire_handle(self, *, unsynced: bool = False) -> None:
        busy = self._syncing is not None and self._handle in self._syncing.handles
        if unsynced or busy:
            self._retired.append(self._handle)
        elif self._handle >= 0:
            self._disk.close(self._handle)
        self._handle = -1

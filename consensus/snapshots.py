"""Copies of the ledger for voters that fell behind: made off the loop, sent in chunks, verified, installed.

Only what was proven is sent: a copy is checked when it is made and again chunk by chunk as it is
read. What arrives is kept aside until it was checked, off the loop, and only then is it installed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from quorumesh.v1.peer_pb2 import SnapshotChunk

from consensus.copying import (
    PARTIAL,
    Copied,
    SnapshotFile,
    blamed_on_its_source,
    check_received,
    copy_ledger,
    copy_pages,
    digest_of_rows,
    open_ledger,
    prove_copy,
    remove_database,
    removed_if_it_fails,
)
from consensus.directory import LedgerDirectory
from consensus.engine.config import CHUNK_BYTES_MAX
from consensus.engine.ports import Checked, Finding
from consensus.engine.ports import SnapshotFile as Sendable
from consensus.errors import ConsensusError, Damaged, Unavailable
from consensus.pauses import Pauses
from consensus.ports import Background, Clock
from consensus.room import is_refusal
from consensus.scrub import open_at
from consensus.storage import damage_told

TAKEN_MS_MAX = 10_000  # from when a copy was made until it is on its way to whoever needs it
REFUSING_PEERS_MAX = 2  # that found a copy unsound: then a new one is made
PEER_REFUSALS_MAX = 4  # of one peer alone: the same
SNAPSHOT_BYTES_MAX = 1 << 40
WAL_BYTES_MAX = 256 << 20  # a copy that takes so long that the log grows beyond this is given up

log = logging.getLogger("consensus.snapshots")


@dataclass(slots=True, eq=False)
class Incoming:
    """A copy being received, or being checked once all of it is here."""

    index: int
    term: int
    bytes_total: int
    digest: bytes
    path: Path
    handle: int
    offset: int = 0
    checked: Checked | None = None

    def is_of(self, chunk: SnapshotChunk) -> bool:
        return (self.index, self.term, self.digest) == (chunk.index, chunk.entry_term, chunk.digest)


class Witness(Protocol):
    """Knows what a majority of the voters holds at an index."""

    def ask(
        self, begin: Callable[[int | None], None], give_up: Callable[[ConsensusError], None]
    ) -> None:
        """Call `begin` with an index that this ledger is at just then and where all compare theirs.

        `begin(None)`: nothing can be committed, so nobody can be asked.
        """

    def may_go_on(self, index: int) -> bool:
        """Whether a copy at this index may still be handed out. For a thread: it may take a moment."""

    def vouch(self, index: int, digest: bytes, answer: Callable[[str], None]) -> None:
        """Call `answer` once: why it is not known that a majority found the same; empty: it has."""


class Snapshots:
    """The engine's source and sink of ledger copies.

    `damage` says what is wrong with this node's own ledger, once a copy of it has shown that: the
    node must go out of service. No copy is made of it any more, until another ledger is installed.
    """

    def __init__(
        self,
        directory: LedgerDirectory,
        *,
        background: Background,
        clock: Clock,
        ledger_path: Callable[[], Path],
        replace: Callable[[Path, int], None],
        wal_bytes_max: int = WAL_BYTES_MAX,
        witness: Witness | None = None,
    ) -> None:
        self._directory = directory
        self._background = background
        self._clock = clock
        self._ledger_path = ledger_path
        self._replace = replace
        self._wal_bytes_max = wal_bytes_max
        self._witness = witness
        self._latest: SnapshotFile | None = None
        # Replaced by a newer one, which needs that these are sent to somebody: so they are few.
        self._retired: list[tuple[weakref.ref[SnapshotFile], int]] = []
        self._refusals: dict[str, int] = {}  # of REFUSING_PEERS_MAX at most: how often each did
        self._making = False
        self._reading = False
        self._is_taken = False  # the latest one is on its way to somebody
        self._pending_index: int | None = None  # of the copy that is being made, if it is compared
        self._made_ms = clock.monotonic_ms()
        self._pauses = Pauses(clock)
        self._incoming: Incoming | None = None
        self._incoming_sequence = 0
        self.damage = ""
        self.made_count = 0
        self.installed_count = 0

    @property
    def is_making(self) -> bool:
        """A copy is being read from the ledger: a read transaction is held open."""
        return self._reading

    @property
    def folder(self) -> Path:
        """Where copies are made; it is emptied at each start."""
        return self._directory.snapshots

    @property
    def needed_after(self) -> int | None:
        """The entry after which the journal must hold all, or the copy under way is of no use.

        One that was just made counts for as long as peers may take to be sent its first chunk.
        """
        if self._pending_index is not None:
            return self._pending_index
        is_new = self._clock.monotonic_ms() < self._made_ms + TAKEN_MS_MAX
        if self._latest is None or self._is_taken or not is_new:
            return None
        return self._latest.index

    # Copies for others.

    def latest(self) -> SnapshotFile | None:
        """The copy to send. Who takes it sees to it that the journal keeps what follows it."""
        self._is_taken = True
        return self._latest

    def request(self) -> None:
        """Make a fresh copy in the background; nothing happens while one is being made.

        Nor during the pause (`pauses.py`) after one that failed, was too slow or not vouched for.
        """
        if self._making or self.damage or not self._pauses.is_over:
            return
        self._making = True
        self._pauses.begun()
        if self._witness is None:
            self._make(None)
        else:
            self._witness.ask(self._make, lambda error: self._give_up(error, self._ledger_path()))

    def voter_came(self) -> None:
        """One that may vouch is there again: what was put off for want of it is tried again soon."""
        self._pauses.shorten()

    def _make(self, index: int | None) -> None:
        """Copy the ledger as it is; with an index it is at that, and is compared there."""
        source, folder, disk = self._ledger_path(), self._directory.snapshots, self._directory.disk
        try:
            with damage_told():
                reading = None if index is None else open_at(source, index)
        except (sqlite3.Error, Damaged) as error:
            self._give_up(error, source)
            return
        self._reading, self._pending_index = True, index
        copied: list[Copied] = []

        def may_go_on() -> bool:
            return wal_bytes(source) <= self._wal_bytes_max

        def read() -> None:
            with removed_if_it_fails(folder / PARTIAL, disk):
                opened = reading or open_ledger(source)
                copied.append(copy_pages(opened, folder / PARTIAL, disk, may_go_on=may_go_on))

        def was_read(error: BaseException | None) -> None:
            self._reading = False
            if error is None:
                self._prove(source, copied[0], is_compared=index is not None)
            else:
                self._failed(error, source)

        self._background.run(read, was_read)

    def _prove(self, source: Path, copied: Copied, *, is_compared: bool) -> None:
        folder, disk, witness = self._directory.snapshots, self._directory.disk, self._witness
        made: list[SnapshotFile] = []
        rows: list[bytes] = []

        def may_go_on() -> bool:
            return witness is not None and witness.may_go_on(copied[0])

        def look(path: Path) -> None:
            rows.append(digest_of_rows(path, may_go_on=may_go_on))

        def prove() -> None:
            with removed_if_it_fails(folder / PARTIAL, disk), blamed_on_its_source(source):
                made.append(prove_copy(folder, copied, disk, look=look if is_compared else None))

        def was_proven(error: BaseException | None) -> None:
            if error is not None:
                self._failed(error, source)
            elif witness is not None and is_compared:
                witness.vouch(copied[0], rows[0], lambda why: self._answered(made[0], why))
            else:
                if witness is not None:
                    log.warning("nothing can be committed: a copy was made that was not compared")
                self._keep(made[0])

        self._background.run(prove, was_proven)

    def _failed(self, error: BaseException, source: Path) -> None:
        if isinstance(error, Unavailable):  # it was too slow, and may be again
            self._end_making()
            pause_ms = self._pauses.was_in_vain()
            log.warning(
                "a copy of the ledger was given up: %s. The next is made in %d s",
                error,
                pause_ms // 1_000,
            )
        else:
            self._give_up(error, source)

    def _answered(self, made: SnapshotFile, why: str) -> None:
        if not why:
            self._keep(made)
            return
        self._let_go(made)
        self._end_making()
        log.warning(
            "a copy of the ledger at %d is not handed out: %s. The next is made in %d s; compare "
            "the ledgers with: mesh doctor",
            made.index,
            why,
            self._pauses.was_in_vain() // 1_000,
        )

    def _end_making(self) -> None:
        self._making, self._pending_index = False, None

    def _give_up(self, error: BaseException, source: Path) -> None:
        self._end_making()
        self._pauses.failed()
        # What is said of a ledger that was replaced meanwhile is not held against the new one.
        if isinstance(error, Damaged) and source == self._ledger_path():
            self.damage = str(error)
            log.critical("no copy of this ledger is sent to anybody: %s", error)
        else:
            log.warning("a copy of the ledger was not made: %s", error)

    def _keep(self, made: SnapshotFile) -> None:
        self._end_making()
        self._pauses.succeeded()
        self._refusals.clear()
        self._retire(named_anew=made.path)
        self._latest, self._made_ms = made, self._clock.monotonic_ms()
        self._is_taken = False
        self.made_count += 1

    def _retire(self, *, named_anew: Path | None = None) -> None:
        """The copy loses its name now, and its bytes once nobody is sent it: in a thread, for they are many."""
        old, self._latest = self._latest, None
        if old is not None:
            self._let_go(old, named_anew=named_anew)

    def _let_go(self, copy: SnapshotFile, *, named_anew: Path | None = None) -> None:
        self._retired.append((weakref.ref(copy), os.dup(copy.fd)))
        if copy.path != named_anew:
            self._directory.disk.remove(copy.path)

    def _close_retired(self) -> None:
        for reference, fd in self._retired[:]:
            if reference() is None:
                self._retired.remove((reference, fd))
                self._background.run(partial(os.close, fd), _ended)

    def refused(self, snapshot: Sendable, peer: str) -> None:
        """A peer received all of it and found it unsound. One peer may be wrong, now and then."""
        if snapshot is not self._latest:
            return
        self._refusals[peer] = self._refusals.get(peer, 0) + 1
        is_alone = len(self._refusals) < REFUSING_PEERS_MAX
        if not is_alone or self._refusals[peer] >= PEER_REFUSALS_MAX:
            self.rotten(snapshot)

    def rotten(self, snapshot: Sendable) -> None:
        """It is not handed out again; the next request makes a new one, but not at once."""
        if snapshot is self._latest:
            log.error("the copy of the ledger at %d is not sound: it is made anew", snapshot.index)
            self._retire()
            self._refusals.clear()
            self._pauses.failed()

    # Copies from others.

    def receive(self, chunk: SnapshotChunk) -> int:
        """Take a chunk; returns the offset wanted next. A chunk of another copy starts that copy over.

        With the last one the checking begins, in the background.
        """
        incoming = self._incoming
        if incoming is None or not incoming.is_of(chunk):
            if not 0 < chunk.total_bytes <= SNAPSHOT_BYTES_MAX:
                return 0
            incoming = self._begin(chunk)
        if incoming is None:
            return 0
        count = len(chunk.data)
        is_too_much = count > CHUNK_BYTES_MAX or incoming.offset + count > incoming.bytes_total
        if chunk.offset != incoming.offset or is_too_much or count == 0:
            return incoming.offset
        if self._write(incoming, chunk.data):
            incoming.offset += count
            if incoming.offset == incoming.bytes_total:
                self._check(incoming)
        return incoming.offset if incoming is self._incoming else 0

    def _write(self, incoming: Incoming, data: bytes) -> bool:
        """False when there is no room: what is there stays if it can, and the chunk will come again."""
        disk = self._directory.disk
        try:
            disk.write(incoming.handle, data)
        except OSError as error:
            log.warning("a chunk of a copy of the ledger was not taken: %s", error)
            try:
                disk.truncate(incoming.path, incoming.offset)
            except OSError:
                # Nobody knows what is there now: all of it comes again.
                self.abort()
            return False
        return True

    def _begin(self, chunk: SnapshotChunk) -> Incoming | None:
        self.abort()
        # A name of its own: what is still being checked of an earlier one is left alone.
        self._incoming_sequence += 1
        path = self._directory.incoming / f"incoming-{self._incoming_sequence}.db"
        try:
            handle = self._directory.disk.open_append(path)
        except OSError as error:
            log.warning("no copy of the ledger can be received: %s", error)
            return None
        self._incoming = Incoming(
            chunk.index, chunk.entry_term, chunk.total_bytes, chunk.digest, path, handle
        )
        return self._incoming

    def _check(self, incoming: Incoming) -> None:
        disk = self._directory.disk
        disk.close(incoming.handle)
        incoming.handle = -1

        def work() -> None:
            copied = (incoming.index, incoming.term)
            check_received(incoming.path, digest=incoming.digest, copied=copied, disk=disk)

        def done(error: BaseException | None) -> None:
            if incoming is not self._incoming:
                # It was given up meanwhile, and the check may have left files of its own.
                self._remove(incoming.path)
                return
            finding = Finding.SOUND
            if error is not None:
                finding = Finding.UNREAD if is_refusal(error) else Finding.UNSOUND
                log.error("a received copy of the ledger was thrown away: %s", error)
            incoming.checked = Checked(incoming.index, incoming.term, incoming.bytes_total, finding)

        self._background.run(work, done)

    def checked(self) -> Checked | None:
        if self._retired:
            self._close_retired()
        return self._incoming.checked if self._incoming is not None else None

    def is_complete(self) -> bool:
        """All of a copy is here, checked or not."""
        incoming = self._incoming
        return incoming is not None and incoming.offset == incoming.bytes_total

    def abort(self) -> None:
        """Forget what was received so far."""
        incoming, self._incoming = self._incoming, None
        if incoming is None:
            return
        if incoming.handle >= 0:
            self._directory.disk.close(incoming.handle)
        self._remove(incoming.path)

    def _remove(self, path: Path) -> None:
        """In a thread, for a large file takes its time to go."""
        self._background.run(partial(remove_database, path, self._directory.disk), _ended)

    def install(self, index: int, term: int) -> None:
        """Make the copy that was found sound the ledger in force."""
        incoming = self._incoming
        assert incoming is not None and incoming.checked is not None
        assert incoming.checked.finding is Finding.SOUND
        assert (incoming.index, incoming.term) == (index, term)
        self._incoming = None
        self._replace(incoming.path, index)
        self.damage = ""
        self.installed_count += 1


def _ended(error: BaseException | None) -> None:
    """What could not be removed is removed at the next start."""


def wal_bytes(path: Path) -> int:
    """Bytes of the write-ahead log beside a database; 0 when there is none."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return 0


__all__ = ["Incoming", "SnapshotFile", "Snapshots", "copy_ledger", "wal_bytes"]

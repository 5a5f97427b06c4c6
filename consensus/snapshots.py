"""Copies of the ledger for voters that fell behind: made off the loop, sent in chunks, verified, installed.

A copy is an online backup made under one read transaction, so that it is of exactly one revision
and writers do not make it start over. What arrives is kept aside until its SHA-256 is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from quorumesh.v1.peer_pb2 import SnapshotChunk

from consensus.directory import LedgerDirectory
from consensus.engine.disk import Disk
from consensus.errors import Damaged
from consensus.ports import Background

COPY_PAGES_STEP = 512
CHUNK_BYTES_MAX = 262_144
REFUSED_REQUESTS = 100  # about two seconds: a leader asks at each of its ticks
PARTIAL = "partial.db"
SNAPSHOT_BYTES_MAX = 1 << 40


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class SnapshotFile:
    """A finished copy. `digest` is the SHA-256 of the whole file.

    It is held open, so that a peer that is being sent it gets the rest when a newer one has already
    replaced it by name.
    """

    index: int
    term: int
    bytes_total: int
    digest: bytes
    path: Path
    fd: int

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.fd)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self.fd, count, offset)


@dataclass(slots=True)
class Incoming:
    """A copy being received."""

    index: int
    term: int
    bytes_total: int
    digest: bytes
    path: Path
    offset: int = 0


class Snapshots:
    """The engine's source and sink of ledger copies."""

    def __init__(
        self,
        directory: LedgerDirectory,
        *,
        background: Background,
        ledger_path: Callable[[], Path],
        replace: Callable[[Path, int], None],
    ) -> None:
        self._directory = directory
        self._background = background
        self._ledger_path = ledger_path
        self._replace = replace
        self._latest: SnapshotFile | None = None
        self._making = False
        self._pass_over_count = 0
        self._incoming: Incoming | None = None
        self.made_count = 0
        self.installed_count = 0

    @property
    def is_making(self) -> bool:
        """A copy is being made: a read transaction is held open."""
        return self._making

    def latest(self) -> SnapshotFile | None:
        return self._latest

    def request(self) -> None:
        """Make a fresh copy in the background; nothing happens while one is being made.

        After one that failed the next REFUSED_REQUESTS requests are passed over.
        """
        if self._making:
            return
        if self._pass_over_count > 0:
            self._pass_over_count -= 1
            return
        self._making = True
        made: list[SnapshotFile] = []
        source = self._ledger_path()

        def work() -> None:
            made.append(copy_ledger(source, self._directory.snapshots, self._directory.disk))

        def done(error: BaseException | None) -> None:
            self._making = False
            if error is None:
                self._keep(made[0])
            else:
                # A disk that is full does not get emptier by filling it again at once.
                self._pass_over_count = REFUSED_REQUESTS
                (self._directory.snapshots / PARTIAL).unlink(missing_ok=True)

        self._background.run(work, done)

    def _keep(self, made: SnapshotFile) -> None:
        old, self._latest = self._latest, made
        self.made_count += 1
        if old is not None and old.path != made.path:
            old.path.unlink(missing_ok=True)

    def receive(self, chunk: SnapshotChunk) -> int:
        """Take a chunk; returns the offset wanted next. A chunk of another copy starts that copy over."""
        incoming = self._incoming
        if incoming is None or (incoming.index, incoming.term, incoming.digest) != (
            chunk.index,
            chunk.entry_term,
            chunk.digest,
        ):
            if not 0 < chunk.total_bytes <= SNAPSHOT_BYTES_MAX:
                return 0
            incoming = self._begin(chunk)
        count = len(chunk.data)
        is_too_much = count > CHUNK_BYTES_MAX or incoming.offset + count > incoming.bytes_total
        if chunk.offset != incoming.offset or is_too_much:
            return incoming.offset
        with open(incoming.path, "ab") as file:
            file.write(chunk.data)
        incoming.offset += len(chunk.data)
        return incoming.offset

    def _begin(self, chunk: SnapshotChunk) -> Incoming:
        self.abort()
        path = self._directory.incoming / f"snapshot-{chunk.index}-{chunk.entry_term}.db"
        path.unlink(missing_ok=True)
        self._incoming = Incoming(
            chunk.index, chunk.entry_term, chunk.total_bytes, chunk.digest, path
        )
        return self._incoming

    def is_complete(self) -> bool:
        incoming = self._incoming
        return incoming is not None and incoming.offset == incoming.bytes_total

    def abort(self) -> None:
        """Forget what was received so far."""
        if self._incoming is not None:
            self._incoming.path.unlink(missing_ok=True)
            self._incoming = None

    def install(self, index: int, term: int) -> None:
        """Verify the received copy and make it the ledger in force. Damaged if it is not what was sent."""
        incoming = self._incoming
        assert incoming is not None and (incoming.index, incoming.term) == (index, term)
        if digest_of(incoming.path) != incoming.digest:
            self.abort()
            raise Damaged("a received snapshot does not match its digest; it was thrown away")
        verify_copy(incoming.path, index=index, term=term)
        self._directory.disk.sync_file(incoming.path)
        self._incoming = None
        self._replace(incoming.path, index)
        self.installed_count += 1


def copy_ledger(source: Path, folder: Path, disk: Disk) -> SnapshotFile:
    """Copy a live ledger into `folder`. Blocks: for a thread."""
    partial = folder / PARTIAL
    partial.unlink(missing_ok=True)
    reading = sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True, isolation_level=None)
    with contextlib.closing(reading):
        reading.execute("BEGIN")
        index, term = applied_of(reading)
        writing = sqlite3.connect(partial)
        with contextlib.closing(writing):
            reading.backup(writing, pages=COPY_PAGES_STEP, sleep=0)
            writing.execute("PRAGMA journal_mode=DELETE").fetchone()
        reading.execute("ROLLBACK")
    path = folder / f"snapshot-{index}-{term}.db"
    disk.sync_file(partial)
    disk.rename(partial, path)
    disk.sync_folder(folder)
    digest, fd = digest_of(path), os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return SnapshotFile(index, term, os.fstat(fd).st_size, digest, path, fd)


def verify_copy(path: Path, *, index: int, term: int) -> None:
    """Damaged unless the file is a sound database of exactly this revision."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        ) as reading:
            found = applied_of(reading)
            sound = reading.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise Damaged(f"a received snapshot is not a ledger: {error}") from error
    if found != (index, term) or sound != "ok":
        raise Damaged(f"a received snapshot is of {found}, not of {(index, term)}; check: {sound}")


def applied_of(connection: sqlite3.Connection) -> tuple[int, int]:
    """The applied index and term that a ledger database holds."""
    row = connection.execute("SELECT applied_index, applied_term FROM ledger").fetchone()
    return int(row[0]), int(row[1])


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()

"""Copies of a ledger as files: made under one read transaction, proven, read back, checked on arrival.

Everything that blocks here is for a thread. A copy is an online backup, so that it is of exactly one
revision and writers do not make it start over.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from consensus.engine.config import CHUNK_BYTES_MAX
from consensus.engine.disk import Disk
from consensus.errors import Damaged, StorageFailed, Unavailable
from consensus.ledger import CannotApply, Ledger
from consensus.scrub import check_schema, errors_as_sqlite, whole_digest
from consensus.storage import NO_ROWS_OF_OURS, damage_told

COPY_PAGES_STEP = 512
SYNC_PAGES_STEP = (
    4_096  # 16 MiB: what one sync writes, so that syncs of the journal do not wait long
)
PARTIAL = "partial.db"
QUICK_CHECK = "quick_check"  # all pages and rows
WHOLE_CHECK = "integrity_check"  # and each index against its table

Copied = tuple[int, int]  # index and term of the revision that was copied


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class SnapshotFile:
    """A finished copy. `digest` is the SHA-256 of the whole file, `chunk_digests` of each chunk.

    It is held open, so that a peer that is being sent it gets the rest when a newer one has already
    replaced it by name.
    """

    index: int
    term: int
    bytes_total: int
    digest: bytes
    chunk_digests: tuple[bytes, ...]
    path: Path
    fd: int

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.fd)

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes, not beyond the end of a chunk. Damaged: not what was written."""
        number, within = divmod(offset, CHUNK_BYTES_MAX)
        try:
            data = os.pread(self.fd, CHUNK_BYTES_MAX, number * CHUNK_BYTES_MAX)
        except OSError as error:
            raise Damaged(f"a copy of the ledger cannot be read back: {error}") from error
        if hashlib.sha256(data).digest() != self.chunk_digests[number]:
            raise Damaged(f"a copy of the ledger has changed on disk, at byte {offset}")
        return data[within : within + count]


def copy_ledger(source: Path, folder: Path, disk: Disk) -> SnapshotFile:
    """Copy a live ledger into `folder` and prove the copy. Blocks: for a thread."""
    copied = copy_pages(open_ledger(source), folder / PARTIAL, disk, may_go_on=lambda: True)
    return prove_copy(folder, copied, disk)


def open_ledger(source: Path) -> sqlite3.Connection:
    """A connection for `copy_pages`, which sees the ledger as it is when the copying begins."""
    uri = f"file:{quote(str(source))}?mode=ro"
    return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)


def copy_pages(
    reading: sqlite3.Connection, target: Path, disk: Disk, *, may_go_on: Callable[[], bool]
) -> Copied:
    """Copy a live ledger page by page, under one read transaction; the connection is closed.

    Damaged when the ledger's own pages are; Unavailable when it may not go on.
    """
    with contextlib.closing(reading):
        remove_database(target, disk)
        return _copy_pages(reading, target, disk, may_go_on)


def _copy_pages(
    reading: sqlite3.Connection, target: Path, disk: Disk, may_go_on: Callable[[], bool]
) -> Copied:
    unsynced_from = [0]

    def pace(status: int, remaining: int, total: int) -> None:
        if not may_go_on():
            raise Unavailable("the copy took so long that the write-ahead log outgrew its bound")
        if total - remaining - unsynced_from[0] >= SYNC_PAGES_STEP:
            disk.sync_file(target)
            unsynced_from[0] = total - remaining

    with contextlib.closing(sqlite3.connect(target, isolation_level=None)) as writing:
        # What is lost with the power is made anew; the finished copy is synced before it counts.
        writing.execute("PRAGMA synchronous=OFF")
        try:
            if not reading.in_transaction:
                reading.execute("BEGIN")
            with errors_as_sqlite():
                copied = applied_of(reading)
            reading.backup(writing, pages=COPY_PAGES_STEP, progress=pace, sleep=0)
            reading.execute("ROLLBACK")
            writing.execute("PRAGMA journal_mode=DELETE").fetchone()
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            raise Damaged(f"the ledger cannot be copied, its file is damaged: {error}") from error
    return copied


def prove_copy(
    folder: Path, copied: Copied, disk: Disk, *, look: Callable[[Path], None] | None = None
) -> SnapshotFile:
    """Make the copy durable, check it from end to end and give it its name.

    `look` may read it once its structure is known to be sound. Damaged when it is not.
    """
    index, term = copied
    partial, path = folder / PARTIAL, folder / f"snapshot-{index}-{term}.db"
    disk.sync_file(partial)
    # First, so that all looks are at bytes that a chunk's digest holds: what changes after is noticed.
    digest, chunk_digests = digests_of(partial)
    verify_copy(partial, index=index, term=term, check=WHOLE_CHECK)
    if look is not None:
        look(partial)
    disk.rename(partial, path)
    disk.sync_folder(folder)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return SnapshotFile(index, term, os.fstat(fd).st_size, digest, chunk_digests, path, fd)


def digest_of_rows(path: Path, *, may_go_on: Callable[[], bool]) -> bytes:
    """The hash of all rows of a ledger's file that nobody writes."""
    uri = f"file:{quote(str(path))}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as reading:
        reading.text_factory = bytes
        return whole_digest(reading, may_go_on=may_go_on)


def check_received(path: Path, *, digest: bytes, copied: Copied, disk: Disk) -> None:
    """Damaged unless a received file is what was sent and sound. Leaves it durable, ready to open."""
    if digest_of(path) != digest:
        raise Damaged("a received copy does not match its digest")
    index, term = copied
    verify_copy(path, index=index, term=term)
    try:
        _open_once(path)
    except CannotApply as error:
        raise Damaged(f"a received copy is of another release: {error}") from error
    except NO_ROWS_OF_OURS as error:
        raise Damaged(f"a received copy is damaged: {type(error).__name__}: {error}") from error
    disk.sync_file(path)


def _open_once(path: Path) -> None:
    """Read all that a node reads when it takes a copy up.

    What cannot be read is found before it has taken the place of a sound ledger, and what the first
    to open it has to do, as to begin its write-ahead log, is not done on the loop.
    """
    file_bytes = path.stat().st_size
    with damage_told(), contextlib.closing(Ledger.open(str(path))) as ledger:
        (page_bytes,) = ledger.connection.execute("PRAGMA page_size").fetchone()
        if file_bytes % page_bytes:  # SQLite takes no notice of what comes after the last page
            raise Damaged("a received copy does not end with its last page")
        check_schema(ledger.connection)
        ledger.members()
        ledger.farewells()


def verify_copy(path: Path, *, index: int, term: int, check: str = QUICK_CHECK) -> None:
    """Damaged unless the file is a sound database of exactly this revision."""
    found = verify_database(path, check=check)
    if found != (index, term):
        raise Damaged(f"a copy is of {found}, not of {(index, term)}")


def verify_database(path: Path, *, check: str = QUICK_CHECK) -> Copied:
    """The revision of a ledger's file, all of whose pages were looked at. Damaged: not a sound one."""
    try:
        with (
            contextlib.closing(
                sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
            ) as reading,
            errors_as_sqlite(),
        ):
            found = applied_of(reading)
            said = reading.execute(f"PRAGMA {check}(1)").fetchone()[0]
    except sqlite3.OperationalError:
        raise  # the disk refused to read: that says nothing about what is on it
    except sqlite3.DatabaseError as error:
        raise Damaged(f"{path.name} is not a ledger: {error}") from error
    if said != "ok":
        raise Damaged(f"{path.name} is not sound: {said}")
    return found


def applied_of(connection: sqlite3.Connection) -> Copied:
    """The applied index and term that a ledger database holds. Damaged: it holds none."""
    row = connection.execute("SELECT applied_index, applied_term FROM ledger").fetchone()
    match row:
        case (int(index), int(term)):
            return index, term
    raise Damaged("a ledger does not say which revision it is of")


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def digests_of(path: Path) -> tuple[bytes, tuple[bytes, ...]]:
    """SHA-256 of a file, and of each of its chunks as they are sent."""
    whole, chunks = hashlib.sha256(), []
    with open(path, "rb", buffering=0) as file:
        while data := file.read(CHUNK_BYTES_MAX):
            whole.update(data)
            chunks.append(hashlib.sha256(data).digest())
    return whole.digest(), tuple(chunks)


def remove_database(path: Path, disk: Disk) -> None:
    """Remove a database file with what SQLite may have left beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        disk.remove(path.with_name(path.name + suffix))


@contextlib.contextmanager
def removed_if_it_fails(path: Path, disk: Disk) -> Iterator[None]:
    """Leave nothing behind of what could not be finished: the disk may be full."""
    try:
        yield
    except BaseException:
        remove_database(path, disk)
        raise


@contextlib.contextmanager
def blamed_on_its_source(source: Path) -> Iterator[None]:
    """Damaged only when the ledger itself is; a copy alone that went bad is StorageFailed."""
    try:
        yield
    except Damaged as error:
        try:
            verify_database(source, check=WHOLE_CHECK)
        except Damaged as damage:
            raise Damaged(f"the ledger of this node is damaged: {damage}") from error
        raise StorageFailed(f"a sound ledger was not copied soundly: {error}") from error

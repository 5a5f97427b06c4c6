"""The term and the vote: one fsynced, checksummed record, written before anything is said."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.errors import Damaged, StorageFailed

HEAD = struct.Struct("<4sIQ")  # magic, CRC-32 of magic, term and name, term
MAGIC = b"QMV2"
TERM = struct.Struct("<Q")
NAME_BYTES_MAX = 256


class VoteRecord:
    """The highest term this node has seen, and whom it voted for in it.

    Raises Damaged when there is a record that cannot be trusted: a node that forgot its vote could
    vote twice in one term. When the disk refuses at open, it can be read, and `failed` says why it
    takes nothing.
    """

    def __init__(self, path: Path | str, *, disk: Disk | None = None) -> None:
        self._path = Path(path)
        self._disk = disk if disk is not None else Disk()
        self.term = 0
        self.voted_for: str | None = None
        self.failed: BaseException | None = None
        self.existed = self._disk.exists(self._path)
        if self.existed:
            data = self._disk.read(self._path)
            self.term, self.voted_for = decode(data, self._path)
            # It may be of an attempt that failed: readable, but not durable. Now it counts.
            with contextlib.suppress(OSError):
                self._replace(data)

    def save(self, term: int, voted_for: str | None) -> None:
        """Make this the record, durably, before returning.

        Raises OSError when the disk refuses, and StorageFailed ever after.
        """
        assert term >= self.term, f"the term would go back from {self.term} to {term}"
        if self.failed is not None:
            raise StorageFailed(f"the vote record failed before: {self.failed}") from self.failed
        if (term, voted_for) == (self.term, self.voted_for):
            return
        assert term > self.term or self.voted_for is None, "a vote in this term was already given"
        self._replace(encode(term, voted_for))
        self.term, self.voted_for = term, voted_for

    def _replace(self, data: bytes) -> None:
        try:
            self._disk.replace(self._path, data)
        except OSError as error:
            self.failed = error
            raise


def encode(term: int, voted_for: str | None) -> bytes:
    name = (voted_for or "").encode()
    assert len(name) <= NAME_BYTES_MAX
    return HEAD.pack(MAGIC, _checksum(term, name), term) + name


def decode(data: bytes, path: Path) -> tuple[int, str | None]:
    if len(data) < HEAD.size:
        raise Damaged(f"the vote record {path} is cut short; this node must come back as a new one")
    magic, crc, term = HEAD.unpack_from(data)
    name = data[HEAD.size :]
    if magic != MAGIC or len(name) > NAME_BYTES_MAX or _checksum(term, name) != crc:
        raise Damaged(f"the vote record {path} is damaged; this node must come back as a new one")
    try:
        return term, name.decode() or None
    except UnicodeDecodeError as error:
        raise Damaged(f"the vote record {path} names nobody: {error}") from error


def _checksum(term: int, name: bytes) -> int:
    # With the magic, for a CRC-32 that begins with 32 ones is blind to the zeros that follow them:
    # ones over checksum and term would be believed.
    return zlib.crc32(MAGIC + TERM.pack(term) + name)

"""The term and the vote: one fsynced, checksummed record, written before anything is said."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.errors import Damaged

HEAD = struct.Struct("<4sIQ")  # magic, CRC-32 of term and name, term
MAGIC = b"QMV1"
TERM = struct.Struct("<Q")
NAME_BYTES_MAX = 256


class VoteRecord:
    """The highest term this node has seen, and whom it voted for in it.

    Raises Damaged when there is a record that cannot be trusted: a node that forgot its vote could
    vote twice in one term.
    """

    def __init__(self, path: Path | str, *, disk: Disk | None = None) -> None:
        self._path = Path(path)
        self._disk = disk if disk is not None else Disk()
        self.term = 0
        self.voted_for: str | None = None
        self.existed = self._disk.exists(self._path)
        if self.existed:
            self.term, self.voted_for = decode(self._disk.read(self._path), self._path)

    def save(self, term: int, voted_for: str | None) -> None:
        """Make this the record, durably, before returning. Raises OSError when the disk refuses."""
        assert term >= self.term, f"the term would go back from {self.term} to {term}"
        if (term, voted_for) == (self.term, self.voted_for):
            return
        assert term > self.term or self.voted_for is None, "a vote in this term was already given"
        self._disk.replace(self._path, encode(term, voted_for))
        self.term, self.voted_for = term, voted_for


def encode(term: int, voted_for: str | None) -> bytes:
    name = (voted_for or "").encode()
    assert len(name) <= NAME_BYTES_MAX
    return HEAD.pack(MAGIC, zlib.crc32(TERM.pack(term) + name), term) + name


def decode(data: bytes, path: Path) -> tuple[int, str | None]:
    if len(data) < HEAD.size:
        raise Damaged(f"the vote record {path} is cut short; this node must come back as a new one")
    magic, crc, term = HEAD.unpack_from(data)
    name = data[HEAD.size :]
    if magic != MAGIC or zlib.crc32(TERM.pack(term) + name) != crc:
        raise Damaged(f"the vote record {path} is damaged; this node must come back as a new one")
    return term, name.decode() or None

"""What an engine needs of its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from quorumesh.v1.peer_pb2 import SnapshotChunk


class Machine(Protocol):
    """The replicated state. `apply` comes in order, only for what is committed and durable here."""

    @property
    def applied_index(self) -> int: ...

    def apply(self, index: int, term: int, command: bytes) -> None: ...

    def voters(self) -> Mapping[str, str]:
        """Node id to address, as of `applied_index`; empty when it knows of none yet."""

    def counted_ms(self) -> int: ...

    def leader_counted_ms(self, counted_ms: int) -> None: ...


class SnapshotFile(Protocol):
    """A finished copy of the state, readable at any offset."""

    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def bytes_total(self) -> int: ...
    @property
    def digest(self) -> bytes: ...

    def read(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes. Raises Damaged when they are no longer those that were written."""


class Finding(Enum):
    """What a check found a received copy to be."""

    SOUND = "sound"
    UNSOUND = "unsound"  # not what was sent, or no state
    UNREAD = "unread"  # the disk here refused, which says nothing about the copy


@dataclass(frozen=True, slots=True)
class Checked:
    """A received copy of which all was here, and what it was found to be."""

    index: int
    term: int
    bytes_total: int
    finding: Finding


class SnapshotStore(Protocol):
    """Source and sink of copies of the state."""

    def latest(self) -> SnapshotFile | None:
        """The copy to send; None when there is none that may be sent."""

    def request(self) -> None:
        """Make a fresh copy in the background."""

    def refused(self, snapshot: SnapshotFile, peer: str) -> None:
        """A peer received all of this copy and found it unsound."""

    def rotten(self, snapshot: SnapshotFile) -> None:
        """This copy could not be read back as it was written: it is never handed out again."""

    def receive(self, chunk: SnapshotChunk) -> int:
        """Take a chunk; the offset wanted next. With the last one the checking begins, off the loop."""

    def checked(self) -> Checked | None:
        """The received copy, once it has been checked; None while there is none or it is checked."""

    def abort(self) -> None:
        """Forget what was received."""

    def install(self, index: int, term: int) -> None:
        """Make the copy that was found sound the state in force, durably."""

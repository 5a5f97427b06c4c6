"""What an engine needs of its owner."""

from __future__ import annotations

from collections.abc import Mapping
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

    def read(self, offset: int, count: int) -> bytes: ...


class SnapshotStore(Protocol):
    """Source and sink of copies of the state."""

    def latest(self) -> SnapshotFile | None: ...

    def request(self) -> None:
        """Make a fresh copy in the background."""

    def receive(self, chunk: SnapshotChunk) -> int:
        """Take a chunk; the offset wanted next."""

    def is_complete(self) -> bool: ...

    def abort(self) -> None: ...

    def install(self, index: int, term: int) -> None:
        """Make what was received the state in force, durably. Raises Damaged if it is not sound."""

"""Looks at what a peer says are log entries before they may become some: every node must apply what is in the log."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from quorumesh.v1.ledger_pb2 import Entry
from quorumesh.v1.peer_pb2 import AppendEntries

from consensus.engine.codec import REGULAR
from consensus.engine.config import COUNTED_MS_MAX


def is_readable(append: AppendEntries) -> bool:
    """Whether every node could read the entries: all are whole, and their times are times.

    What their commands ask for is the ledger's to judge: it refuses, the same on every node.
    """
    return all(_is_entry(each.command) for each in append.entries)


def _is_entry(command: bytes) -> bool:
    if command[:1] != bytes([REGULAR]):
        return True  # the engine knows the others, and judges them
    try:
        entry = Entry.FromString(command[1:])
    except DecodeError:
        return False
    return entry.counted_ms <= COUNTED_MS_MAX and entry.wall_ms <= COUNTED_MS_MAX

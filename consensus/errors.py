"""Failures of the world that consensus reports. A refusal is not here: it is an Outcome with a Reason.

ConsensusError
├── Unavailable        nothing was written; waiting helps (no leader, no quorum, overloaded)
│   ├── Removed        this node is no part of the mesh any more: ask another one
│   └── DiskFull       nothing was written: this node's disk has no room; making some helps
├── ChangeRefused      a voter is not added or removed, and why
├── OutcomeUnknown     it may or may not have been written; send the same command again
├── StorageFailed      the disk refused; the node has stepped down
└── Damaged            stored bytes are not what was written; the node refuses to start
"""

from __future__ import annotations

from enum import StrEnum


class ConsensusError(Exception):
    """Any failure of the world that consensus reports."""


class Unavailable(ConsensusError):
    """Nothing was written. Carries why, and after how many ms another try makes sense."""

    def __init__(self, why: str, *, retry_ms: int = 500) -> None:
        super().__init__(why)
        self.why = why
        self.retry_ms = retry_ms


class Removed(Unavailable):
    """This node was removed from the mesh. Waiting does not help here; another node does."""

    def __init__(self) -> None:
        super().__init__("this node was removed from the mesh: ask another one")


class Refusal(StrEnum):
    """Why a voter is not added or removed."""

    NOT_LEADER = "this node does not lead"
    CHANGE_UNDER_WAY = "another change of voters is under way"
    HANDING_OVER = "the leader hands over before it is removed"
    NOT_CAUGHT_UP = "the node does not hold what was written so far"
    NOT_KNOWN_YET = "the leader is new and does not know yet who is alive"
    NOT_A_MEMBER = "whoever asks is no member of the mesh"
    UNKNOWN_NODE = "no such node is a member of the mesh"
    LAST_VOTER = "the last voter cannot be removed"
    NO_SEAT = "the mesh has as many voters as it may have"
    NO_LIVE_MAJORITY = "too few of the voters that would be left are alive"


class ChangeRefused(ConsensusError):
    """A voter was not added or removed; nothing was changed."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.value)
        self.refusal = refusal


class DiskFull(Unavailable):
    """Nothing was written, for want of room on this node's disk. It comes back by itself."""

    def __init__(self, why: str) -> None:
        super().__init__(why, retry_ms=1_000)


class OutcomeUnknown(ConsensusError):
    """The command was sent and its outcome did not come back. Commands are idempotent: resend."""


class StorageFailed(ConsensusError):
    """A write or sync failed (disk full, I/O error). Nothing that depended on it was said."""


class Damaged(ConsensusError):
    """Bytes on disk fail their checksum below the last provably synced group, or are missing."""

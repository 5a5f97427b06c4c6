"""Failures of the world that consensus reports. A refusal is not here: it is an Outcome with a Reason.

ConsensusError
├── Unavailable        nothing was written; waiting helps (no leader, no quorum, overloaded)
├── OutcomeUnknown     it may or may not have been written; send the same command again
├── StorageFailed      the disk refused; the node has stepped down
└── Damaged            stored bytes are not what was written; the node refuses to start
"""

from __future__ import annotations


class ConsensusError(Exception):
    """Any failure of the world that consensus reports."""


class Unavailable(ConsensusError):
    """Nothing was written. Carries why, and after how many ms another try makes sense."""

    def __init__(self, why: str, *, retry_ms: int = 500) -> None:
        super().__init__(why)
        self.why = why
        self.retry_ms = retry_ms


class OutcomeUnknown(ConsensusError):
    """The command was sent and its outcome did not come back. Commands are idempotent: resend."""


class StorageFailed(ConsensusError):
    """A write or sync failed (disk full, I/O error). Nothing that depended on it was said."""


class Damaged(ConsensusError):
    """Bytes on disk fail their checksum below the last provably synced group, or are missing."""

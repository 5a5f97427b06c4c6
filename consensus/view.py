"""What a node can say of its part in consensus at a moment."""

from __future__ import annotations

from dataclasses import dataclass

HEARD_MS_MAX = 2_000  # a node that has not heard a leader for so long calls itself read-only


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A snapshot of counters and states; soft, for status and for choosing where to send."""

    node_id: str
    role: str
    leader_id: str
    term: int
    revision: int
    commit_index: int
    writable: bool
    leader_age_ms: int
    counted_ms: int
    digest: bytes
    voters: tuple[str, ...]
    waiting_count: int
    compaction_count: int
    snapshot_install_count: int
    journal_bytes: int
    ledger_bytes: int
    trouble: str
    is_disk_full: bool = False

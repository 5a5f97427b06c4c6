"""What an engine is told once, and the bounds it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

COMMAND_BYTES_MAX = 1 << 20
APPEND_BYTES_MAX = 256 << 10  # of entries in one AppendEntries, unless one entry alone is larger
APPEND_ENTRIES_MAX = 512  # in one AppendEntries
WINDOW_FRAMES_MAX = 32  # AppendEntries with entries under way to one peer
APPENDS_PER_TURN_MAX = 4  # of them begun in one turn: a window at once would hold the loop up
CHUNK_BYTES_MAX = 262_144
WINDOW_CHUNKS_MAX = 8  # snapshot chunks under way to one peer
SNAPSHOT_RESEND_MS = 1_000
SNAPSHOT_REFUSED_MS = 1_000  # a peer that threw a copy away is sent none for so long
SNAPSHOT_UNREAD_MS = 5_000  # the same when its own disk refused the copy
NEEDED_MS_MAX = 5_000  # a peer not heard for so long holds up no compaction
OUTBOX_FRAMES_MAX = 65_536
APPLY_ENTRIES_PER_TICK_MAX = 256
APPLY_MS_PER_TICK_MAX = 20  # then heartbeats have their turn; one entry may take longer
LINK_LOST_WAIT_MS = (50, 150)  # before asking for pre-votes once the link to the leader broke
# No term or time that was counted comes near these, and what is stored has room for a little more.
TERM_MAX = 1 << 62
COUNTED_MS_MAX = 1 << 62
NEVER_MS = -1_000_000_000


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Who this node is, the voters its ledger knows (node id to address), and the timings."""

    node_id: str
    voters: dict[str, str] = field(default_factory=dict)
    election_ms_min: int = 400
    election_ms_max: int = 900
    heartbeat_ms: int = 60
    leader_fallback_ms: int = 1_500

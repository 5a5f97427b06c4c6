"""How a leader sends a copy of the state to a peer whose next entry is no longer in the journal."""

from __future__ import annotations

from quorumesh.v1.peer_pb2 import Frame, SnapshotChunk, SnapshotReply

from consensus.engine.config import (
    CHUNK_BYTES_MAX,
    SNAPSHOT_REFUSED_MS,
    SNAPSHOT_RESEND_MS,
    SNAPSHOT_UNREAD_MS,
    WINDOW_CHUNKS_MAX,
)
from consensus.engine.ports import SnapshotFile
from consensus.engine.seat import Progress, Seat
from consensus.errors import Damaged


def send_snapshot(seat: Seat, peer: str, progress: Progress) -> None:
    """Send chunks within the window; ask for a copy if there is none that the journal continues.

    Once the peer has all of it, it is asked from time to time whether it still has: it may have
    been started anew while it checked the copy. One that threw a copy away waits for the next: a
    peer whose disk refuses would else be sent one after the other.
    """
    if seat.now_ms() < progress.no_copy_until_ms:
        return
    if progress.snapshot is None:
        latest = seat.snapshots.latest()
        if latest is None or latest.index < seat.journal.base_index:
            seat.snapshots.request()
            return
        progress.snapshot, progress.chunk_sent, progress.chunk_acked = latest, 0, 0
        progress.chunk_ms = seat.now_ms()
        seat.counters.snapshots_sent += 1
    snapshot = progress.snapshot
    is_late = seat.now_ms() - progress.chunk_ms >= SNAPSHOT_RESEND_MS
    if is_late and progress.chunk_acked == snapshot.bytes_total:
        _say_chunk(seat, peer, progress, snapshot, b"")
    if is_late and progress.chunk_sent > progress.chunk_acked:
        progress.chunk_sent = progress.chunk_acked
    while (
        progress.chunk_sent < snapshot.bytes_total
        and progress.chunk_sent - progress.chunk_acked < WINDOW_CHUNKS_MAX * CHUNK_BYTES_MAX
    ):
        try:
            data = snapshot.read(progress.chunk_sent, CHUNK_BYTES_MAX)
        except Damaged:
            seat.snapshots.rotten(snapshot)
            progress.snapshot = None
            return
        if not _say_chunk(seat, peer, progress, snapshot, data):
            return


def _say_chunk(
    seat: Seat, peer: str, progress: Progress, snapshot: SnapshotFile, data: bytes
) -> bool:
    chunk = SnapshotChunk(
        index=snapshot.index,
        entry_term=snapshot.term,
        offset=progress.chunk_sent,
        data=data,
        total_bytes=snapshot.bytes_total,
        digest=snapshot.digest,
        commit_index=seat.raft.commit_index,
    )
    is_sent = seat.say(peer, Frame(snapshot=chunk))
    if is_sent:
        progress.chunk_sent += len(data)
        progress.chunk_ms = progress.sent_ms = seat.now_ms()
    return is_sent


def chunk_answered(seat: Seat, peer: str, reply: SnapshotReply) -> None:
    """Move on by what the peer has; once it installed the copy, go back to sending entries."""
    progress = seat.peers.get(peer)
    if progress is None or not seat.raft.is_leader:
        return
    progress.heard_ms = seat.now_ms()
    if reply.installed:
        if reply.index <= seat.journal.last_index:
            progress.next_index = max(progress.match_index, reply.index) + 1
            progress.is_probing = True
            progress.probed_ms = seat.now_ms() - seat.config.heartbeat_ms
            progress.snapshot = None
        return
    if progress.snapshot is None or progress.snapshot.index != reply.index:
        return
    if reply.disk_refused:
        # The copy is as good as before for whoever can write it down.
        progress.snapshot, progress.no_copy_until_ms = None, seat.now_ms() + SNAPSHOT_UNREAD_MS
        return
    if reply.next_offset == 0 and progress.chunk_acked == progress.snapshot.bytes_total:
        # It had all of it and threw it away: not even the second time is it sent without a doubt.
        seat.snapshots.refused(progress.snapshot, peer)
        progress.snapshot, progress.no_copy_until_ms = None, seat.now_ms() + SNAPSHOT_REFUSED_MS
        return
    offset = min(reply.next_offset, progress.snapshot.bytes_total)
    if offset < progress.chunk_acked:
        progress.chunk_acked = progress.chunk_sent = offset
    elif offset > progress.chunk_acked:
        progress.chunk_acked = offset
        progress.chunk_sent = max(progress.chunk_sent, offset)
    progress.chunk_ms = seat.now_ms()

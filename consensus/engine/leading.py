"""What a leader does: sends entries within each peer's window, counts what is durable, commits."""

from __future__ import annotations

from quorumesh.v1.peer_pb2 import AppendEntries, AppendReply, Frame, LogEntry, TimeoutNow

from consensus.engine import sending
from consensus.engine.codec import Malformed
from consensus.engine.config import (
    APPEND_BYTES_MAX,
    APPEND_ENTRIES_MAX,
    APPENDS_PER_TURN_MAX,
    WINDOW_FRAMES_MAX,
)
from consensus.engine.seat import Progress, Seat


def begin_to_lead(seat: Seat) -> None:
    """Elected: append the no-op of this term and probe every peer."""
    now_ms = seat.now_ms()
    seat.counters.led += 1
    seat.fed.clear()
    seat.outbox.clear()
    seat.peers = {
        peer: Progress(next_index=seat.journal.last_index + 1, heard_ms=now_ms)
        for peer in seat.others()
    }
    seat.raft.lead()


def feed(seat: Seat, peer: str) -> None:
    """Send the log to a peer that is no voter yet. It is not counted."""
    if seat.raft.is_leader and peer not in seat.peers and peer != seat.node_id:
        seat.fed.add(peer)
        seat.peers[peer] = Progress(next_index=seat.journal.last_index + 1, heard_ms=seat.now_ms())


def unfeed(seat: Seat, peer: str) -> None:
    """Send the log no more to a peer that is no voter."""
    seat.fed.discard(peer)
    if peer not in seat.voters:
        seat.peers.pop(peer, None)


def lead(seat: Seat) -> bool:
    """One turn of leadership: commit what a majority holds durably, or give up a lost majority.

    True: more can be sent at once, in another turn.
    """
    advance_commit(seat)
    if _has_lost_majority(seat):
        seat.step_down()
        return False
    has_more = False
    for peer in sorted(seat.peers):
        if peer in seat.connected:
            has_more |= send_entries(seat, peer, seat.peers[peer])
    return has_more


def advance_commit(seat: Seat) -> None:
    """Commit up to the last entry of this term that a majority of voters holds durably.

    The leader counts itself like any other: only up to its own synced index.
    """
    held = [
        seat.journal.synced_index
        if voter == seat.node_id
        else (seat.peers[voter].match_index if voter in seat.peers else 0)
        for voter in seat.voters
    ]
    if not held:
        return
    index = sorted(held, reverse=True)[seat.quorum_count() - 1]
    if index > seat.raft.commit_index and seat.journal.term_at(index) == seat.raft.term:
        seat.raft.commit_index = index


def live_nodes(seat: Seat) -> set[str]:
    """This leader and the peers that have answered it lately."""
    answered = {peer for peer, progress in seat.peers.items() if progress.match_index > 0}
    return (hoped_nodes(seat) & answered) | {seat.node_id}


def hoped_nodes(seat: Seat) -> set[str]:
    """As live_nodes, and those whose time to answer a new leader has not run out."""
    since_ms = seat.now_ms() - seat.config.leader_fallback_ms
    heard = {peer for peer, progress in seat.peers.items() if progress.heard_ms > since_ms}
    return heard | {seat.node_id}


def _has_lost_majority(seat: Seat) -> bool:
    return len(hoped_nodes(seat) & set(seat.voters)) < seat.quorum_count()


def send_entries(seat: Seat, peer: str, progress: Progress) -> bool:
    """Send what the peer's window allows, and a heartbeat when one is due. True: there is more."""
    now_ms = seat.now_ms()
    is_heartbeat_due = now_ms - progress.sent_ms >= seat.config.heartbeat_ms
    if progress.next_index <= seat.journal.base_index:
        if is_heartbeat_due:
            _send_append(seat, peer, progress, seat.journal.base_index, with_entries=False)
        sending.send_snapshot(seat, peer, progress)
        return False
    progress.snapshot = None
    if progress.is_probing:
        if now_ms - progress.probed_ms >= seat.config.heartbeat_ms:
            progress.probed_ms = now_ms
            _send_append(seat, peer, progress, progress.next_index - 1, with_entries=True)
        return False
    sent_count = 0
    while progress.next_index <= seat.journal.last_index:
        if len(progress.inflight) >= WINDOW_FRAMES_MAX:
            break
        if sent_count == APPENDS_PER_TURN_MAX:
            return True
        last = _send_append(seat, peer, progress, progress.next_index - 1, with_entries=True)
        if last is None:
            return False
        progress.inflight.append(last)
        progress.next_index = last + 1
        sent_count += 1
    # A follower answers its clients once it has applied: a new commit does not wait for a heartbeat.
    is_silent = is_heartbeat_due and sent_count == 0
    if is_silent or progress.commit_said < seat.raft.commit_index:
        _send_append(seat, peer, progress, progress.next_index - 1, with_entries=False)
    return False


def _send_append(
    seat: Seat, peer: str, progress: Progress, prev_index: int, *, with_entries: bool
) -> int | None:
    """Send one AppendEntries; the last index it carries, or None when the link took nothing."""
    prev_term = seat.journal.term_at(prev_index)
    assert prev_term is not None, f"entry {prev_index} is not in the journal"
    append = AppendEntries(
        prev_index=prev_index,
        prev_term=prev_term,
        commit_index=seat.raft.commit_index,
        counted_ms=max(0, seat.machine.counted_ms()),
        held_index=progress.match_index,
    )
    last = prev_index
    if with_entries:
        rows = seat.raft.rows_from(prev_index + 1, APPEND_ENTRIES_MAX, APPEND_BYTES_MAX)
        for command, index, term in rows:
            append.entries.append(LogEntry(index=index, term=term, command=command))
            last = index
    if not seat.say(peer, Frame(append=append)):
        return None
    progress.sent_ms = seat.now_ms()
    progress.commit_said = seat.raft.commit_index
    return last


def append_answered(seat: Seat, peer: str, reply: AppendReply) -> None:
    """Move the peer's progress. The reply is of this term, so it speaks of this leadership."""
    progress = seat.peers.get(peer)
    if progress is None or not seat.raft.is_leader:
        return
    progress.heard_ms = seat.now_ms()
    if reply.success:
        last = reply.next_index - 1
        if last > seat.journal.last_index:
            raise Malformed(f"{peer} acknowledges {last}, which is not here")
        progress.match_index = max(progress.match_index, last)
        progress.next_index = max(progress.next_index, last + 1)
        progress.is_probing = False
        while progress.inflight and progress.inflight[0] <= progress.match_index:
            progress.inflight.popleft()
    elif reply.reset and reply.next_index > progress.match_index:
        progress.next_index = max(
            progress.match_index + 1, min(reply.next_index, progress.next_index)
        )
        progress.is_probing = True
        progress.probed_ms = seat.now_ms() - seat.config.heartbeat_ms
        progress.inflight.clear()


def connected(seat: Seat, peer: str) -> None:
    """A new connection: what was under way on the old one may be lost."""
    progress = seat.peers.get(peer)
    if progress is not None:
        progress.is_probing = True
        progress.inflight.clear()
        progress.next_index = max(
            progress.match_index + 1, min(progress.next_index, seat.journal.last_index + 1)
        )
        progress.probed_ms = progress.sent_ms = seat.now_ms() - seat.config.heartbeat_ms
        # It says with the first chunk what it has: nothing, if it was started anew, which is no refusal.
        progress.chunk_sent = progress.chunk_acked = 0


def transfer(seat: Seat, peer: str) -> bool:
    """Ask a voter that holds everything to take over. False: not the leader, or it lags."""
    progress = seat.peers.get(peer)
    if not seat.raft.is_leader or progress is None or peer not in seat.voters:
        return False
    if progress.match_index != seat.journal.last_index:
        return False
    return seat.say(peer, Frame(timeout_now=TimeoutNow()))

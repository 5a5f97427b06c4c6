"""What a follower does: verify, cut only at a real conflict, store, answer."""

from __future__ import annotations

from quorumesh.v1.peer_pb2 import (
    AppendEntries,
    AppendReply,
    Frame,
    LogEntry,
    SnapshotChunk,
    SnapshotReply,
)

from consensus.engine.codec import Malformed, is_command
from consensus.engine.config import COUNTED_MS_MAX
from consensus.engine.ports import Finding
from consensus.engine.seat import Seat


def hear_leader(seat: Seat, peer: str, term: int) -> bool:
    """Accept the sender as leader of this term. False: it is an old one, and is told our term."""
    raft = seat.raft
    if term < raft.term:
        seat.say(peer, Frame(append_reply=AppendReply()))
        return False
    if raft.is_leader and term == raft.term:
        raise Malformed(f"{peer} says that it leads in term {term}, in which this node does")
    if term > raft.term or raft.leader_id != peer:
        seat.step_down(term, leader=peer)
        seat.snapshots.abort()
    elif raft.is_candidate:
        seat.step_down(leader=peer)
    seat.leader_heard_ms, seat.is_leader_lost = seat.now_ms(), False
    seat.prevote_term = 0
    raft.wait_for_election()
    return True


def entries_received(seat: Seat, peer: str, term: int, append: AppendEntries) -> None:
    """Store what is new; commit no further than what this very message verified."""
    if not hear_leader(seat, peer, term):
        return
    assert_sound(append, term)
    journal, raft = seat.journal, seat.raft
    if append.held_index > journal.last_index:
        # Nothing is withdrawn that agrees with the leader of its term: the disk has lost it.
        seat.damage = (
            f"this node has said that it holds entry {append.held_index}, and its journal ends at "
            f"{journal.last_index}: acknowledged entries are lost"
        )
        return
    seat.machine.leader_counted_ms(append.counted_ms)
    prev_index, entries = append.prev_index, list(append.entries)
    if prev_index < journal.base_index:
        # What is below the base is committed, so it is the same in every leader's log.
        entries = [entry for entry in entries if entry.index > journal.base_index]
        prev_index = journal.base_index
        if not entries:
            _answer(seat, peer, verified=min(append.prev_index + len(append.entries), prev_index))
            return
    elif prev_index > journal.last_index:
        _back_up(seat, peer, journal.last_index + 1)
        return
    elif journal.term_at(prev_index) != append.prev_term:
        _back_up(seat, peer, _first_of_term(seat, prev_index))
        return
    _store(seat, entries)
    verified = prev_index + len(entries)
    commit = min(append.commit_index, verified)
    if commit > raft.commit_index:
        raft.commit_index = commit
    if entries or not seat.has_just_answered(peer, verified):
        _answer(seat, peer, verified=verified)


def assert_sound(append: AppendEntries, leader_term: int) -> None:
    """Malformed for entries that are no log: gaps, terms going back, unknown kinds; or no time."""
    if append.entries and append.entries[-1].term > leader_term:
        raise Malformed(f"an entry of a term after {leader_term}, which its sender leads in")
    if append.held_index > append.prev_index:
        raise Malformed("what the receiver holds lies before what it is sent")
    if append.counted_ms > COUNTED_MS_MAX:
        raise Malformed(f"counted time cannot have come to {append.counted_ms} ms")
    index, term = append.prev_index, append.prev_term
    for entry in append.entries:
        if entry.index != index + 1 or entry.term < term or not is_command(entry.command):
            raise Malformed(f"entry {entry.index} of term {entry.term} after {index} of {term}")
        index, term = entry.index, entry.term


class Contradiction(AssertionError):
    """A leader would have this node cut what is committed: a bug somewhere, and the node stops."""


def _store(seat: Seat, entries: list[LogEntry]) -> None:
    journal = seat.journal
    for entry in entries:
        if entry.index <= journal.last_index:
            if journal.term_at(entry.index) == entry.term:
                continue
            if entry.index <= seat.raft.commit_index:
                raise Contradiction(f"entry {entry.index} is committed, and a leader has another")
            seat.counters.truncations += 1
            seat.raft.truncate_from(entry.index)
            seat.recount_voters()
        journal.append(entry.index, entry.term, entry.command)
        seat.appended(entry.command)


def _first_of_term(seat: Seat, index: int) -> int:
    """The first entry of the conflicting term: the leader backs up by the whole term at once."""
    journal, commit = seat.journal, seat.raft.commit_index
    term = journal.term_at(index)
    while index - 1 > max(commit, journal.base_index) and journal.term_at(index - 1) == term:
        index -= 1
    if index <= commit:
        raise Malformed(f"a log that is another one at {index}, which is committed ({commit})")
    return index


def _answer(seat: Seat, peer: str, *, verified: int) -> None:
    offset = 0 if verified <= seat.journal.synced_index else seat.journal.written_offset
    reply = AppendReply(next_index=verified + 1, success=True)
    if seat.say(peer, Frame(append_reply=reply), needs_offset=offset):
        seat.answered = (peer, verified, seat.now_ms())


def _back_up(seat: Seat, peer: str, next_index: int) -> None:
    reply = AppendReply(next_index=next_index, reset=True)
    seat.say(peer, Frame(append_reply=reply), needs_offset=seat.journal.written_offset)


def chunk_received(seat: Seat, peer: str, term: int, chunk: SnapshotChunk) -> None:
    """Collect a copy of the state that is newer than the commit. Once whole it is checked off the loop."""
    if not hear_leader(seat, peer, term):
        return
    if chunk.entry_term > term:
        raise Malformed(f"a copy as of a term after {term}, which its sender leads in")
    if chunk.index <= seat.raft.commit_index:
        seat.snapshots.abort()
        _answer_chunk(seat, peer, chunk.index, seat.raft.commit_index, installed=True)
        return
    _answer_chunk(seat, peer, chunk.index, seat.snapshots.receive(chunk))


def install_if_checked(seat: Seat) -> None:
    """Install a copy that was found sound; tell the leader of one that was not.

    Only a copy of the leader that is followed now: `hear_leader` forgets those of others, and who
    stands or leads has no use for one.
    """
    checked = seat.snapshots.checked()
    if checked is None:
        return
    raft, leader = seat.raft, seat.raft.leader_id
    if raft.is_leader or not leader or checked.index <= raft.commit_index:
        seat.snapshots.abort()
    elif checked.finding is not Finding.SOUND:
        seat.snapshots.abort()
        is_unread = checked.finding is Finding.UNREAD
        reply = SnapshotReply(index=checked.index, disk_refused=is_unread)
        seat.say(leader, Frame(snapshot_reply=reply))
    else:
        seat.snapshots.install(checked.index, checked.term)
        _begin_after(seat, checked.index, checked.term)
        _answer_chunk(seat, leader, checked.index, checked.bytes_total, installed=True)


def _begin_after(seat: Seat, index: int, term: int) -> None:
    """The state is now that of `index`: the journal begins there and keeps what follows it."""
    journal = seat.journal
    journal.reset(index, term, keep_suffix=journal.term_at(index) == term)
    seat.raft.jumped_to(index)
    seat.reload_voters(seat.machine.voters())
    seat.counters.snapshots_installed += 1


def _answer_chunk(
    seat: Seat, peer: str, index: int, offset: int, *, installed: bool = False
) -> None:
    reply = SnapshotReply(index=index, next_offset=offset, installed=installed)
    seat.say(peer, Frame(snapshot_reply=reply))

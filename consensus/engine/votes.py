"""Elections: pre-votes, votes, and who may stand. Raft thesis 4.2.3 and 9.6.

A departure from both: a vote is never asked for without a majority of pre-votes, except when the
leader itself hands over, and no vote is given while a leader has been heard within the minimum
election time.
"""

from __future__ import annotations

from quorumesh.v1.peer_pb2 import Frame, PreVote, PreVoteReply, RequestVote, VoteReply

from consensus.engine.config import LINK_LOST_WAIT_MS
from consensus.engine.leading import begin_to_lead
from consensus.engine.seat import Seat


def stand_if_due(seat: Seat) -> None:
    """Ask for pre-votes when no leader has been heard for long enough."""
    raft = seat.raft
    if raft.is_leader or not seat.is_voter:
        return
    if len(seat.voters) == 1:
        stand(seat)
        return
    if not raft.is_election_due:
        return
    raft.wait_for_election()
    seat.prevote_term = raft.term + 1
    seat.prevotes = {seat.node_id}
    seat.counters.prevotes += 1
    request = PreVote(
        term=seat.prevote_term, last_index=seat.journal.last_index, last_term=seat.journal.last_term
    )
    for peer in seat.others():
        seat.say(peer, Frame(pre_vote=request), needs_offset=seat.journal.written_offset)


def stand(seat: Seat, *, transfer: bool = False) -> None:
    """Become a candidate in the next term; a node that is a majority by itself leads at once."""
    raft = seat.raft
    raft.stand()
    raft.enter_term(raft.term + 1, seat.node_id)
    seat.outbox.clear()
    raft.wait_for_election()
    seat.prevote_term, seat.votes = 0, {seat.node_id}
    seat.counters.elections += 1
    request = RequestVote(
        last_index=seat.journal.last_index, last_term=seat.journal.last_term, transfer=transfer
    )
    for peer in seat.others():
        seat.say(peer, Frame(request_vote=request), needs_offset=seat.journal.written_offset)
    _lead_if_elected(seat)


def pre_vote_asked(seat: Seat, peer: str, request: PreVote) -> None:
    """Would this node vote for the peer? Nothing changes by answering."""
    if seat.has_heard_leader() or request.term <= seat.raft.term:
        return
    if _is_up_to_date(seat, request.last_term, request.last_index):
        seat.say(peer, Frame(pre_vote_reply=PreVoteReply(term=request.term)))


def pre_vote_given(seat: Seat, peer: str, reply: PreVoteReply) -> None:
    if seat.raft.is_leader or reply.term != seat.prevote_term or reply.term != seat.raft.term + 1:
        return
    if peer not in seat.voters:
        return
    seat.prevotes.add(peer)
    if len(seat.prevotes & set(seat.voters)) >= seat.quorum_count():
        stand(seat)


def vote_asked(seat: Seat, peer: str, term: int, request: RequestVote) -> None:
    """Vote once per term, durably before the answer, for a log at least as good as this one.

    Also when this node knows of no vote of its own: its candidate may have the entry that gives it
    one, and counts it only then (Raft thesis 4.1).
    """
    raft = seat.raft
    if term < raft.term:
        return
    if seat.has_heard_leader() and not request.transfer:
        return
    if term > raft.term:
        seat.step_down(term)
    if raft.is_leader or not _is_up_to_date(seat, request.last_term, request.last_index):
        return
    if raft.voted_for not in (None, peer):
        return
    raft.enter_term(term, peer)
    raft.wait_for_election()
    seat.say(peer, Frame(vote_reply=VoteReply()))


def vote_given(seat: Seat, peer: str, term: int) -> None:
    if seat.raft.is_candidate and term == seat.raft.term and peer in seat.voters:
        seat.votes.add(peer)
        _lead_if_elected(seat)


def leader_lost(seat: Seat) -> None:
    """The link to the leader broke: it no longer counts as heard; a short random wait begins."""
    seat.is_leader_lost = True
    shortest, longest = LINK_LOST_WAIT_MS
    seat.raft.wait_for_election(seat.rng.uniform(shortest, longest) / 1000)


def hand_over_asked(seat: Seat, peer: str, term: int) -> None:
    """The leader asks this node to take over now."""
    if term == seat.raft.term and peer == seat.raft.leader_id and seat.is_voter:
        stand(seat, transfer=True)


def _is_up_to_date(seat: Seat, last_term: int, last_index: int) -> bool:
    return (last_term, last_index) >= (seat.journal.last_term, seat.journal.last_index)


def _lead_if_elected(seat: Seat) -> None:
    if len(seat.votes & set(seat.voters)) >= seat.quorum_count():
        begin_to_lead(seat)

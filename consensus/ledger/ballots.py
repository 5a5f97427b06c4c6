"""Hearing votes and deciding as soon as it is sure."""

from __future__ import annotations

from quorumesh.v1.tasks_pb2 import BallotInfo

from consensus.ledger.events import note_ballot
from consensus.ledger.records import (
    BALLOT_DECIDED,
    BALLOT_OPEN,
    BALLOT_UNDECIDED,
    REF_SHIFT,
    SUCCEEDED,
    Ballot,
    Subtask,
    Task,
)
from consensus.ledger.store import Store
from consensus.ledger.tasks import cancel_subtask, fail_above


def hear(store: Store, task: Task, voter: Subtask) -> None:
    """A voter has ended: count its vote if it has one, and decide if that settles it."""
    ballot = store.ballot((task.seq << REF_SHIFT) | voter.ballot_n)
    if ballot.state != BALLOT_OPEN:
        return
    ballot.heard_count += 1
    info = BallotInfo.FromString(ballot.tallies)
    if voter.state == SUCCEEDED:
        tally = next((t for t in info.tallies if t.label == voter.label), None)
        if tally is None:
            tally = info.tallies.add(label=voter.label or "")
        tally.votes += 1
        ballot.tallies = info.SerializeToString(deterministic=True)
    store.mark_ballot(ballot)
    open_count = ballot.voter_count - ballot.heard_count
    if ballot.hear_all and open_count:
        return
    verdict = decide(
        [(t.label, t.votes) for t in info.tallies],
        voter_count=ballot.voter_count,
        open_count=open_count,
        plurality=bool(ballot.plurality),
    )
    if verdict is None:
        return
    if not verdict:
        _leave_undecided(store, task, ballot)
    else:
        _decide(store, task, ballot, verdict)


def decide(
    tallies: list[tuple[str, int]], *, voter_count: int, open_count: int, plurality: bool
) -> list[str] | None:
    """The winning labels (more than one: a tie), none ever to win ([]), or None: not sure yet."""
    votes = sorted((count for _, count in tallies), reverse=True)
    best, second = [*votes, 0, 0][:2]
    majority = voter_count // 2 + 1
    if best >= majority or (plurality and best > second + open_count):
        return [label for label, count in tallies if count == best]
    if not plurality and best + open_count < majority:
        return []
    if open_count:
        return None
    return [label for label, count in tallies if count == best] if plurality else []


def _voters(store: Store, task: Task, ballot: Ballot) -> list[Subtask]:
    base = task.seq << REF_SHIFT
    return [store.subtask(base | n) for n in sorted(store.edge(ballot.ref).needs)]


def _decide(store: Store, task: Task, ballot: Ballot, labels: list[str]) -> None:
    voters = _voters(store, task, ballot)
    by_id = sorted(voters, key=lambda voter: voter.id)
    label = next(v.label or "" for v in by_id if v.state == SUCCEEDED and v.label in labels)
    winner = next(v for v in voters if v.state == SUCCEEDED and v.label == label)
    ballot.state = BALLOT_DECIDED
    ballot.label = label
    ballot.output_n = winner.output_n
    ballot.output_bytes = winner.output_bytes
    store.mark_ballot(ballot)
    note_ballot(store, task, ballot.id, label)
    _cancel_stragglers(store, task, ballot, voters)
    store.settled.append(ballot)


def _cancel_stragglers(store: Store, task: Task, ballot: Ballot, voters: list[Subtask]) -> None:
    for voter in voters:
        if not voter.has_ended:
            cancel_subtask(store, task, voter, f"ballot {ballot.id} was decided without it")
            store.settled.append(voter)


def _leave_undecided(store: Store, task: Task, ballot: Ballot) -> None:
    ballot.state = BALLOT_UNDECIDED
    store.mark_ballot(ballot)
    note_ballot(store, task, ballot.id, "UNDECIDED: no label has a majority")
    fail_above(store, task, ballot, "UNDECIDED", f"ballot {ballot.id}: no label has a majority")
    if task.state == 1:
        _cancel_stragglers(store, task, ballot, _voters(store, task, ballot))

"""The way of commands into the log: order, resending, bounds and deadlines."""

from __future__ import annotations

from quorumesh.v1.ledger_pb2 import Barrier, Command, Outcome, Proposal, Submit
from quorumesh.v1.values_pb2 import Reason

from consensus.errors import ConsensusError, OutcomeUnknown, Unavailable
from consensus.proposals import (
    ENTRY_BYTES_MAX,
    ENTRY_UNITS_MAX,
    FINISHED_KEPT_MAX,
    PROPOSALS_WAITING_MAX,
    Proposals,
)

Result = list[Outcome] | ConsensusError


def proposals_of(*counts: int) -> tuple[Proposals, list[Result]]:
    proposals, results = Proposals(incarnation=7), list[Result]()
    for count in counts:
        commands = [Command(barrier=Barrier())] * count
        proposals.add(commands, deadline_ms=100, done=results.append)
    return proposals, results


def take(proposals: Proposals) -> list[int]:
    taken = proposals.take_unsent(units_max=ENTRY_UNITS_MAX, bytes_max=ENTRY_BYTES_MAX)
    return [proposal.sequence for proposal in taken]


def test_outcomes_come_back_together_in_the_order_proposed() -> None:
    proposals, results = proposals_of(2)
    assert take(proposals) == [1, 2]

    proposals.settle(2, Outcome(revision=9))
    assert results == []
    proposals.settle(1, Outcome(revision=8))

    assert [[outcome.revision for outcome in result] for result in results] == [[8, 9]]  # type: ignore[union-attr]


def test_a_second_arrival_of_a_proposal_finds_nobody_waiting() -> None:
    proposals, results = proposals_of(1)
    take(proposals)

    proposals.settle(1, Outcome(revision=3))
    proposals.settle(1, Outcome(revision=4))

    assert len(results) == 1 and len(proposals) == 0


def test_a_refusal_is_final_only_of_the_copy_that_was_sent_last() -> None:
    proposals, results = proposals_of(1)
    copies = []
    for _ in range(3):
        [sent] = proposals.take_unsent(units_max=1, bytes_max=ENTRY_BYTES_MAX)
        copies.append(Proposal.FromString(sent.SerializeToString()))
        proposals.resend_all()
    assert [(one.attempt, one.ByteSize()) for one in copies] == [
        (attempt, copies[0].ByteSize()) for attempt in (1, 2, 3)
    ]
    refused = Outcome(reason=Reason.NOT_FOUND)

    for early in copies[:2]:
        proposals.applied(early, refused)
    assert results == []
    proposals.applied(copies[2], refused)

    assert results == [[refused]]


def test_an_effect_is_final_whichever_copy_had_it() -> None:
    proposals, results = proposals_of(1)
    [sent] = proposals.take_unsent(units_max=1, bytes_max=ENTRY_BYTES_MAX)
    first = Proposal.FromString(sent.SerializeToString())
    proposals.resend_all()
    take(proposals)

    proposals.applied(first, Outcome(revision=5))

    assert results == [[Outcome(revision=5)]]


def test_after_a_change_of_leader_everything_without_outcome_is_sent_again_in_order() -> None:
    proposals, _ = proposals_of(1, 1, 1)
    take(proposals)
    proposals.settle(2, Outcome())

    proposals.resend_all()

    assert take(proposals) == [1, 3]


def test_what_was_never_sent_is_unavailable_and_what_was_sent_is_unknown() -> None:
    proposals, results = proposals_of(1, 1)
    proposals.take_unsent(units_max=1, bytes_max=ENTRY_BYTES_MAX)

    proposals.expire(99)
    assert results == []
    proposals.expire(100)

    assert [type(result) for result in results] == [OutcomeUnknown, Unavailable]
    assert len(proposals) == 0 and take(proposals) == []


def test_an_entry_takes_no_more_than_its_units() -> None:
    proposals, _ = proposals_of(ENTRY_UNITS_MAX + 1)

    assert len(take(proposals)) == ENTRY_UNITS_MAX
    assert len(take(proposals)) == 1


def test_an_entry_takes_no_more_than_its_bytes_but_always_one() -> None:
    proposals = Proposals(incarnation=1)
    big = Command(submit=Submit(spec=b"x" * (ENTRY_BYTES_MAX - 100)))
    proposals.add([big, big], deadline_ms=1, done=lambda _: None)

    assert take(proposals) == [1]
    assert take(proposals) == [2]


def test_room_ends_at_the_bound() -> None:
    proposals, _ = proposals_of(PROPOSALS_WAITING_MAX)

    assert proposals.has_room(0)
    assert not proposals.has_room(1)


def test_a_refused_proposal_is_sent_again() -> None:
    proposals, _ = proposals_of(2)
    take(proposals)

    proposals.put_back([2])

    assert take(proposals) == [2]


def test_batches_give_up_in_the_order_of_their_deadlines_and_finished_ones_are_forgotten() -> None:
    proposals, results = Proposals(incarnation=7), list[Result]()
    barrier = [Command(barrier=Barrier())]
    for deadline_ms in (300, 100, 200):
        proposals.add(barrier * 2, deadline_ms=deadline_ms, done=results.append)

    proposals.expire(150)
    assert (len(results), len(proposals)) == (1, 4)
    assert take(proposals) == [1, 2, 5, 6]
    proposals.expire(250)
    assert (len(results), len(proposals)) == (2, 2)
    for sequence in (1, 2):
        proposals.settle(sequence, Outcome())
    assert not isinstance(results[-1], ConsensusError)

    for _ in range(5_000):
        proposals.add(barrier, deadline_ms=10**6, done=lambda _: None)
        proposals.settle(take(proposals)[0], Outcome())
        proposals.expire(400)
    assert len(proposals._batches) <= FINISHED_KEPT_MAX + 1

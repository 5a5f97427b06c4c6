"""Bugs planted on purpose: the named tests notice them, so that they would notice them by accident."""

from __future__ import annotations

import pytest
from quorumesh.v1.ledger_pb2 import MembershipChange
from quorumesh.v1.peer_pb2 import Frame

from consensus.engine import Engine
from tests.engine.test_rule_10 import (
    one_change_at_a_time,
    removed_leader_does_not_count_itself,
    removed_voter_counts_for_nothing,
)
from tests.engine.test_rules import old_answer_counts_for_nothing, old_append_cuts_nothing


class IgnoresTheTermOfAnswers(Engine):
    """Takes every answer as one of its own term."""

    def _receive_in_term(self, peer: str, frame: Frame, term: int, kind: str) -> None:
        super()._receive_in_term(peer, frame, self.term, kind)


class CutsWhatAgrees(Engine):
    """Cuts its log at the first entry of every append, whether it agrees or not."""

    def _receive(self, peer: str, frame: Frame) -> None:
        for entry in frame.append.entries[:1]:
            if self._seat.journal.base_index < entry.index <= self.last_index:
                self._seat.journal.truncate_from(entry.index)
        super()._receive(peer, frame)


class ChangesTwoAtOnce(Engine):
    """Forgets that a change of voters is under way."""

    def change(self, change: MembershipChange) -> bool:
        self._seat.raft.note_change(0)
        return super().change(change)


class CountsRemovedVoters(Engine):
    """Goes on counting whoever was a voter before the change, itself included."""

    def change(self, change: MembershipChange) -> bool:
        before = self.voters
        is_appended = super().change(change)
        self._seat.voters = {**before, **self._seat.voters}
        return is_appended


def test_two_changes_of_voters_at_once_are_noticed() -> None:
    with pytest.raises(AssertionError, match="not True"):
        one_change_at_a_time(ChangesTwoAtOnce)


def test_counting_a_removed_voter_is_noticed() -> None:
    with pytest.raises(AssertionError, match="commit_index"):
        removed_voter_counts_for_nothing(CountsRemovedVoters)


def test_a_removed_leader_that_counts_itself_is_noticed() -> None:
    with pytest.raises(AssertionError, match="commit_index"):
        removed_leader_does_not_count_itself(CountsRemovedVoters)


def test_ignoring_the_term_of_answers_is_noticed() -> None:
    with pytest.raises(AssertionError):
        old_answer_counts_for_nothing(IgnoresTheTermOfAnswers)


def test_cutting_what_agrees_is_noticed() -> None:
    with pytest.raises(AssertionError):
        old_append_cuts_nothing(CutsWhatAgrees)

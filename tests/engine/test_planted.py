"""Bugs planted on purpose: the named tests notice them, so that they would notice them by accident."""

from __future__ import annotations

import pytest
from quorumesh.v1.peer_pb2 import Frame

from consensus.engine import Engine
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


def test_ignoring_the_term_of_answers_is_noticed() -> None:
    with pytest.raises(AssertionError):
        old_answer_counts_for_nothing(IgnoresTheTermOfAnswers)


def test_cutting_what_agrees_is_noticed() -> None:
    with pytest.raises(AssertionError):
        old_append_cuts_nothing(CutsWhatAgrees)

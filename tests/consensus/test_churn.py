"""Voters come and go at random, and nothing that was acknowledged is lost.

CHURN_SEEDS=N runs more lives than the 30 of every day.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.consensus.churn import Churn

SEEDS = int(os.environ.get("CHURN_SEEDS", "30"))
STEP = 10


@pytest.mark.parametrize("first", range(0, SEEDS, STEP))
def test_no_life_of_churn_breaks_what_membership_promises(tmp_path: Path, first: int) -> None:
    done = refused = written = 0
    for seed in range(first, first + STEP):
        churn = Churn(tmp_path / str(seed), seed)
        try:
            churn.run()
        except BaseException as failure:
            failure.add_note(f"seed {seed}")
            raise
        done += churn.changes_done
        refused += churn.changes_refused
        written += len(churn.acknowledged)

    # Otherwise it would have shown nothing.
    assert done >= 2 * STEP
    assert written >= 50 * STEP
    print(f"{STEP} lives: {done} changes made, {refused} refused, {written} writes")


class ManyAtOnce(Churn):
    """A leader that forgets that a change is under way."""

    def _start(self, node_id: str) -> None:
        super()._start(node_id)
        core = self.cluster.cores[node_id]
        core.engine._seat.raft.may_change = lambda: True


def test_changes_of_voters_made_at_once_are_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="under way"):
        for seed in range(20):
            ManyAtOnce(tmp_path / str(seed), seed).run()

"""Voters come and go at random, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
from pathlib import Path

from tests.consensus.churn import Churn

SEEDS = int(os.environ.get("CHURN_SEEDS", "30"))


def test_no_seed_of_churn_breaks_what_membership_promises(tmp_path: Path) -> None:
    done = refused = written = 0
    for seed in range(SEEDS):
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
    assert done >= 2 * SEEDS
    assert written >= 50 * SEEDS
    print(f"{SEEDS} seeds: {done} changes made, {refused} refused, {written} writes")

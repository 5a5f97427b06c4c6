"""Random faults: whatever links, processes and disks do, the log stays one log."""

from __future__ import annotations

import pytest

from tests.engine.faults import MODES, run_faults


@pytest.mark.parametrize("mode", MODES)
def test_no_seed_breaks_safety_or_leaves_the_mesh_without_a_leader(mode: str) -> None:
    for seed in range(20):
        world = run_faults(mode, seed)
        assert world.violations == [], f"python -m tests.engine --mode {mode} --seeds {seed}"
        # With the power gone most of the time, less gets through.
        assert len(world.acknowledged) > (10 if mode == "power" else 50)


def test_the_same_seed_runs_the_same() -> None:
    first, second = run_faults("crash", 3), run_faults("crash", 3)

    assert first.applied == second.applied
    assert first.leaders == second.leaders

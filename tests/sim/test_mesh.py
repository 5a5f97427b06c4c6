"""What somebody who looks after a simulated mesh does once all is well."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import pytest

from consensus.core import Core
from tests.sim.faults import faults_of
from tests.sim.mesh import SPLIT_MS_MAX, Mesh, run_seed
from tests.sim.world import Trace


@pytest.mark.parametrize(
    ("is_split", "left"), [(True, "lost"), (False, "up")], ids=["nobody agrees", "nobody differs"]
)
def test_whose_rows_differ_is_taken_out_once_no_majority_agrees(
    tmp_path: Path, is_split: bool, left: str
) -> None:
    mesh = Mesh(tmp_path, 1, end_ms=60_000, trace=Trace())
    mesh.scrub_ms = 0
    mesh.found()
    mesh.world.run_until(10_000)
    rotten = mesh.nodes["n2"]
    rotten.is_rotten = rotten.is_harmed = True
    rotten.core.ledger.connection.execute("UPDATE member SET address = 'nowhere'")
    mesh.nodes["n1"].core.vouching._is_split = is_split

    mesh.heal()
    mesh.world.run_until(10_000 + SPLIT_MS_MAX - 2_000)
    before = rotten.state
    mesh.world.run_until(10_000 + SPLIT_MS_MAX + 1_000)

    assert (before, rotten.state) == ("up", left)
    for node in mesh.nodes.values():
        node.crash(power=False)


def test_lives_that_are_over_leave_nothing_of_their_nodes_behind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that refuses raises errors through them, and whoever keeps an error keeps a node."""
    caplog.set_level(logging.CRITICAL + 1)  # pytest would keep what is logged, errors included
    faults = faults_of(3, 20_000, others={"full": 40, "sync_error": 20})
    core_counts = []
    for _ in range(3):
        result = run_seed(3, tmp_path, minutes=1 / 3, faults=faults)
        assert result.violation == "" and result.counts["fault full"] > 3
        gc.collect()
        core_counts.append(sum(isinstance(found, Core) for found in gc.get_objects()))

    # What was entered last knows its world: one life is still there, and only one.
    assert core_counts[1] == core_counts[2]

"""What somebody who looks after a simulated mesh does once all is well."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.mesh import SPLIT_MS_MAX, Mesh
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

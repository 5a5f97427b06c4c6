"""Many random lives of a mesh of real cores. CAMPAIGN_SEEDS=500 makes it a night's work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.consensus.campaign import Campaign

SEEDS = int(os.environ.get("CAMPAIGN_SEEDS", "30"))
FIRST = int(os.environ.get("CAMPAIGN_FIRST", "0"))


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_whatever_happens_nothing_acknowledged_is_lost_and_the_mesh_goes_on(
    tmp_path: Path, seed: int
) -> None:
    campaign = Campaign(tmp_path, seed)

    campaign.run()

    assert len(campaign.acknowledged) > 10

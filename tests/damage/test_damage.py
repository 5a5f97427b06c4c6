"""Damaged bytes are seen at open, or were never promised to anybody: each is counted."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.damage.campaign import Ending, Part, damages, run, table
from tests.damage.folder import lived

FLIPS, TRUNCATIONS = 120, 40  # for each of the two folders


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
def test_every_flip_and_every_cut_is_seen_at_open_or_was_promised_to_nobody(
    tmp_path: Path, is_killed: bool
) -> None:
    folder = lived(tmp_path / "lived", is_killed=is_killed)
    found = damages(folder, random.Random(3), flips=FLIPS, truncations=TRUNCATIONS)

    results = run(folder, tmp_path / "copy", found)

    print(table(results))
    assert [one for one in results if not one.is_allowed] == []
    assert {one.part for one in results} == set(Part)
    assert sum(one.part is Part.PROVEN for one in results) > FLIPS // 2
    assert all(one.ending is Ending.DETECTED for one in results if one.part is Part.PROVEN)

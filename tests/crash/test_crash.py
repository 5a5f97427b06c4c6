"""A crash of the whole mesh at a sample of the mutating calls of each activity; scripts/crash takes all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.activities import ACTIVITIES, Activity
from tests.crash.enumeration import Crash, Enumeration, fast_folder
from tests.faultlib.child import need_library
from tests.faultlib.control import CrashWhen

SAMPLE = 12
SEED = 20


@pytest.fixture
def folder() -> Iterator[Path]:
    need_library()
    with fast_folder() as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("activity", ACTIVITIES, ids=lambda activity: activity.name)
def test_nothing_promised_is_lost_and_every_node_restarts(folder: Path, activity: Activity) -> None:
    enumeration = Enumeration(activity, folder)
    rng = random.Random(SEED)
    with enumeration.actor() as actor:
        calls = enumeration.prepare(actor)
        for call in sorted(rng.sample(range(1, calls + 1), SAMPLE)):
            when: CrashWhen = (
                "partial" if call in enumeration.writes and rng.random() < 0.5 else "before"
            )
            losses = (None, rng.randrange(1_000_000))
            crashes = [Crash(activity.name, call, when, loss) for loss in losses]
            enumeration.crash(actor, crashes)

    tally = enumeration.tally
    assert tally.problems == []
    assert tally.runs == tally.restarts == 2 * SAMPLE
    assert tally.promises > 0, "there was something to lose"

"""A crash of the whole mesh at a sample of the mutating calls of each activity; scripts/crash takes all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.activities import (
    ACTIVITIES,
    BY_NAME,
    NODES,
    Activity,
    Promises,
    Stage,
    found_mesh,
    read_promises,
)
from tests.crash.enumeration import Crash, Enumeration, fast_folder, lost_in
from tests.faultlib.child import need_library
from tests.faultlib.control import CrashWhen, Lies

SAMPLE = 12
SEED = 20
SURELY_OPENING = 60  # three nodes that come back make more calls than this
LIES = 8  # power losses on a disk that lies


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


@pytest.mark.slow
@pytest.mark.parametrize("activity", ["install", "vote"])
def test_a_second_crash_while_coming_back_from_the_first_loses_nothing_either(
    folder: Path, activity: str
) -> None:
    enumeration = Enumeration(BY_NAME[activity], folder)
    rng = random.Random(SEED)
    with enumeration.actor() as actor:
        calls = enumeration.prepare(actor)
        for _ in range(SAMPLE):
            first = Crash(activity, rng.randint(1, calls), "before", rng.randrange(1_000_000))
            second = Crash("open", rng.randint(1, SURELY_OPENING), "before", rng.randrange(1_000))
            enumeration.crash_twice(actor, first, second)

    assert enumeration.tally.problems == []
    assert enumeration.tally.runs == enumeration.tally.restarts == SAMPLE


@pytest.mark.slow
def test_a_disk_that_lies_about_syncs_is_seen_to_keep_nodes_from_restarting(folder: Path) -> None:
    enumeration = Enumeration(BY_NAME["append"], folder, lies=Lies.FILES)
    with enumeration.actor() as actor:
        calls = enumeration.prepare(actor)
        losses = range(LIES)
        enumeration.crash(actor, [Crash("append", calls, "before", loss) for loss in losses])

    tally = enumeration.tally
    assert tally.restarts < tally.runs == LIES
    assert any("Damaged" in problem for problem in tally.problems)


def test_a_task_and_a_result_that_nobody_holds_are_said_to_be_lost(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "mesh", Promises(tmp_path / "promises"), incarnation=1, seed=0)
    found_mesh(stage)
    promises = read_promises(tmp_path / "promises")
    kept = lost_in(stage, promises)

    stage.promises.tell(kind="task", number=77)
    stage.promises.tell(kind="done", ref=1, fence=77)
    lost = lost_in(stage, read_promises(tmp_path / "promises"))

    assert {promise["kind"] for promise in promises} == {"holds", "task", "done"}
    assert kept == []
    assert sorted(lost) == sorted(
        line
        for node_id in NODES
        for line in (f"{node_id} lost task 77", f"{node_id} lost the result of subtask 1")
    )
    stage.close()


@pytest.mark.slow
def test_a_disk_that_lies_about_folders_is_seen_to_forget_votes(folder: Path) -> None:
    enumeration = Enumeration(BY_NAME["vote"], folder, lies=Lies.FOLDERS)
    with enumeration.actor() as actor:
        calls = enumeration.prepare(actor)
        losses = range(LIES)
        enumeration.crash(actor, [Crash("vote", calls, "before", loss) for loss in losses])

    assert any("forgot its vote" in problem for problem in enumeration.tally.problems)

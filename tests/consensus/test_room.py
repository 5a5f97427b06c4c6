"""A look at free space counts once, for a moment, and for no more than was looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from consensus.room import FOUND_MS_MAX, LOOK_MS_MAX, Room
from tests.consensus.cluster import LateBackground, World
from tests.consensus.refusing import RefusingDisk


def found(tmp_path: Path, *, bytes_needed: int) -> tuple[World, RefusingDisk, Room]:
    """A look that has just found room for so many bytes."""
    world, disk = World(), RefusingDisk()
    room = Room(tmp_path, disk, clock=world, background=LateBackground(world))
    room.lost()
    world.run_for(LOOK_MS_MAX)
    assert not room.is_back(bytes_needed)
    world.run_for(1)
    return world, disk, room


@pytest.mark.parametrize(("age_ms", "counts"), [(FOUND_MS_MAX - 1, True), (FOUND_MS_MAX, False)])
def test_room_that_was_found_long_ago_is_looked_for_again(
    tmp_path: Path, age_ms: int, counts: bool
) -> None:
    world, disk, room = found(tmp_path, bytes_needed=10)
    disk.is_full = True

    world.run_for(age_ms)

    assert room.is_back(10) is counts
    world.run_for(LOOK_MS_MAX)
    assert not room.is_back(10)
    world.run_for(1)
    assert room.is_full


def test_room_for_less_is_no_room_for_more(tmp_path: Path) -> None:
    _, _, room = found(tmp_path, bytes_needed=10)

    assert not room.is_back(11)
    assert room.is_back(10) and not room.is_back(10)

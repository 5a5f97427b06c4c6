"""Copies of a ledger that once stopped the node that took them, each by itself. All are thrown away."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.hostile.copies import Copied, copies
from tests.hostile.files import longer_than_anything

NO_TEXT = "CAST(x'68ff' AS TEXT)"


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[Copied]:
    target = Copied(Random(1), tmp_path)
    yield target
    target.close()


@pytest.mark.parametrize(
    "change",
    [
        f"UPDATE member SET address = {NO_TEXT} WHERE node_id = 'n2'",
        f"UPDATE member SET node_id = {NO_TEXT} WHERE node_id = 'n3'",
        f"INSERT INTO departed VALUES ('n9', {NO_TEXT}, 1, 1 << 40)",
        f"UPDATE class SET skill = {NO_TEXT} WHERE class_id = (SELECT max(class_id) FROM class)",
        "UPDATE class SET labels = x'ff' WHERE class_id = (SELECT max(class_id) FROM class)",
        "UPDATE ledger SET schema_version = 99",
    ],
)
def test_a_copy_that_a_node_could_not_take_up_is_thrown_away_and_a_sound_one_taken(
    follower: Copied, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "copy.db"
    path.write_bytes(copies(tmp_path)[0][2])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(change)

    assert not follower.feed(path.read_bytes())
    follower.check()


def test_a_copy_with_bytes_after_its_last_page_is_thrown_away(
    follower: Copied, tmp_path: Path
) -> None:
    assert not follower.feed(copies(tmp_path)[0][2] + b"more")
    follower.check()


def test_a_copy_of_which_sqlite_says_that_memory_is_lacking_is_thrown_away(
    follower: Copied, tmp_path: Path
) -> None:
    path = tmp_path / "copy.db"
    path.write_bytes(copies(tmp_path)[0][2])
    longer_than_anything(path)

    assert not follower.feed(path.read_bytes())
    follower.check()

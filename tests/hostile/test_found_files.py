"""Files that once ended a start in an uncaught error, each by itself."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from consensus.directory import LedgerDirectory
from consensus.errors import Damaged
from consensus.storage import open_ledger
from node.folder import BootError, Identity, read_identity, read_members, write_identity
from tests.hostile.mesh_of_one import copy_of_template

IDENTITY = Identity("m1", "n1", "one", "h:1", True, {"n1": "h:1"}, {"n2": "h:2"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("address", 5), ("voters", []), ("members", {"n2": None}), ("founded", "no"), ("name", None)],
)
def test_an_identity_of_other_than_texts_is_damaged(
    tmp_path: Path, name: str, value: object
) -> None:
    file = tmp_path / "node.json"
    write_identity(file, IDENTITY)
    assert read_identity(file) == IDENTITY
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    with pytest.raises(BootError, match="is damaged"):
        read_identity(file)


def test_files_nested_too_deeply_are_damaged(tmp_path: Path) -> None:
    for name in ("node.json", "members.json"):
        (tmp_path / name).write_text("[" * 60_000)

    with pytest.raises(BootError, match="is damaged"):
        read_identity(tmp_path / "node.json")
    assert read_members(tmp_path) == {}


def test_a_ledger_with_rows_that_nobody_wrote_is_damaged(tmp_path: Path) -> None:
    directory = LedgerDirectory(copy_of_template(tmp_path, 1))
    with sqlite3.connect(directory.prepare()) as db:
        db.execute("DELETE FROM ledger")
    db.close()

    with pytest.raises(Damaged, match="the ledger is damaged: TypeError"):
        open_ledger(directory)

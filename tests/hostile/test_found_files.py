"""Files that once ended a start in an uncaught error, each by itself."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from consensus.copying import applied_of, copy_ledger, verify_database
from consensus.directory import LedgerDirectory
from consensus.engine import VoteRecord
from consensus.engine.disk import Disk
from consensus.engine.vote import MAGIC
from consensus.errors import Damaged
from consensus.examining import examine
from consensus.scrub import is_damage, open_at
from consensus.storage import open_ledger
from node.api.reading import LongReads
from node.folder import BootError, Identity, read_identity, read_members, write_identity
from tests.hostile.files import PAGE_BYTES, longer_than_anything
from tests.hostile.mesh_of_one import Node, copy_of_template

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


@pytest.mark.parametrize("zero_bytes", [4, 5, 8, 40])
def test_a_vote_that_was_overwritten_with_ones_and_zeros_is_damaged(
    tmp_path: Path, zero_bytes: int
) -> None:
    """Its checksum was once blind to this, and the node believed a term of 32 ones."""
    path = tmp_path / "vote"
    path.write_bytes(MAGIC + b"\xff" * 8 + b"\x00" * zero_bytes)

    with pytest.raises(Damaged, match="damaged"):
        VoteRecord(path)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("DELETE FROM ledger", "TypeError"),
        ("UPDATE class SET labels = x'ff'", "DecodeError"),
    ],
)
def test_a_ledger_with_rows_that_nobody_wrote_is_damaged(
    tmp_path: Path, change: str, error: str
) -> None:
    directory = LedgerDirectory(copy_of_template(tmp_path, 1))
    with sqlite3.connect(directory.prepare()) as db:
        db.execute(change)
    db.close()

    with pytest.raises(Damaged, match=f"the ledger is damaged: {error}"):
        open_ledger(directory)


def quoted_but_no_text(path: Path) -> None:
    """A definition that makes no sense, so that SQLite quotes it."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA writable_schema=1")
        db.execute(
            "UPDATE sqlite_schema SET name = CAST(x'ff' AS TEXT), sql = 'CREATE x' "
            "WHERE name = 'task'"
        )
    db.close()


def of_another_name(path: Path) -> None:
    """One bit of a definition is another: what every query asks for is not there."""
    path.write_bytes(
        path.read_bytes().replace(b"  applied_index INTEGER", b"  applied_indey INTEGER")
    )


UNSPEAKABLE = {
    UnicodeDecodeError: quoted_but_no_text,
    MemoryError: longer_than_anything,
    sqlite3.OperationalError: of_another_name,
}


@pytest.fixture(params=UNSPEAKABLE, ids=lambda error: error.__name__)
def unspeakable(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A ledger that SQLite has no words for."""
    path = LedgerDirectory(copy_of_template(tmp_path, 1)).prepare()
    UNSPEAKABLE[request.param](path)
    with contextlib.closing(sqlite3.connect(path)) as db, pytest.raises(request.param):
        db.execute("SELECT applied_index FROM ledger")
    return path


def test_a_definition_that_nobody_could_have_made_is_damage_to_all_who_open_a_ledger(
    unspeakable: Path,
) -> None:
    root = unspeakable.parent.parent
    aside = root.parent / "aside"
    aside.mkdir()

    with pytest.raises(Damaged, match="not a ledger"):
        verify_database(unspeakable)
    with pytest.raises(Damaged, match="its file is damaged"):
        copy_ledger(unspeakable, aside, Disk())
    with pytest.raises(sqlite3.DatabaseError) as scrubbed:
        open_at(unspeakable, 1)
    with pytest.raises(Damaged, match="the ledger is damaged"):
        open_ledger(LedgerDirectory(root))
    assert is_damage(scrubbed.value)
    wrong = {check.name for check in examine(root, aside).checks if check.ok is False}
    assert wrong & {"file", "ledger"}


async def test_a_long_read_of_such_a_ledger_says_that_it_is_damaged(unspeakable: Path) -> None:
    reads = LongReads(lambda: unspeakable)
    try:
        with pytest.raises(sqlite3.DatabaseError) as raised:
            await reads.ask(lambda reader: reader.revision())
    finally:
        reads.close()

    assert is_damage(raised.value)


def test_a_ledger_that_does_not_say_where_it_is_is_damaged_to_all_who_read_it(
    tmp_path: Path,
) -> None:
    path = LedgerDirectory(copy_of_template(tmp_path, 1)).prepare()
    with contextlib.closing(sqlite3.connect(path)) as db:
        (index,) = db.execute("SELECT applied_index FROM ledger").fetchone()
    open_at(path, index).close()

    with pytest.raises(Damaged, match=rf"at {index + 1} it says \({index},\)"):
        open_at(path, index + 1)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM ledger")

    with pytest.raises(Damaged, match="which revision"):
        verify_database(path)
    with pytest.raises(Damaged, match="which revision"):
        copy_ledger(path, tmp_path, Disk())
    with pytest.raises(Damaged, match="it says None"):
        open_at(path, index)


@pytest.mark.parametrize("table", ["member", "departed"])
def test_a_node_whose_members_cannot_be_read_does_not_start_and_says_why(
    tmp_path: Path, table: str
) -> None:
    root = copy_of_template(tmp_path, 1)
    path = LedgerDirectory(root).prepare()
    with contextlib.closing(sqlite3.connect(path)) as db:
        query = "SELECT min(rootpage) FROM sqlite_schema WHERE tbl_name = ?"
        (page,) = db.execute(query, (table,)).fetchone()
    data = bytearray(path.read_bytes())
    data[(page - 1) * PAGE_BYTES : (page - 1) * PAGE_BYTES + 8] = b"\xff" * 8
    path.write_bytes(data)

    with pytest.raises(Damaged, match=r"the ledger is damaged: .*malformed"):
        Node(root, Random(1))


def test_a_ledger_whose_revision_is_no_number_is_damaged() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE ledger (applied_index, applied_term)")
        db.execute("INSERT INTO ledger VALUES (NULL, 1)")

        with pytest.raises(Damaged, match="which revision"):
            applied_of(db)


LACK = """
import resource, sqlite3
from consensus.scrub import MEMORY_BYTES_TRIED, errors_as_sqlite

def raised() -> type[BaseException]:
    try:
        with errors_as_sqlite():
            raise MemoryError
    except (MemoryError, sqlite3.DatabaseError) as error:
        return type(error)

assert raised() is sqlite3.DatabaseError
with open("/proc/self/statm") as file:
    used_bytes = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + MEMORY_BYTES_TRIED // 2,) * 2)
assert raised() is MemoryError
"""


def test_a_true_lack_of_memory_says_nothing_about_a_file() -> None:
    subprocess.run([sys.executable, "-c", LACK], check=True, timeout=60)


def test_a_column_that_is_not_there_is_damage_to_a_start(tmp_path: Path) -> None:
    directory = LedgerDirectory(copy_of_template(tmp_path, 1))
    path = directory.prepare()
    path.write_bytes(path.read_bytes().replace(b"  counted_ms INTEGER", b"  counted_mr INTEGER"))

    with pytest.raises(Damaged, match=r"the ledger is damaged: .*no such column: counted_ms"):
        open_ledger(directory)

"""A copy of a ledger is the ledger: the same digests, and the same answers from then on."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from quorumesh.v1.tasks_pb2 import BallotSpec, TaskSpec
from quorumesh.v1.values_pb2 import Label, Value
from quorumesh.v1.workers_pb2 import Spawn

from consensus.ledger import Ledger, invariants, limits
from consensus.ledger.dump import TABLES
from tests.ledger.world import (
    World,
    claim_command,
    complete_command,
    entry_of,
    open_command,
    sub,
    submit_command,
)

ODD = b"\x00\xff'\n" + "é☃".encode()


def busy_world(path: str) -> World:
    """Something in every table: spawned, voted, failed, odd bytes, held and ready work."""
    world = World(path)
    world.submit("t", sub("p", input=Value(data=ODD)), sub("after", "p"))
    world.submit(
        "v", *(sub(f"v{n}", ballot="b") for n in range(3)), ballots=[BallotSpec(id="b")], band=3
    )
    world.submit("waits", sub("x", where=[Label(key="gpu", value="é")]))
    world.work("w", slots=3)
    world.complete("p", spawn=Spawn(subtasks=[sub("c"), sub("join", "c")], join="join"))
    world.complete("p/c", '"☃"')
    world.fail("v0")
    world.wait(limits.LEASE_MS)
    world.work("w2", slots=2)
    return world


def dump_and_load(source: sqlite3.Connection, target: str) -> None:
    with sqlite3.connect(target) as copy:
        copy.executescript("\n".join(source.iterdump()))


def back_up(source: sqlite3.Connection, target: str) -> None:
    with sqlite3.connect(target) as copy:
        source.backup(copy, pages=3)


@pytest.mark.parametrize("copy", [dump_and_load, back_up])
def test_a_copy_has_the_same_digests_and_goes_on_alike(
    tmp_path: Path, copy: Callable[[sqlite3.Connection, str], None]
) -> None:
    world = busy_world(str(tmp_path / "ledger.db"))
    live = world.ledger
    copy(live.connection, str(tmp_path / "copy.db"))

    twin = Ledger.open(str(tmp_path / "copy.db"))

    assert (twin.digest, twin.full_digest()) == (live.digest, live.full_digest())
    assert (twin.applied_index, twin.counted_ms) == (live.applied_index, live.counted_ms)
    assert (twin.next_due_ms(), twin.voters()) == (live.next_due_ms(), live.voters())
    assert invariants.violations(twin.connection) == []
    grant = world.grants["v1"]
    entries = [
        entry_of(complete_command(grant, '"yes"'), now_ms=world.now_ms),
        entry_of(open_command("w3", "s"), claim_command("w3", 1, 1, 9), now_ms=world.now_ms + 500),
        entry_of(
            submit_command("new", TaskSpec(subtasks=[sub("a")])),
            now_ms=world.now_ms + limits.LEASE_MS,
        ),
    ]
    for entry in entries:
        assert twin.apply(twin.applied_index + 1, 2, entry) == live.apply(
            live.applied_index + 1, 2, entry
        )
    assert (twin.digest, twin.full_digest()) == (live.digest, live.full_digest())


def test_a_copy_made_while_entries_are_applied_is_of_one_revision(tmp_path: Path) -> None:
    world = World(str(tmp_path / "ledger.db"))
    digests = {}
    world.seen = lambda applied: digests.update({applied.revision: world.ledger.full_digest()})
    for number in range(20):
        world.submit(f"t{number}", *(sub(f"a{n}") for n in range(20)))
    # A snapshot is read by a connection of its own, which the writer does not wait for.
    source = sqlite3.connect(str(tmp_path / "ledger.db"))
    target = sqlite3.connect(str(tmp_path / "copy.db"))

    def apply_meanwhile(status: int, remaining: int, total: int) -> None:
        if world.ledger.applied_index < 25:
            world.submit(f"m{world.ledger.applied_index}", sub("a"))

    source.backup(target, pages=2, progress=apply_meanwhile)

    source.close()
    target.close()
    copy = Ledger.open(str(tmp_path / "copy.db"))
    assert copy.applied_index == 25
    assert copy.full_digest() == digests[25]


def test_one_changed_byte_changes_the_full_digest(tmp_path: Path) -> None:
    world = busy_world(str(tmp_path / "ledger.db"))
    before = world.ledger.full_digest()

    world.ledger.connection.execute("UPDATE input SET data = CAST(data || x'00' AS BLOB)")

    assert world.ledger.full_digest() != before


def test_the_full_digest_covers_every_table() -> None:
    world = World()
    query = "SELECT name FROM sqlite_schema WHERE type='table' AND name NOT LIKE 'sqlite_%'"

    assert {name for (name,) in world.ledger.connection.execute(query)} == TABLES.keys()

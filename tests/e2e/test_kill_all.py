"""`kill -9` of every node at once, again and again, under load: nothing promised is lost."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from quorumesh.v1 import mesh_pb2
from quorumesh.v1.values_pb2 import TASK_FAILED, TASK_SUCCEEDED

from mesh.ids import id_text
from mesh.specs import data_of
from tests.e2e.load import Load
from tests.e2e.mesh_process import LocalMesh, NodeProcess, wait_for

ROUNDS = int(os.environ.get("QUORUMESH_KILL_ROUNDS", "20"))
COMPACT_EVERY = ("--compact-entries", "40", "--keep-entries", "10", "--segment-bytes", "4096")
ACKNOWLEDGED_PER_ROUND_MIN = 30


@dataclass
class Book:
    """What the mesh has promised over all rounds, and what it did meanwhile."""

    acknowledged: dict[str, object] = field(default_factory=dict)
    completed: dict[str, object] = field(default_factory=dict)
    compactions: int = 0
    installs: int = 0
    in_flight: list[int] = field(default_factory=list)

    def note(self, load: Load) -> None:
        self.acknowledged |= load.acknowledged
        self.completed |= load.completed


@pytest.mark.slow
@pytest.mark.timeout(60 + 30 * ROUNDS)
def test_nothing_acknowledged_is_lost_when_all_nodes_are_killed_at_once(tmp_path: Path) -> None:
    book = Book()
    with LocalMesh(tmp_path, slots=16, options=COMPACT_EVERY) as mesh:
        mesh.grow(3)
        for number in range(ROUNDS):
            _round(mesh, book, number)
        for node in mesh.nodes:
            node.start()
        for node in mesh.nodes:
            mesh.wait_ready(node, voters=3)
        _check_promises(mesh.nodes[-1], book)
        mesh.equal_digests()

    assert {node.name: node.violations() for node in mesh.nodes} == {
        "node-1": [], "node-2": [], "node-3": [],
    }  # fmt: skip
    print(
        f"{ROUNDS} rounds: {len(book.acknowledged)} submits and {len(book.completed)} results "
        f"acknowledged, in flight at the kills {book.in_flight}, {book.compactions} compactions, "
        f"{book.installs} snapshot installs"
    )
    assert min(book.in_flight) > 0
    assert book.compactions >= 3 * ROUNDS, "each node compacts in each round"
    assert book.installs >= ROUNDS - 1, "the node that comes late gets a snapshot"


def _round(mesh: LocalMesh, book: Book, number: int) -> None:
    """Bring all up, one of them late; check what was promised; kill all under load."""
    early = [node for at, node in enumerate(mesh.nodes) if at != number % 3]
    [late] = [node for node in mesh.nodes if node not in early]
    if number:
        for node in early:
            node.start()
        for node in early:
            mesh.wait_ready(node, voters=3)
    load = Load(early, name=f"round {number}").start()
    try:
        if number:
            _check_promises(early[0], book)
            _wait_compactions(early, least=2)
            late.start()
            mesh.wait_ready(late, voters=3)
        states = _wait_compactions(mesh.nodes, least=1)
        wait_for(
            lambda: len(load.completed) >= ACKNOWLEDGED_PER_ROUND_MIN and load.in_flight_count(),
            "the load runs",
        )
        # What the mesh says of itself is read before the kill: counters start anew with a process.
        book.compactions += sum(state.compaction_count for state in states)
        book.installs += sum(state.snapshot_install_count for state in states)
        book.in_flight.append(load.in_flight_count())
        mesh.kill_all()
    finally:
        load.stop()
        book.note(load)


def _wait_compactions(nodes: Sequence[NodeProcess], *, least: int) -> list[mesh_pb2.StatusReply]:
    def enough() -> list[mesh_pb2.StatusReply] | None:
        states = [node.status() for node in nodes]
        return states if all(state.compaction_count >= least for state in states) else None

    return wait_for(enough, f"{least} compactions on each of {len(nodes)} nodes")


def _check_promises(node: NodeProcess, book: Book) -> None:
    """Every acknowledged submit is there, and every result handed over is still the result."""
    with node.client() as client:
        client.create_token()  # a write through the log: what follows reads no older state
        found = {id_text(task.task_id): task for task in client.list()}
        lost = [task_id for task_id in book.acknowledged if task_id not in found]
        undone = [one for one in book.completed if found[one].state != TASK_SUCCEEDED]
        failed = [one for one in book.acknowledged if found[one].state == TASK_FAILED]
        newest = list(book.completed)[-20:]
        outputs = {one: data_of(client.get(one, outputs=True).output) for one in newest}

    assert lost == []
    assert undone == []
    assert failed == []
    assert outputs == {one: book.completed[one] for one in newest}

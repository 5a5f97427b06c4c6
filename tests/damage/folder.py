"""The files of one node that has lived: segments, withdrawn entries, dropped segments, a copy, a vote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from consensus.engine.disk import Disk
from consensus.engine.opening import Opened, Row, read_journal
from consensus.engine.records import Kind, intact_prefix
from consensus.engine.vote import decode
from tests.consensus.cluster import Cluster
from tests.consensus.test_cores import accepted, submit, three

SMALL = {"compact_entries": 80, "keep_entries": 100, "segment_bytes_max": 4_096}


@dataclass(frozen=True, slots=True)
class Lived:
    """A stopped node's folder and what it holds. `committed` is what the mesh had acknowledged."""

    node_id: str
    root: Path
    journal: Opened
    rows: tuple[Row, ...]
    vote: tuple[int, str | None]
    committed: int


def lived(root: Path, *, is_killed: bool) -> Lived:
    """Let a mesh of three live in `root`; then stop one that was deposed with entries of its own."""
    cluster = three(root, **SMALL)
    node_id = cluster.wait_leader().config.node_id
    number = _work(cluster, node_id, 1, 260)
    core = cluster.cores[node_id]
    assert core.compaction.done_count > 0 and core.journal.base_index > 0
    core.snapshots.request()  # while it leads: only then may it have a copy vouched for
    cluster.world.run(lambda: core.snapshots.latest() is not None)
    number = _depose(cluster, node_id, number)
    _work(cluster, cluster.wait_leader().config.node_id, number, number + 40)
    cluster.world.run(cluster.agree)
    committed = core.applied_index
    if not is_killed:
        core.close()
    cluster.kill(node_id)
    for other in list(cluster.cores.values()):
        other.close()
    home = root / node_id
    journal = read_journal(home / "journal", Disk())
    kinds = {kind for path in (home / "journal").iterdir() for kind in _kinds(path)}
    assert kinds == set(Kind) and len(journal.segments) > 3, (kinds, journal.segments)
    assert list((home / "snapshots").iterdir()), "a copy lies there"
    vote = decode((home / "vote").read_bytes(), home / "vote")
    return Lived(node_id, root, journal, tuple(journal.rows), vote, committed)


def _work(cluster: Cluster, node_id: str, first: int, last: int) -> int:
    for number in range(first, last):
        accepted(cluster.propose(node_id, submit(number)))
    return last


def _depose(cluster: Cluster, node_id: str, number: int) -> int:
    """Cut the leader off while it appends; what it appended alone is withdrawn when it returns."""
    core = cluster.cores[node_id]
    for other in sorted(cluster.cores):
        if other != node_id:
            cluster.wires.cut(node_id, other)
    for lone in range(5):
        core.propose([submit(9_000 + lone)], deadline_ms=cluster.world.monotonic_ms() + 1, done=id)
        cluster.world.run_for(60)
    others = [other for other in sorted(cluster.cores) if other != node_id]
    cluster.world.run(lambda: any(cluster.cores[o].engine.role == "leader" for o in others))
    number = _work(cluster, others[0], number, number + 5)
    cluster.wires.heal()
    cluster.world.run(cluster.agree)
    assert core.engine.counters.truncations > 0
    return number


def _kinds(path: Path) -> set[Kind]:
    return {record.kind for record in intact_prefix(path.read_bytes())}

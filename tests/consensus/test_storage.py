"""Disks that refuse, and folders that a crash or a person left behind: nothing is lost in silence."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from consensus.core import Core
from consensus.directory import LedgerDirectory
from consensus.engine import Journal
from consensus.engine.disk import Disk
from consensus.engine.records import Kind, intact_prefix
from consensus.errors import Damaged
from consensus.ledger import Applied
from consensus.snapshots import SnapshotFile, copy_ledger
from tests.consensus.cluster import AtOnce, Cluster
from tests.consensus.test_cores import accepted, holds_all, submit, three
from tests.sim.node import open_files

TINY = {"compact_entries": 20, "keep_entries": 5, "segment_bytes_max": 4_096}


def behind(tmp_path: Path) -> tuple[Cluster, str, Core, SnapshotFile]:
    """A dead follower that needs a copy of the ledger, the leader, and such a copy."""
    cluster = three(tmp_path, **TINY)
    leader = cluster.wait_leader()
    follower = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)
    cluster.kill(follower)
    for number in range(1, 101):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    folder = tmp_path / "copies"
    folder.mkdir()
    return cluster, follower, leader, copy_ledger(leader.ledger_path, folder, Disk())


def only_received(directory: LedgerDirectory, copy: SnapshotFile) -> None:
    shutil.copy(copy.path, directory.incoming / "snapshot.db")


def only_moved(directory: LedgerDirectory, copy: SnapshotFile) -> None:
    folder = directory.root / f"ledger-{copy.index}"
    folder.mkdir()
    shutil.copy(copy.path, folder / "ledger.db")


def only_named(directory: LedgerDirectory, copy: SnapshotFile) -> None:
    only_moved(directory, copy)
    (directory.root / "CURRENT.tmp").write_text(f"ledger-{copy.index}\n")


def replaced(directory: LedgerDirectory, copy: SnapshotFile) -> None:
    only_received(directory, copy)
    directory.put_in_force(directory.stage_ledger(directory.incoming / "snapshot.db", copy.index))


def segment_written(directory: LedgerDirectory, copy: SnapshotFile) -> None:
    """The journal begins anew, but the old segments have not been removed yet."""
    replaced(directory, copy)
    old = directory.root / "old"
    shutil.copytree(directory.journal, old)
    journal_reset(directory, copy, is_replaced=True)
    for path in sorted(old.iterdir()):
        if not (directory.journal / path.name).exists():
            os.replace(path, directory.journal / path.name)
    shutil.rmtree(old)


def journal_reset(
    directory: LedgerDirectory, copy: SnapshotFile, *, is_replaced: bool = False
) -> None:
    if not is_replaced:
        replaced(directory, copy)
    journal = Journal(directory.journal, background=AtOnce())
    journal.reset(copy.index, copy.term, keep_suffix=False)
    journal.close()


@pytest.mark.parametrize(
    "step", [only_received, only_moved, only_named, replaced, segment_written, journal_reset]
)
def test_a_crash_after_any_step_of_an_install_is_cured_by_the_next_start(
    tmp_path: Path, step: Callable[[LedgerDirectory, SnapshotFile], None]
) -> None:
    cluster, follower, leader, copy = behind(tmp_path)
    step(LedgerDirectory(tmp_path / follower), copy)

    returned = cluster.start(follower)
    accepted(cluster.propose(follower, submit(101)))
    cluster.world.run(cluster.agree)

    assert returned.ledger.full_digest() == leader.ledger.full_digest()
    assert holds_all(cluster, 101)


def stopped(tmp_path: Path) -> tuple[Cluster, Path]:
    cluster = three(tmp_path)
    accepted(cluster.propose("n2", submit(1)))
    cluster.world.run(cluster.agree)
    cluster.kill("n2")
    return cluster, tmp_path / "n2"


def test_a_lost_journal_refuses_to_start(tmp_path: Path) -> None:
    cluster, root = stopped(tmp_path)
    shutil.rmtree(root / "journal")

    with pytest.raises(Damaged, match="lost"):
        cluster.start("n2")


def test_a_journal_that_ends_before_the_ledger_refuses_to_start(tmp_path: Path) -> None:
    cluster, root = stopped(tmp_path)
    shutil.rmtree(root / "journal")
    Journal(root / "journal", background=AtOnce()).close()

    with pytest.raises(Damaged, match="must come back as a new one"):
        cluster.start("n2")


def rotten_vote(root: Path) -> None:
    (root / "vote").write_bytes(b"no vote")


def empty_journal(root: Path) -> None:
    shutil.rmtree(root / "journal")
    Journal(root / "journal", background=AtOnce()).close()


@pytest.mark.parametrize("damage", [rotten_vote, empty_journal])
def test_a_refused_start_leaves_the_journal_closed_and_as_it_was(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    cluster, root = stopped(tmp_path)
    damage(root)
    journal = root / "journal"
    with pytest.raises(Damaged):  # an opening may begin a new segment, once
        cluster.start("n2")
    before = {path.name: path.read_bytes() for path in journal.iterdir()}
    held = [path for path in open_files() if path.startswith(str(journal))]  # by who was killed

    with pytest.raises(Damaged):
        cluster.start("n2")

    assert {path.name: path.read_bytes() for path in journal.iterdir()} == before
    assert [path for path in open_files() if path.startswith(str(journal))] == held


@pytest.mark.parametrize("before_end", [1, 20, 40])
@pytest.mark.parametrize("is_cut", [True, False])
def test_rot_in_a_last_group_that_was_applied_is_seen_though_nothing_in_the_journal_proves_it(
    tmp_path: Path, before_end: int, is_cut: bool
) -> None:
    cluster = three(tmp_path)
    accepted(cluster.propose("n1", submit(1)))
    cluster.world.run(cluster.agree)
    segment = max((tmp_path / "n2" / "journal").glob("*.journal"))
    last = cluster.cores["n2"].engine.last_index
    cluster.kill("n2")
    data = bytearray(segment.read_bytes())
    records = list(intact_prefix(bytes(data)))
    at = next(record.end for record in reversed(records) if record.kind is Kind.ENTRY) - before_end
    if is_cut:
        del data[at:]
    else:
        data[at] ^= 0x10
    segment.write_bytes(data)

    with pytest.raises(Damaged, match=f"the ledger has applied {last}, which the journal"):
        cluster.start("n2")


def test_a_lost_journal_beside_an_installed_ledger_refuses_to_start(tmp_path: Path) -> None:
    cluster, follower, _, copy = behind(tmp_path)
    directory = LedgerDirectory(tmp_path / follower)
    journal_reset(directory, copy)
    shutil.rmtree(directory.journal)

    with pytest.raises(Damaged, match="lost"):
        cluster.start(follower)


def test_a_vote_lost_beside_a_journal_that_began_anew_refuses_to_start(tmp_path: Path) -> None:
    cluster, follower, _, copy = behind(tmp_path)
    directory = LedgerDirectory(tmp_path / follower)
    journal_reset(directory, copy)
    directory.vote.unlink()

    with pytest.raises(Damaged, match="vote"):
        cluster.start(follower)


def fill_disk(core: Core, *, spare_pages: int = 0) -> None:
    (pages,) = core.ledger.connection.execute("PRAGMA page_count").fetchone()
    core.ledger.connection.execute(f"PRAGMA max_page_count={pages + spare_pages}").fetchone()


def test_a_leader_whose_ledger_cannot_be_written_lets_another_lead(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    full = cluster.wait_leader()
    fill_disk(full)
    other = next(n for n in sorted(cluster.cores) if n != full.config.node_id)
    number = 0
    while not full.trouble:
        number += 1
        accepted(cluster.propose(other, submit(number)))

    cluster.world.run(lambda: full.engine.role == "follower", ms_max=2_000)
    accepted(cluster.propose(other, submit(number + 1)))

    assert "full" in full.trouble and not full.view().writable
    assert full.reader.counts().task_count > 0
    full.ledger.connection.execute("PRAGMA max_page_count=1000000").fetchone()
    cluster.world.run(cluster.agree)
    assert full.trouble == "" and holds_all(cluster, number + 1)


def test_a_voter_set_back_to_an_older_folder_takes_itself_out_of_service(tmp_path: Path) -> None:
    """It has lost what it acknowledged, and would vote as if it had never had it."""
    cluster = three(tmp_path)
    leader = cluster.wait_leader().config.node_id
    voter = next(n for n in sorted(cluster.cores) if n != leader)
    cluster.world.run(cluster.agree)
    cluster.kill(voter)
    shutil.copytree(tmp_path / voter, tmp_path / "older")
    cluster.start(voter)
    for number in range(1, 11):
        accepted(cluster.propose(leader, submit(number)))
    cluster.world.run(cluster.agree)
    cluster.kill(voter)
    shutil.rmtree(tmp_path / voter)
    shutil.move(tmp_path / "older", tmp_path / voter)
    set_back = cluster.start(voter)

    with pytest.raises(Damaged, match="acknowledged entries are lost"):
        cluster.world.run(cluster.agree)

    assert "acknowledged entries are lost" in set_back.diverged
    cluster.kill(voter)
    with pytest.raises(Damaged, match="taken out of service"):
        cluster.start(voter)


class CannotReadOnce:
    """An observer that the disk refuses a read, once."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.began_anew_count = 0

    def entry_applied(self, applied: Applied) -> None:
        self.told.append(applied.revision)
        if len(self.told) == 1:
            raise sqlite3.OperationalError("disk I/O error")

    def ledger_replaced(self) -> None:
        self.began_anew_count += 1


def test_an_entry_after_which_somebody_could_not_read_is_applied_once(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    core, observer = cluster.cores["n1"], CannotReadOnce()
    core.observe(observer)

    accepted(cluster.propose("n1", submit(1)))
    accepted(cluster.propose("n1", submit(2)))

    assert observer.told == sorted(set(observer.told)) and len(observer.told) >= 2
    assert observer.began_anew_count == 1 and core.trouble == ""
    cluster.world.run(cluster.agree)

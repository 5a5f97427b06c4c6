"""What nothing proves synced is written anew at each opening: no sync after a failed one is believed.

After a sync that failed, the kernel may call pages clean that never reached the disk: the file still
reads well, its next sync succeeds, and a power loss shows that both lied.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from consensus.engine import Journal, VoteRecord
from consensus.engine.opening import segment_name
from consensus.errors import Damaged, StorageFailed
from tests.consensus.refusing import RefusingDisk
from tests.engine.disk import SimDisk
from tests.engine.test_journal import Inline, filled, nothing

FOLDER = Path("/sim/journal")
VOTE = Path("/sim/vote")


class LyingDisk(SimDisk):
    """After a sync of a file has failed, later ones succeed and make nothing durable."""

    def __init__(self) -> None:
        super().__init__()
        self.fails_syncs = False
        self.lying: set[Path] = set()
        self.unnamed: dict[Path, bytes | None] = {}

    def sync(self, handle: int) -> None:
        path = self._handles[handle]
        if self.fails_syncs:
            self.lying.add(path)
            raise OSError(5, "Input/output error")
        if path not in self.lying:
            super().sync(handle)

    def replace(self, path: Path, data: bytes) -> None:
        if self.fails_syncs:
            # The rename was done; that the folder's sync failed is all that is known.
            self.unnamed[path] = bytes(self._files[path]) if path in self._files else None
            self._files[path], self._synced[path] = bytearray(data), len(data)
            raise OSError(5, "Input/output error")
        super().replace(path, data)
        self.unnamed.pop(path, None)

    def power_loss(self, rng: random.Random) -> None:
        for path, old in self.unnamed.items():
            if old is None:
                del self._files[path], self._synced[path]
            else:
                self._files[path], self._synced[path] = bytearray(old), len(old)
        self.unnamed.clear()
        super().power_loss(rng)
        self.lying.clear()


def opened(disk: SimDisk, **config: int) -> Journal:
    return Journal(FOLDER, background=Inline(), disk=disk, **config)  # type: ignore[arg-type]


def add(journal: Journal, count: int) -> None:
    for _ in range(count):
        index = journal.last_index + 1
        journal.append(index, 1, b"\x00entry %d" % index)
        journal.sync(nothing)


@pytest.mark.parametrize("segment_bytes_max", [8 << 20, 300])
@pytest.mark.parametrize("seed", range(20))
def test_what_counts_after_a_failed_sync_survives_a_power_loss(
    segment_bytes_max: int, seed: int
) -> None:
    rng, disk = random.Random(seed), LyingDisk()
    journal = opened(disk, segment_bytes_max=segment_bytes_max)
    add(journal, 10 + seed)
    disk.fails_syncs = True
    add(journal, 1)
    assert journal.failed is not None and journal.synced_index == 10 + seed
    disk.fails_syncs = False

    reopened = opened(disk, segment_bytes_max=segment_bytes_max)
    add(reopened, 3)
    durable = reopened.synced_index
    disk.power_loss(rng)

    assert durable == 14 + seed
    last = opened(disk, segment_bytes_max=segment_bytes_max)
    assert last.last_index >= durable
    assert last.command_at(durable) == b"\x00entry %d" % durable


def test_a_file_whose_sync_failed_is_neither_written_nor_synced_again(tmp_path: Path) -> None:
    disk = RefusingDisk()
    journal = Journal(tmp_path, background=Inline(), disk=disk)
    journal.append(1, 1, b"\x00a")
    journal.sync(nothing)
    disk.sync_errno = 5
    journal.append(2, 1, b"\x00b")
    journal.sync(nothing)
    disk.sync_errno = 0
    disk.touched.clear()

    with pytest.raises(StorageFailed):
        journal.append(3, 1, b"\x00c")
    journal.sync(nothing)
    journal.close()
    reopened = Journal(tmp_path, background=Inline(), disk=disk)
    reopened.append(3, 1, b"\x00c")
    reopened.sync(nothing)

    assert segment_name(1) not in disk.touched
    assert [path.name for path in tmp_path.iterdir()] == [segment_name(2)]
    assert (reopened.synced_index, reopened.command_at(2)) == (3, b"\x00b")


def test_a_journal_that_was_proven_whole_is_written_on_and_not_anew(tmp_path: Path) -> None:
    Journal(tmp_path, background=Inline()).close()
    before = sorted(tmp_path.iterdir())

    journal = Journal(tmp_path, background=Inline())

    assert sorted(tmp_path.iterdir()) == before and journal.unproven_bytes == 0


def test_restarts_do_not_add_up_to_ever_more_files(tmp_path: Path) -> None:
    filled(tmp_path, 40, segment_bytes_max=300).close()
    count = len(list(tmp_path.iterdir()))

    for _ in range(20):
        Journal(tmp_path, background=Inline(), segment_bytes_max=300)

    assert len(list(tmp_path.iterdir())) == count


def test_withdrawn_entries_stay_withdrawn_through_renewal(tmp_path: Path) -> None:
    journal = filled(tmp_path, 20, segment_bytes_max=300)
    journal.truncate_from(5)
    journal.append(5, 2, b"\x00other")
    journal.sync(nothing)

    for _ in range(3):
        journal = Journal(tmp_path, background=Inline(), segment_bytes_max=300)

    assert (journal.last_index, journal.last_term, journal.command_at(5)) == (5, 2, b"\x00other")


class StopsAfterOne(RefusingDisk):
    """Power goes after the first segment that is removed."""

    def remove(self, path: Path) -> None:
        super().remove(path)
        if path.suffix == ".journal":
            raise KeyboardInterrupt


def test_a_drop_cut_short_between_two_files_is_no_damage(tmp_path: Path) -> None:
    disk = StopsAfterOne()
    journal = Journal(tmp_path, background=Inline(), segment_bytes_max=250, disk=disk)
    for index in range(1, 13):
        journal.append(index, 1, b"\x00entry %d" % index)
        journal.sync(nothing)
    journal.truncate_from(4)
    for index in range(4, 20):
        journal.append(index, 2, b"\x00other %d" % index)
        journal.sync(nothing)
    with pytest.raises(KeyboardInterrupt):
        journal.drop_to(15)

    reopened = Journal(tmp_path, background=Inline(), segment_bytes_max=250)

    assert reopened.base_index <= 15 and reopened.last_index == 19
    assert reopened.command_at(16) == b"\x00other 16"


def test_a_full_disk_at_open_leaves_a_journal_to_be_read(tmp_path: Path) -> None:
    filled(tmp_path)
    disk = RefusingDisk()
    disk.is_full = True

    journal = Journal(tmp_path, background=Inline(), disk=disk)

    assert journal.failed is not None and journal.command_at(6) == b"\x00entry 6"
    with pytest.raises(StorageFailed):
        journal.append(7, 1, b"\x00next")


def test_a_journal_cut_down_to_nothing_is_damaged(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"")

    with pytest.raises(Damaged, match="head"):
        Journal(tmp_path, background=Inline())


def test_a_segment_cut_at_a_record_below_the_proven_point_is_damaged(tmp_path: Path) -> None:
    journal = filled(tmp_path, 20, segment_bytes_max=300)
    journal.close()
    first = sorted(tmp_path.iterdir())[0]
    data = first.read_bytes()
    first.write_bytes(data[: len(data) - 25])  # exactly its last record, a GROUP

    with pytest.raises(Damaged):
        Journal(tmp_path, background=Inline())


def test_a_vote_of_an_attempt_that_failed_is_durable_once_it_counts() -> None:
    disk = LyingDisk()
    record = VoteRecord(VOTE, disk=disk)  # type: ignore[arg-type]
    record.save(4, "n1")
    disk.fails_syncs = True
    with pytest.raises(OSError):
        record.save(5, "n2")
    with pytest.raises(StorageFailed):
        record.save(6, "n3")
    disk.fails_syncs = False

    counted = VoteRecord(VOTE, disk=disk)  # type: ignore[arg-type]
    disk.power_loss(random.Random(1))

    after = VoteRecord(VOTE, disk=disk)  # type: ignore[arg-type]
    assert (after.term, after.voted_for) == (counted.term, counted.voted_for)

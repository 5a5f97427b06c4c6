"""Journal and vote record: what survives, what is cut, what stops the node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from consensus.engine import Journal, VoteRecord
from consensus.engine.disk import Disk
from consensus.errors import Damaged, StorageFailed
from tests.consensus.refusing import RefusingDisk


class Inline:
    """Blocking work done at once; `error` is what the next one reports."""

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        try:
            work()
        except OSError as error:
            done(error)
        else:
            done(None)


class Later(Inline):
    """Blocking work that ends when told."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self.waiting.append(lambda: Inline.run(self, work, done))


def nothing() -> None:
    pass


def filled(folder: Path, count: int = 6, *, segment_bytes_max: int = 8 << 20) -> Journal:
    journal = Journal(folder, background=Inline(), segment_bytes_max=segment_bytes_max)
    for index in range(1, count + 1):
        journal.append(index, 1, b"\x00entry %d" % index)
        journal.sync(nothing)
    return journal


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    filled(tmp_path).close()

    journal = Journal(tmp_path, background=Inline())

    assert (journal.base_index, journal.last_index, journal.synced_index) == (0, 6, 6)
    assert journal.command_at(3) == b"\x00entry 3"
    assert journal.term_at(7) is None


def test_a_tail_torn_at_any_byte_is_cut_and_never_breaks_the_start(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    journal = filled(folder, 3)
    proven = journal.bytes_on_disk
    journal.append(4, 1, b"\x00never synced")
    journal.append(5, 1, b"\x00nor this")
    journal.close()
    data = only_file(folder).read_bytes()

    for length in range(proven, len(data)):
        torn = tmp_path / f"torn-{length}"
        torn.mkdir()
        (torn / only_file(folder).name).write_bytes(data[:length])
        reopened = Journal(torn, background=Inline())
        assert reopened.last_index in (3, 4, 5)
        reopened.append(reopened.last_index + 1, 2, b"\x00next")
        reopened.close()
        assert Journal(torn, background=Inline()).last_term == 2


def test_any_flipped_bit_before_the_proven_point_refuses_to_start(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    journal = filled(folder, 3)
    journal.close()
    data = only_file(folder).read_bytes()
    last_group_bytes = 9 + 16
    proven = len(data) - last_group_bytes - (9 + 16 + len(b"\x00entry 3"))

    for at in range(proven):
        damaged = tmp_path / f"damaged-{at}"
        damaged.mkdir()
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        (damaged / only_file(folder).name).write_bytes(bytes(flipped))
        with pytest.raises(Damaged):
            Journal(damaged, background=Inline())


def test_a_journal_begins_after_a_missing_segment(tmp_path: Path) -> None:
    whole = filled(tmp_path, 40, segment_bytes_max=300)
    whole.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 3
    (tmp_path / names[1]).unlink()

    journal = Journal(tmp_path, background=Inline())

    assert whole.base_index < journal.base_index < whole.last_index == journal.last_index
    left = {path.name for path in tmp_path.iterdir()}
    assert names[0] not in left and set(names[2:-1]) <= left


def test_withdrawn_entries_stay_withdrawn(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    journal.truncate_from(4)
    assert (journal.last_index, journal.synced_index) == (3, 3)
    journal.append(4, 2, b"\x00other")
    journal.close()

    reopened = Journal(tmp_path, background=Inline())

    assert (reopened.last_index, reopened.last_term) == (4, 2)
    assert reopened.command_at(4) == b"\x00other"


def test_whole_segments_are_dropped_and_the_rest_is_kept(tmp_path: Path) -> None:
    journal = filled(tmp_path, 40, segment_bytes_max=300)
    journal.drop_to(20)
    assert 0 < journal.base_index <= 20
    assert journal.command_at(21) == b"\x00entry 21"
    base = journal.base_index
    journal.close()

    reopened = Journal(tmp_path, background=Inline())

    assert (reopened.base_index, reopened.last_index) == (base, 40)


def test_a_reset_keeps_the_suffix_when_asked(tmp_path: Path) -> None:
    journal = filled(tmp_path)
    journal.reset(4, 1, keep_suffix=True)
    assert (journal.base_index, journal.last_index, journal.synced_index) == (4, 6, 6)
    journal.close()
    reopened = Journal(tmp_path, background=Inline())
    assert reopened.command_at(6) == b"\x00entry 6"

    reopened.reset(50, 3, keep_suffix=False)
    reopened.close()

    assert Journal(tmp_path, background=Inline()).base_index == 50


def test_a_drop_after_a_reset_that_failed_leaves_the_files_for_the_next_opening(
    tmp_path: Path,
) -> None:
    disk = RefusingDisk()
    journal = Journal(tmp_path, background=Inline(), segment_bytes_max=300, disk=disk)
    for index in range(1, 41):
        journal.append(index, 1, b"\x00entry %d" % index)
        journal.sync(nothing)
    disk.full_names = ".journal"
    with pytest.raises(OSError):
        journal.reset(100, 2, keep_suffix=False)

    journal.drop_to(100)

    assert (journal.base_index, journal.base_term) == (100, 2)
    disk.full_names = ""
    assert Journal(tmp_path, background=Inline(), disk=disk).last_index == 40


def test_nothing_counts_as_synced_before_its_sync_ended(tmp_path: Path) -> None:
    background = Later()
    journal = Journal(tmp_path, background=background)
    journal.append(1, 1, b"\x00a")
    journal.sync(nothing)
    journal.append(2, 1, b"\x00b")
    journal.sync(nothing)
    assert (journal.synced_index, len(background.waiting)) == (0, 1)

    background.waiting.pop()()

    assert journal.synced_index == 1
    assert journal.synced_offset < journal.written_offset


class FailingDisk(Disk):
    """A disk whose syncs fail from now on, or only once."""

    is_failing = False

    def sync(self, handle: int) -> None:
        if self.is_failing:
            self.is_failing = False
            raise OSError(5, "Input/output error")
        super().sync(handle)


def test_a_failed_sync_is_never_tried_again(tmp_path: Path) -> None:
    disk = FailingDisk()
    journal = Journal(tmp_path, background=Inline(), disk=disk)
    disk.is_failing = True
    journal.append(1, 1, b"\x00a")
    journal.sync(nothing)
    assert journal.failed is not None

    journal.sync(nothing)

    assert (journal.synced_index, journal.sync_count) == (0, 0)
    with pytest.raises(StorageFailed):
        journal.append(2, 1, b"\x00b")


def test_a_vote_survives_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vote"
    VoteRecord(path).save(7, "n2")
    record = VoteRecord(path)
    assert (record.term, record.voted_for) == (7, "n2")
    data = path.read_bytes()

    for at in range(len(data)):
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        path.write_bytes(bytes(flipped))
        with pytest.raises(Damaged):
            VoteRecord(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged):
            VoteRecord(path)


class ListingDisk(Disk):
    """The real disk, with a list of what was made durable."""

    def __init__(self) -> None:
        self.synced: list[str] = []

    def sync(self, handle: int) -> None:
        super().sync(handle)
        self.synced.append("file")

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.synced.append("folder")


def test_the_name_of_a_new_segment_is_made_durable_with_what_it_holds_and_off_the_loop(
    tmp_path: Path,
) -> None:
    disk, background = ListingDisk(), Later()
    journal = Journal(tmp_path, background=background, segment_bytes_max=1, disk=disk)
    journal.append(1, 1, b"\x00one")
    journal.sync(nothing)
    disk.synced.clear()

    background.waiting.pop()()
    assert len(list(tmp_path.iterdir())) == 2, "a new segment was begun"
    assert disk.synced == ["file"], "and its folder is not synced by whoever takes the end"
    journal.append(2, 1, b"\x00two")
    journal.sync(nothing)
    assert journal.synced_index == 1
    background.waiting.pop()()

    assert disk.synced == ["file", "file", "file", "folder"], "two files, and then the name"
    assert journal.synced_index == 2
    journal.close()


def test_what_is_synced_at_the_end_has_a_durable_name_too(tmp_path: Path) -> None:
    disk = ListingDisk()
    journal = Journal(tmp_path, background=Inline(), segment_bytes_max=1, disk=disk)
    journal.append(1, 1, b"\x00one")
    journal.sync(nothing)
    journal.append(2, 1, b"\x00two")
    disk.synced.clear()

    journal.close()

    assert "folder" in disk.synced

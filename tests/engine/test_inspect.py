"""Looking at a journal and a vote record: what a start would say, and not a byte changed."""

from __future__ import annotations

from pathlib import Path

from consensus.engine import VoteRecord
from consensus.engine.inspect import inspect_journal, inspect_vote
from consensus.engine.records import GROUP_RECORD_BYTES
from tests.engine.test_journal import filled


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_stopped_journal_is_proven_to_its_last_entry(tmp_path: Path) -> None:
    filled(tmp_path, 40, segment_bytes_max=300).close()
    before = contents(tmp_path)

    report = inspect_journal(tmp_path)

    assert (report.first_index, report.last_index, report.proven_index) == (1, 40, 40)
    assert report.segments == len(before) > 3
    assert (report.torn_bytes, report.faults) == (0, [])
    assert contents(tmp_path) == before


def test_a_stopped_journal_with_nothing_left_to_sync_is_proven_too(tmp_path: Path) -> None:
    filled(tmp_path).close()

    assert inspect_journal(tmp_path).proven_index == 6


def test_a_torn_tail_is_counted_and_left_alone(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + b"torn")
    before = contents(tmp_path)

    report = inspect_journal(tmp_path)

    assert (report.last_index, report.torn_bytes, report.faults) == (6, 4, [])
    assert contents(tmp_path) == before


def test_a_damaged_journal_is_told_and_left_alone(tmp_path: Path) -> None:
    filled(tmp_path).close()
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    before = contents(tmp_path)

    report = inspect_journal(tmp_path)

    assert report.segments == 1
    [fault] = report.faults
    assert f"{path.name} is damaged at byte " in fault
    synced_bytes = len(data) - GROUP_RECORD_BYTES  # the last group says of what lies before it
    assert f"all before byte {synced_bytes} of {path.name} had been synced" in fault
    assert contents(tmp_path) == before


def test_a_journal_that_is_not_there_is_a_fault_and_is_not_made(tmp_path: Path) -> None:
    assert inspect_journal(tmp_path / "none").faults
    assert not (tmp_path / "none").exists()


def test_a_vote_is_told_and_a_damaged_one_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "vote"
    assert not inspect_vote(path).exists
    VoteRecord(path).save(7, "n2")

    report = inspect_vote(path)
    path.write_bytes(path.read_bytes()[:-1])

    assert (report.term, report.voted_for, report.faults) == (7, "n2", [])
    assert inspect_vote(path).faults

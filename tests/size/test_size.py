"""A small run of the measurement meets the bars of the large one; its parts say what is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.size.__main__ import Size, measure
from tests.size.measuring import Hold, Load, holds_of


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_voter_comes_back_to_a_large_ledger_and_nobody_waits_for_it(tmp_path: Path) -> None:
    figures = measure(tmp_path, Size(tasks=20_000, missed=5_000, rate=300), lambda text: None)

    assert figures.faults() == []
    assert figures.ledger_bytes > 10 << 20
    assert figures.journal_bytes > 0 and figures.wal_bytes > 0
    assert figures.rate > 100


def test_a_gap_counts_from_the_beginning_to_the_end_of_the_stretch(tmp_path: Path) -> None:
    load = Load(node=None, rate=500)  # type: ignore[arg-type]  # it is not run
    load.acknowledged_s.extend([1.0, 2.0, 2.5])

    assert load.gap_s(1.0, 3.0) == 1.0
    assert load.gap_s(0.0, 9.0) == 6.5


def test_a_hold_is_what_the_loop_itself_took_and_not_what_it_waited_for_a_processor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "holds"
    first = Hold(at_s=5, held_ms=90, starved_ms=80, cpu_ms=10, gc_ms=0, stack="")
    second = Hold(at_s=6, held_ms=40, starved_ms=5, cpu_ms=30, gc_ms=0, stack="")
    lines = [
        json.dumps({name: getattr(hold, name) for name in Hold.__slots__})
        for hold in (first, second)
    ]
    path.write_text("\n".join([*lines, '{"at_s": 7, "held']), encoding="utf-8")

    assert holds_of(path) == [second, first]
    assert [hold.own_ms for hold in holds_of(path, until_s=5.5)] == [10]

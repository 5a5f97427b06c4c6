"""A small run of the measurement meets the bars of the large one; its parts say what is so."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from pathlib import Path

import pytest

from tests.size.__main__ import Size, measure
from tests.size.measuring import Hold, Load, holds_of
from tests.size.probed_node import Schedules


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


def hold(at_s: float, held_ms: float, **made_of: float) -> Hold:
    parts = dict.fromkeys(("starved_ms", "cpu_ms", "others_starved_ms", "gc_ms"), 0.0)
    return Hold(at_s=at_s, held_ms=held_ms, **(parts | made_of), stack="")


def test_a_hold_is_what_the_loop_itself_took_and_not_what_it_waited_for_a_processor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "holds"
    first = hold(at_s=5, held_ms=90, starved_ms=80, cpu_ms=10)
    second = hold(at_s=6, held_ms=40, starved_ms=5, cpu_ms=30)
    lines = [
        json.dumps({name: getattr(hold, name) for name in Hold.__slots__})
        for hold in (first, second)
    ]
    path.write_text("\n".join([*lines, '{"at_s": 7, "held']), encoding="utf-8")

    assert holds_of(path) == [second, first]
    assert [hold.own_ms for hold in holds_of(path, until_s=5.5)] == [10]


@pytest.mark.parametrize(
    ("held_ms", "made_of", "own_ms"),
    [
        (70, {"cpu_ms": 1, "others_starved_ms": 65}, 5),
        (70, {"cpu_ms": 60, "others_starved_ms": 65}, 60),  # what it ran itself is its own
        (70, {"cpu_ms": 1, "starved_ms": 40, "others_starved_ms": 65}, 1),
        (70, {"cpu_ms": 1}, 70),  # the disk, say
    ],
)
def test_a_thread_that_waits_for_a_processor_while_the_loop_waits_for_it_is_no_hold(
    held_ms: float, made_of: dict[str, float], own_ms: float
) -> None:
    assert hold(1, held_ms, **made_of).own_ms == own_ms


def test_the_wait_of_another_thread_for_a_processor_is_seen() -> None:
    ended = threading.Event()
    cores = sorted(os.sched_getaffinity(0))
    schedules = Schedules(threading.current_thread())

    def spin() -> None:
        os.sched_setaffinity(0, cores[:1])
        sum_of = 0
        while not ended.is_set():
            sum_of += len(hashlib.sha256(bytes(1 << 20)).digest())  # not while it runs Python

    threads = [threading.Thread(target=spin) for _ in range(2)]
    for thread in threads:
        thread.start()
    schedules.since()
    waited_ms, until_s = 0.0, time.monotonic() + 30
    while waited_ms < 50 and time.monotonic() < until_s:
        waited_ms += schedules.since()[2] / 1_000_000
    ended.set()
    for thread in threads:
        thread.join()

    assert waited_ms >= 50

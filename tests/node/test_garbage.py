"""Garbage is collected on the loop, and no thread that allocates much stops the others for it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from node.garbage import OBJECTS_BETWEEN_ROUNDS_MAX, collect_garbage, rarely_by_itself
from node.system import run_on


class Thing:
    """One that holds on to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


@contextmanager
def collections() -> Iterator[list[tuple[int, int]]]:
    """The thread and the generation of each that begins meanwhile."""
    seen: list[tuple[int, int]] = []

    def told(phase: str, about: dict[str, int]) -> None:
        if phase == "start":
            seen.append((threading.get_ident(), about["generation"]))

    gc.callbacks.append(told)
    try:
        yield seen
    finally:
        gc.callbacks.remove(told)


def made_elsewhere(count: int) -> None:
    """So many objects that stay, made in another thread."""
    kept: list[list[int]] = []
    thread = threading.Thread(target=lambda: kept.extend([] for _ in range(count)))
    thread.start()
    thread.join()


def test_a_thread_that_makes_many_objects_does_not_collect() -> None:
    with collections() as seen:
        made_elsewhere(100_000)
        assert {thread for thread, _ in seen} - {threading.get_ident()}  # as Python does

        with rarely_by_itself():
            seen.clear()
            made_elsewhere(100_000)
            assert seen == []


def test_more_objects_than_the_bound_are_collected_wherever_they_are_made() -> None:
    with rarely_by_itself(), collections() as seen:
        made_elsewhere(OBJECTS_BETWEEN_ROUNDS_MAX + 10_000)

    assert seen and 2 not in {generation for _, generation in seen}


def test_garbage_goes_within_a_round_on_the_thread_of_the_loop() -> None:
    async def wait_until_it_is_gone() -> int:
        gone = asyncio.Event()
        weakref.finalize(Thing(), gone.set)
        async with asyncio.timeout(20):
            await gone.wait()
        return threading.get_ident()

    with collections() as seen:
        loop_thread = run_on(asyncio.new_event_loop, wait_until_it_is_gone())

    assert (loop_thread, 1) in seen


def test_what_python_did_before_is_what_it_does_after() -> None:
    before = gc.get_threshold(), gc.get_freeze_count()

    run_on(asyncio.new_event_loop, asyncio.sleep(0))

    assert (gc.get_threshold(), gc.get_freeze_count()) == before


async def test_all_of_it_is_collected_now_and_then() -> None:
    all_of_it = asyncio.Event()

    def told(phase: str, about: dict[str, int]) -> None:
        if about["generation"] == 2:
            all_of_it.set()

    with rarely_by_itself():
        gc.callbacks.append(told)
        collector = asyncio.create_task(collect_garbage(every_s=0.0))
        async with asyncio.timeout(60):
            await all_of_it.wait()
        collector.cancel()
        gc.callbacks.remove(told)

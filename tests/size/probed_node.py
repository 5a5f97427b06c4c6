"""A node whose event loop is watched: how long was it held up at a time, and by what.

Stands before the command line of `mesh node start` as its launcher; the first argument is the file
that the holds go to, one JSON object a line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import TextIO

from node.config import NodeConfig
from node.logs import set_up_logs
from node.runtime import serve
from node.system import loop_factory, run_on

BEAT_S = 0.002
HOLD_MS_TOLD = 15  # shorter ones are not written down
STACK_MS = 10  # what holds the loop for so long is looked at while it does
STACKS_TOLD = 4
FRAMES_SHOWN = 3
LOOP_FILES = ("runners.", "base_events.", "events.", "system.", "probed_node.", "<frozen runpy>.")


class Schedules:
    """How long threads that run Python have run, and have waited for a processor, since last asked.

    The loop's thread waits for whichever thread runs Python. When that one waits for a processor,
    the loop does too, though its own account does not say so.
    """

    def __init__(self, loop: threading.Thread) -> None:
        self._loop = loop
        self._files: dict[int, int] = {}  # native id -> descriptor
        self._told: dict[int, tuple[int, int]] = {}  # native id -> ns run, ns waited

    def since(self) -> tuple[int, int, int]:
        """The loop's thread ran, and waited; the longest wait of any other. In ns."""
        told: dict[int, tuple[int, int]] = {}
        for thread in threading.enumerate():
            if thread.native_id is not None:
                told[thread.native_id] = self._read(thread.native_id)
        for gone in self._files.keys() - told.keys():
            os.close(self._files.pop(gone))
        before, self._told = self._told, told
        new = {
            key: (ran - before.get(key, (ran, waited))[0], waited - before.get(key, (0, waited))[1])
            for key, (ran, waited) in told.items()
        }
        ran, waited = new.pop(self._loop.native_id or 0, (0, 0))
        return ran, waited, max((each[1] for each in new.values()), default=0)

    def _read(self, native_id: int) -> tuple[int, int]:
        try:
            if native_id not in self._files:
                path = f"/proc/self/task/{native_id}/schedstat"
                self._files[native_id] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            ran, waited, _ = os.pread(self._files[native_id], 100, 0).split()
        except (OSError, ValueError):
            return 0, 0  # it ended meanwhile, or the kernel does not say
        return int(ran), int(waited)


class Probe:
    """Beats on the loop; a thread looks at what the loop does when a beat does not come."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._loop_thread = threading.get_ident()
        self._schedules = Schedules(threading.current_thread())
        self._beat_s = time.monotonic()
        self._schedules.since()
        self._collecting_s = self._collected_s = 0.0
        gc.callbacks.append(self._collecting)
        self._stacks: list[str] = []  # the thread adds, the loop takes all at once
        self._stopped = threading.Event()

    async def run(self) -> None:
        watcher = threading.Thread(target=self._watch, daemon=True)
        watcher.start()
        try:
            while True:
                await asyncio.sleep(BEAT_S)
                self._beat()
        finally:
            self._stopped.set()

    def _beat(self) -> None:
        now_s = time.monotonic()
        used_ns, starved_ns, others_starved_ns = self._schedules.since()
        held_ms = (now_s - self._beat_s - BEAT_S) * 1_000
        stacks, self._stacks = self._stacks, []
        told = {
            "at_s": round(now_s, 3),
            "held_ms": round(held_ms, 1),
            "starved_ms": round(starved_ns / 1_000_000, 1),
            "others_starved_ms": round(others_starved_ns / 1_000_000, 1),
            "cpu_ms": round(used_ns / 1_000_000, 1),
            "gc_ms": round(self._collected_s * 1_000, 1),
            "stack": "; ".join(
                f"{n}x {text}" for text, n in Counter(stacks).most_common(STACKS_TOLD)
            ),
        }
        self._collected_s = 0.0
        self._beat_s = now_s
        if held_ms >= HOLD_MS_TOLD:
            print(json.dumps(told), file=self._file, flush=True)

    def _collecting(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_s = time.monotonic()
        else:
            self._collected_s += time.monotonic() - self._collecting_s

    def _watch(self) -> None:
        while not self._stopped.wait(BEAT_S * 2):
            if (time.monotonic() - self._beat_s - BEAT_S) * 1_000 >= STACK_MS:
                frame = sys._current_frames().get(self._loop_thread)
                self._stacks.append(_shown(frame))


def _shown(frame: FrameType | None) -> str:
    """Where it is, and what the loop called to come there."""
    names = [
        f"{Path(one.filename).stem}.{one.name}:{one.lineno}"
        for one in traceback.extract_stack(frame)
    ]
    called = [name for name in names if not name.startswith(LOOP_FILES)]
    return " > ".join([*called[:FRAMES_SHOWN], "…", *called[-FRAMES_SHOWN:]])


def main(arguments: list[str]) -> int:
    holds, *command = arguments
    at = command.index("start")
    options = _parsed(command[at + 1 :])
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    set_up_logs("INFO", as_json=False)
    loop_name, factory = loop_factory(options.loop)

    async def watched() -> int:
        async with asyncio.TaskGroup() as group:
            probe = group.create_task(Probe(file).run())
            code = await serve(options, loop_name=loop_name)
            probe.cancel()
            return code

    with Path(holds).open("a", encoding="utf-8") as file:
        return run_on(factory, watched())


def _parsed(arguments: list[str]) -> NodeConfig:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", dest="data_dir", type=Path)
    for text in ("name", "listen", "advertise"):
        parser.add_argument(f"--{text}")
    parser.add_argument("--join", dest="join_token", default="")
    parser.add_argument("--workers", dest="worker_count", type=int)
    parser.add_argument("--slots", type=int)
    for number in ("compact-entries", "compact-wal-bytes", "keep-entries"):
        parser.add_argument(f"--{number}", type=int)
    parser.add_argument("--segment-bytes", dest="segment_bytes_max", type=int)
    given = vars(parser.parse_args(arguments))
    return NodeConfig(**{key: value for key, value in given.items() if value is not None})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

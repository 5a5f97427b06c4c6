"""One simulated node: a disk that lasts, and one process after another that runs a real core on it."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import Bootstrap

from consensus.core import Core, Ports, ReplicaConfig
from consensus.engine.seat import Seat
from consensus.errors import ConsensusError, Damaged, StorageFailed
from consensus.ledger import Applied
from tests.sim.disk import Crashed, SimDisk
from tests.sim.network import End, Network
from tests.sim.storage import LedgerFiles
from tests.sim.world import Act, World

if TYPE_CHECKING:
    from tests.sim.checks import Checks

TICK_MS = (40, 260)  # an idle process is woken late now and then
WAKE_US = (50, 1_500)
DISK_DELAY_US = (100, 400)
BACKLOG_MAX = 50_000
REOPEN_MS = 700  # whoever runs the node tries again when its disk refused it
MESH_ID = "m"
NAMES = tuple(f"n{number}" for number in range(1, 13))


class SimClock:
    """One node's clocks: they run at their own pace, and the wall clock jumps."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._from_us, self._from_ms = world.now_us, world.now_us // 1_000
        self._per_mille = 1_000
        self.wall_offset_ms = 1_700_000_000_000

    def run_at(self, per_mille: int) -> None:
        self._from_ms, self._from_us = self.monotonic_ms(), self._world.now_us
        self._per_mille = per_mille

    def monotonic_ms(self) -> int:
        passed_us = self._world.now_us - self._from_us
        return self._from_ms + passed_us * self._per_mille // 1_000_000

    def wall_ms(self) -> int:
        return self.wall_offset_ms + self.monotonic_ms()


@dataclass(slots=True)
class Limits:
    """The small bounds that make a short life meet every part of the code."""

    compact_entries: int
    keep_entries: int
    segment_bytes_max: int
    scrub_ms: int = 0
    voters_max: int = 5


Work = tuple[Callable[[], None], Callable[[BaseException | None], None]]


class Process:
    """One run of the node's program. Once it is dead nothing of it runs any more."""

    def __init__(self, node: SimNode, incarnation: int) -> None:
        self.node, self.incarnation = node, incarnation
        self.chance = random.Random(f"{node.world.seed} {node.node_id} {incarnation}")
        self.is_alive = True
        self.is_paused = False
        self.is_woken = False
        self.led_count = 0
        self.believed: dict[str, int] = {}  # as a leader, of each peer: the last entry it holds
        self.backlog: list[Act] = []
        self.under_way: dict[int, Work] = {}
        self._work_count = 0
        self.end = End(node.network, node.node_id, self.call)
        self.core: Core = Core.__new__(Core)

    def call(self, act: Act) -> None:
        """Run something on this process's loop: now, after its pause, or never."""
        if not self.is_alive:
            return
        if self.is_paused:
            if len(self.backlog) < BACKLOG_MAX:
                self.backlog.append(act)
            return
        ended = how_it_ended(act, is_rotten=self.node.is_rotten)
        if ended is not None:
            self.node.stopped(ended)
            return
        seat = self.core.engine._seat  # not by way of its owner: this is asked after each event
        if seat.counters.led != self.led_count:
            self.led_count = seat.counters.led
            self.believed.clear()
            self.node.checks.leads(self)
        if seat.raft.is_leader and not seat.is_removed:
            self._hold_against_journals(seat)

    def _hold_against_journals(self, seat: Seat) -> None:
        believed = self.believed
        for peer in seat.voters:
            progress = seat.peers.get(peer)
            if progress is not None and progress.match_index > believed.get(peer, 0):
                believed[peer] = progress.match_index
                self.node.checks.believes(self, peer, progress.match_index)

    def wake(self) -> None:
        if not self.is_woken and self.is_alive:
            self.is_woken = True
            self.node.world.after_us(self.chance.randrange(*WAKE_US), lambda: self.call(self.turn))

    def turn(self) -> None:
        self.is_woken = False
        self.core.turn()

    def tick(self) -> None:
        if self.is_alive:
            self.call(self.turn)
            self.node.world.after_ms(self.chance.uniform(*TICK_MS), self.tick)

    # Background: the work happens somewhere between its asking and its end.

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        took_us = self.chance.randrange(*self.node.disk_delay_us)
        begin_us = self.chance.choice((1, took_us // 2, took_us))
        self._work_count += 1
        number = self._work_count
        # Kept here and not in the events, so that nothing of it is left once the process is dead.
        self.under_way[number] = (work, done)

        def begin() -> None:
            error: BaseException | None = None
            try:
                self.under_way[number][0]()
            except (OSError, ConsensusError, sqlite3.Error) as failure:
                error = failure
            self.node.world.after_us(
                max(1, took_us - begin_us), lambda: self.call(lambda: end(error))
            )

        def end(error: BaseException | None) -> None:
            self.under_way.pop(number)[1](error)

        self.node.world.after_us(begin_us, lambda: self.call(begin))

    # Observer.

    def entry_applied(self, applied: Applied) -> None:
        self.node.checks.applied(self, applied)

    def ledger_replaced(self) -> None:
        self.node.checks.replaced(self)


def how_it_ended(act: Act, *, is_rotten: bool) -> BaseException | None:
    """Run it; what ended the process in it, if anything did, without what it unwound.

    A node whose ledger is rotten may stop with anything; from others a bug is passed on.
    """
    try:
        act()
    except Crashed:
        return Crashed()
    except Damaged as damage:
        return Damaged(str(damage))
    except StorageFailed as failure:
        return StorageFailed(str(failure))
    except Exception as bug:
        if not is_rotten:
            raise
        return Damaged(f"it stopped with {type(bug).__name__}: {bug}")
    return None


def open_files() -> list[str]:
    """The paths of all files that this process has open."""
    paths = []
    for handle in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{handle}"))
    return paths


class SimNode:
    """A node and its folder. `state` is down, up, or lost when its folder cannot be trusted."""

    def __init__(
        self, world: World, network: Network, checks: Checks, node_id: str, root: Path
    ) -> None:
        self.world, self.network, self.checks = world, network, checks
        self.node_id, self.root = node_id, root
        self.chance = random.Random(f"{world.seed} {node_id} disk")
        self.disk = SimDisk(root, self.chance)
        self._ledger_files = LedgerFiles(root, self.chance)
        self.clock = SimClock(world)
        self.limits = Limits(50, 10, 8_192)
        self.joined_voters: dict[str, str] = {}
        self.disk_delay_us = DISK_DELAY_US
        self.state = "down"
        self.is_harmed = False  # its files were damaged: it may refuse to start
        self.is_rotten = False  # its ledger was: until it notices, what it says may be wrong
        self.crash_loses_power = False
        self.process: Process | None = None
        self._incarnation = 0

    @property
    def core(self) -> Core:
        assert self.process is not None
        return self.process.core

    @property
    def is_up(self) -> bool:
        return self.state == "up"

    def start(self) -> None:
        if self.state != "down":
            return
        self._incarnation += 1
        number = int(self.node_id[1:]) * 1_000_000 + self._incarnation
        process = self.process = Process(self, number)
        self.disk.revive()
        self.state = "up"
        self.world.note("start", self.node_id)
        ended = how_it_ended(lambda: self._open(process, number), is_rotten=self.is_rotten)
        if ended is not None:
            self.stopped(ended)
        else:
            process.end.set_peers({name: name for name in NAMES})
            process.tick()

    def _open(self, process: Process, number: int) -> None:
        is_founder = self.node_id == NAMES[0]
        founding = Bootstrap(mesh_id=MESH_ID, node_id=self.node_id, address=self.node_id)
        config = ReplicaConfig(
            node_id=self.node_id,
            address=self.node_id,
            root=self.root,
            founding=founding if is_founder else None,
            joined_voters=self.joined_voters,
            compact_entries=self.limits.compact_entries,
            keep_entries=self.limits.keep_entries,
            segment_bytes_max=self.limits.segment_bytes_max,
            voters_max=self.limits.voters_max,
            scrub_ms=self.limits.scrub_ms,
            hash_pace_ms=0,  # nobody sleeps here
        )
        ports = Ports(process.end, self.clock, process, process.chance, number, self.disk)
        self.network.add(process.end)
        process.core.__init__(config, ports, on_wake=process.wake)  # type: ignore[misc]
        process.core.observe(process)
        self.checks.opened(process)

    # Its ends.

    def stopped(self, ended: BaseException) -> None:
        """The process ended itself, or died in the middle of something."""
        match ended:
            case Crashed():
                self.crash(power=self.crash_loses_power)
            case Damaged():
                self.world.note("refused", self.node_id, words=str(ended))
                self._end_process(silently=False)
                self.state = "lost"
                self.checks.refused(self, ended)
            case _:
                self.world.note("unopened", self.node_id, words=str(ended))
                self._end_process(silently=False)
                self.state = "down"
                self.world.after_ms(REOPEN_MS, self.start)

    def crash(self, *, power: bool) -> None:
        """kill -9, or the power is gone: nothing unsynced is left for sure."""
        if self.state != "up":
            return
        self.world.note("power" if power else "kill", self.node_id)
        self._end_process(silently=power)
        self.state = "down"
        if power:
            self.disk.lose_power()

    def _end_process(self, *, silently: bool) -> None:
        process = self.process
        assert process is not None
        process.is_alive = False
        process.backlog.clear()
        process.under_way.clear()
        self.disk.abandon()
        self.network.remove(self.node_id, silently=silently)
        core, self.process = process.core, None
        ledger, reader = getattr(core, "ledger", None), getattr(core, "_reader", None)
        states = self._ledger_files.states()
        # The reader goes last: the last connection would copy the log into the ledger if it could.
        if ledger is not None:
            if reader is not None:
                with contextlib.suppress(sqlite3.Error):
                    reader.revision()
            ledger.close()
        if reader is not None:
            reader.close()
        self._assert_let_go()
        self._ledger_files.settle(states, loses_power=silently)
        self.checks.ended_process(process)

    def _assert_let_go(self) -> None:
        """A connection of a dead process would give the next one its view of the write-ahead log."""
        for is_swept in (False, True):
            held = [path for path in open_files() if path.startswith(f"{self.root}/ledger")]
            if not held:
                return
            if not is_swept:
                gc.collect()
        raise AssertionError(f"a dead process holds {held}")

    def quicken_disk(self) -> None:
        self.disk_delay_us = DISK_DELAY_US

    def pause(self) -> None:
        if self.process is not None:
            self.process.is_paused = True
            self.world.note("pause", self.node_id)

    def resume(self, process: Process) -> None:
        """Go on with what came in the meantime."""
        if not process.is_alive or not process.is_paused:
            return
        self.world.note("resume", self.node_id)
        process.is_paused = False
        backlog, process.backlog = process.backlog, []
        for act in backlog:
            process.call(act)

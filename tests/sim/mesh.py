"""One run: a mesh that is founded, grows, lives through its faults, heals and must then agree."""

from __future__ import annotations

import gc
import random
import shutil
import sqlite3
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from consensus.errors import Damaged
from tests.sim.checks import Checks
from tests.sim.clients import Asking, Client
from tests.sim.faults import Fault, faults_of
from tests.sim.life import Life
from tests.sim.members import Members
from tests.sim.network import Network
from tests.sim.node import NAMES, Process, SimNode
from tests.sim.workers import Worker
from tests.sim.world import Beyond, Trace, Violation, World

SETTLE_MS_MAX = 60_000
KEEP_UP_MS = 1_000
SPLIT_MS_MAX = 10_000  # then somebody reads what the log says of ledgers that differ


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one seed."""

    seed: int
    violation: str
    trace: str
    simulated_ms: int
    counts: dict[str, int] = field(default_factory=dict)


class Mesh:
    """The nodes of one run and everybody who uses them."""

    def __init__(self, root: Path, seed: int, *, end_ms: int, trace: Trace) -> None:
        self.root, self.end_ms = root, end_ms
        self.world = World(seed, trace)
        self.chance = random.Random(f"{seed} mesh")
        self.network = Network(self.world)
        self.nodes: dict[str, SimNode] = {}
        self.checks = Checks(self.world, self.nodes)
        self.network.on_send = self.checks.said
        self.asking = Asking(self.world, self.nodes)
        self.members = Members(self)
        self._split_ms = 0
        self.first_count = self.chance.choice((3, 3, 3, 4, 5))
        self.scrub_ms = self.chance.choice((0, 6_000, 15_000))
        self.life = Life(self)
        self.workers = [
            Worker(f"w{at}", self.world, self.asking, self.checks)
            for at in range(self.chance.choice((2, 3)))
        ]
        pause_ms = self.chance.choice((700, 1_200, 2_500))
        self.clients = [
            Client(at, self.world, self.asking, self.checks, pause_ms, end_ms) for at in range(1, 3)
        ]

    def found(self) -> None:
        """The first node founds the mesh, and the others of the beginning join it."""
        self.members.make(NAMES[0]).start()
        for _ in range(self.first_count - 1):
            self.members.join()

    # A life.

    def run(self, faults: list[Fault]) -> None:
        self.found()
        for worker in self.workers:
            self.world.after_ms(self.chance.randrange(300, 1_500), worker.begin)
        for client in self.clients:
            self.world.after_ms(self.chance.randrange(300, 1_500), client.begin)
        self.life.plan(faults)
        self.world.run_until(self.end_ms)
        self.heal()
        if not self.world.run_while(lambda: not self._has_settled(), ms_max=SETTLE_MS_MAX):
            raise Violation(f"after healing: {self._unsettled()}")
        self.checks.settled(self._members())
        for client in self.clients:
            client.check_unwritten()

    def heal(self) -> None:
        self.world.note("heal", "all")
        self.life.heal()
        for worker in self.workers:
            worker.quiet_until_ms = 0
        self._keep_up()

    def _keep_up(self) -> None:
        """What an operator does once all is well: start what is down, replace what is lost."""
        for node in list(self.nodes.values()):
            node.start()
            self.life.restart_if_failed(node)
        self._split_ms = self._split_ms + KEEP_UP_MS if self._is_split() else 0
        if self._split_ms >= SPLIT_MS_MAX:
            self._take_out_rotten()
        self.members.replace_lost()
        self.world.after_ms(KEEP_UP_MS, self._keep_up)

    def _is_split(self) -> bool:
        """The voters' ledgers differ, no majority agrees, and nobody is sent a copy."""
        return any(p.core.vouching._is_split for p in self._processes())

    def _take_out_rotten(self) -> None:
        """What `mesh doctor` is for when nobody in the mesh can say who is right."""
        for process in self._processes():
            if process.node.is_rotten and not self._is_as_others(process):
                process.node.stopped(Damaged("its rows are not those of the others"))

    def _processes(self) -> list[Process]:
        return [node.process for node in self.nodes.values() if node.process is not None]

    def _members(self) -> list[Process]:
        """The processes of those that have not been removed."""
        newest = max(self._processes(), key=lambda process: process.core.ledger.applied_index)
        members = newest.core.ledger.members()
        return [p for p in self._processes() if p.node.node_id in members]

    def _has_settled(self) -> bool:
        return not self._unsettled()

    def _unsettled(self) -> str:
        """What is still open; empty when everything has come to rest."""
        newest = max(self._processes(), key=lambda p: p.core.ledger.applied_index, default=None)
        if newest is None:
            return "no node is up"
        processes = self._members()
        ledgers = {(p.core.ledger.applied_index, p.core.ledger.digest) for p in processes}
        ends = {p.core.engine.last_index for p in processes}
        if len(ledgers) != 1 or ends != {next(iter(ledgers))[0]}:
            where = [
                f"{p.node.node_id} {p.core.engine.role} {p.core.ledger.applied_index} of "
                f"{p.core.engine.last_index} {p.core.trouble}"
                for p in processes
            ]
            return f"the nodes are not at one revision: {', '.join(where)}"
        counts = newest.core.reader.counts()
        if counts.running_count:
            return f"{counts.running_count} tasks are still running"
        if self.asking.open_count > len(self.workers) * 2:
            return f"{self.asking.open_count} requests have no answer"
        for process in processes:
            if process.node.is_rotten and not self._is_as_others(process):
                return f"the ledger of {process.node.node_id} is rotten, and nobody has noticed"
        return self.members.unsettled(newest)

    def _is_as_others(self, rotten: Process) -> bool:
        """Whether what rotted lay where it does no harm, or was written over."""
        try:
            digest = rotten.core.ledger.full_digest()
        except sqlite3.DatabaseError:
            return False  # a page that its own node has not met yet
        return any(
            digest == process.core.ledger.full_digest()
            for process in self._members()
            if not process.node.is_rotten
        )

    def counts(self) -> dict[str, int]:
        checks = self.checks
        counts = {
            "events": self.world.event_count,
            "entries": checks.last_index,
            "applied": checks.applied_count,
            "terms": max(checks.leaders, default=0),
            "tasks": len(checks.submitted),
            "effects": len(checks.done_by),
            "stale": sum(worker.stale_count for worker in self.workers),
            "reads": sum(client.read_count for client in self.clients),
            "installs": checks.install_count,
            "compactions": checks.compaction_count,
            "refused": checks.refused_count,
            "beyond": checks.beyond_count,
            "removals": self.members.change_count,
            "faults": sum(self.life.counts.values()),
        }
        return counts | {f"fault {kind}": n for kind, n in sorted(self.life.counts.items())}


def run_seed(
    seed: int,
    root: Path,
    *,
    minutes: float = 2.0,
    faults: list[Fault] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Result:
    """Live one life in a folder of its own, which is removed; whatever breaks is the violation."""
    gc.collect()
    end_ms = int(minutes * 60_000)
    trace = Trace(tell)
    folder = root / f"seed-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    mesh = Mesh(folder, seed, end_ms=end_ms, trace=trace)
    violation = ""
    try:
        mesh.run(faults_of(seed, end_ms) if faults is None else faults)
    except Beyond as limit:
        mesh.checks.beyond_count += 1
        if tell is not None:
            tell(f"the life ends here: {limit}")
    except Violation as broken:
        violation = str(broken)
    except Exception as bug:  # whatever the code under test raises is what was looked for
        place = traceback.extract_tb(bug.__traceback__)[-1]
        violation = f"{type(bug).__name__}: {bug} ({Path(place.filename).name}:{place.lineno})"
        if tell is not None:
            tell("".join(traceback.format_exception(bug)))
    finally:
        for node in mesh.nodes.values():
            if node.is_up:
                node.crash(power=False)
        shutil.rmtree(folder, ignore_errors=True)
    return Result(seed, violation, trace.digest(), mesh.world.now_ms, mesh.counts())

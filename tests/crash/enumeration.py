"""A crash at every mutating call of an activity, with the power lost or kept, and what must then hold.

Every node starts again from what is left; whatever had been promised holds: votes, entries that a
follower said it has, tasks accepted, results accepted; all nodes come to one sound ledger and go on.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consensus.engine.vote import VoteRecord
from consensus.errors import ConsensusError
from consensus.ledger import invariants
from consensus.ledger.records import SUCCEEDED
from tests.crash.activities import FIRST_TASK, NODES, Activity, Promises, Stage, read_promises
from tests.faultlib import oplog, powerloss
from tests.faultlib.control import CRASH_CODE, CrashWhen, Faults, Lies
from tests.faultlib.powerloss import Content, Names

ROOT = Path(__file__).resolve().parents[2]


FAST = Path("/dev/shm")  # where there is one: the disk's own speed is not what is looked at


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder of one's own, in memory if there is one there."""
    with tempfile.TemporaryDirectory(dir=FAST if FAST.is_dir() else None) as folder:
        yield Path(folder)


@dataclass(frozen=True, slots=True)
class Crash:
    """One run: where the process ends, and the seed of what the disk then forgets (None: nothing)."""

    activity: str
    call: int
    when: CrashWhen
    loss_seed: int | None
    names: Names = Names.ORDERED

    def __str__(self) -> str:
        loss = "power kept" if self.loss_seed is None else f"power lost, seed {self.loss_seed}"
        return f"{self.activity}: {self.when} call {self.call}, {loss}, names {self.names.value}"


@dataclass(slots=True)
class Tally:
    """What the runs of one activity came to. `problems` names each run with what broke."""

    activity: str
    calls: int = 0
    runs: int = 0
    promises: int = 0
    lost: int = 0
    restarts: int = 0
    problems: list[str] = field(default_factory=list)

    def plus(self, other: Tally) -> Tally:
        """Both together, under this one's name."""
        return Tally(
            self.activity,
            self.calls + other.calls,
            self.runs + other.runs,
            self.promises + other.promises,
            self.lost + other.lost,
            self.restarts + other.restarts,
            self.problems + other.problems,
        )


class Enumeration:
    """The runs of one activity, on a folder of its own."""

    def __init__(self, activity: Activity, folder: Path, *, lies: Lies = Lies.NONE) -> None:
        self.activity = activity
        self._lies = lies  # of the disk, from the moment on when calls are counted
        self.tally = Tally(activity.name)
        folder.mkdir(parents=True, exist_ok=True)
        self.faults = Faults(folder / "mesh", near=folder / "near", logs=True)
        self.root = self.faults.folder
        self._template = folder / "template"
        self._crashed = folder / "crashed"
        self._promises = folder / "promises"
        self._prepared = folder / "prepared"
        self._begin: Content = {}
        self.writes: set[int] = set()  # the calls that can end in their middle

    @contextmanager
    def actor(self) -> Iterator[subprocess.Popen[str]]:
        """The process that is to crash, over and over."""
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.actor"],
            cwd=ROOT,
            env={
                **os.environ,
                **self.faults.environment(),
                "PYTHONHASHSEED": "0",
                "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def prepare(self, actor: subprocess.Popen[str]) -> int:
        """Make the state that the activity begins from, play it once, and count its calls."""
        stage = Stage(self._template, Promises(self._prepared), incarnation=1, seed=0)
        self.activity.prepare(stage)
        # Taken as a kill leaves it: a ledger that is closed tidies up its write-ahead log.
        self._begin = powerloss.read_folder(self._template)
        stage.close()
        self._promises.unlink(missing_ok=True)
        code = self._play(actor, self._begin, Crash(self.activity.name, 0, "before", None))
        assert code == 0, f"{self.activity.name} without a crash ended with {code}"
        assert self.faults.log is not None
        [began] = [p["ticket"] for p in read_promises(self._promises) if p["kind"] == "began"]
        records = oplog.read(self.faults.log)
        self.writes = {
            record.call
            for record in records
            if record.kind is oplog.Kind.WRITE and record.ticket >= int(began)
        }
        self.tally.calls = self.faults.call_count
        return self.faults.call_count

    def crash(self, actor: subprocess.Popen[str], crashes: list[Crash]) -> None:
        """Crash once at their common call, and check what each of them may leave."""
        self._promises.unlink(missing_ok=True)
        code = self._play(actor, self._begin, crashes[0])
        if code != CRASH_CODE:
            self.tally.problems.append(f"{crashes[0]}: ended with {code}")
            return
        for crash in crashes:
            self._check(str(crash), self._left(crash))

    def crash_twice(self, actor: subprocess.Popen[str], first: Crash, second: Crash) -> None:
        """Crash, and again while the nodes come back from what the first one left.

        Nothing is checked when they were back before the second one's call.
        """
        self._promises.unlink(missing_ok=True)
        code = self._play(actor, self._begin, first)
        assert code == CRASH_CODE, f"{first}: ended with {code}"
        if self._play(actor, self._left(first), second, incarnation=2_000) != 0:
            self._check(f"{first}; then {second}", self._left(second))

    def _left(self, crash: Crash) -> Content:
        """What the nodes find when they come back."""
        if crash.loss_seed is None:
            return powerloss.read_folder(self.root)
        assert self.faults.log is not None
        rng = random.Random(crash.loss_seed * 100_003 + crash.call)
        return powerloss.what_may_be_left(self.root, self.faults.log, rng, names=crash.names)

    def _play(
        self,
        actor: subprocess.Popen[str],
        begin: Content,
        crash: Crash,
        *,
        incarnation: int = 1_000,
    ) -> int:
        assert self.faults.log is not None and actor.stdin is not None and actor.stdout is not None
        powerloss.write_folder(self.root, begin)
        powerloss.begin(self.root, self.faults.log)
        self.faults.heal()
        run = {
            "activity": crash.activity,
            "root": str(self.root),
            "promises": str(self._promises),
            "call": crash.call,
            "when": crash.when,
            "lies": self._lies.value,
            "incarnation": incarnation,
        }
        actor.stdin.write(json.dumps(run) + "\n")
        actor.stdin.flush()
        return int(actor.stdout.readline())

    def _check(self, crash: str, left: Content) -> None:
        """Start all nodes from what is left, and hold them to what was promised."""
        powerloss.write_folder(self._crashed, left)
        promises = read_promises(self._prepared) + read_promises(self._promises)
        tally = self.tally
        tally.runs += 1
        tally.promises += sum(promise["kind"] in ("task", "done") for promise in promises)
        nobody = Promises(Path(os.devnull))
        stage = Stage(self._crashed, nobody, incarnation=1_000_000, seed=tally.runs)
        broken: list[str] = []
        try:
            broken += broken_promises_of_files(self._crashed, promises)
            for node_id in NODES:
                stage.begin(node_id)
            tally.restarts += 1
            broken += broken_promises_of_journals(stage, promises)
            stage.settle()
            lost = lost_in(stage, promises)
            tally.lost += len(lost)
            broken += lost + unsound(stage)
        except (ConsensusError, AssertionError) as error:
            broken.append(f"{type(error).__name__}: {error}")
        finally:
            stage.close()
        tally.problems += [f"{crash}: {problem}" for problem in broken]


def broken_promises_of_files(root: Path, promises: list[dict[str, str | int]]) -> list[str]:
    """Votes that were given and are not on disk."""
    broken = []
    for node_id in NODES:
        record = VoteRecord(root / node_id / "vote")
        for promise in promises:
            if promise["kind"] != "vote" or promise["node"] != node_id:
                continue
            term, name = int(promise["term"]), promise["name"]
            if record.term < term or (record.term == term and record.voted_for != name):
                broken.append(f"{node_id} forgot its vote for {name} in term {term}")
    return broken


def broken_promises_of_journals(stage: Stage, promises: list[dict[str, str | int]]) -> list[str]:
    """Entries that a follower said it holds, and does not.

    Those of an older term than it is in may have been withdrawn since.
    """
    broken = []
    for node_id, core in stage.cluster.cores.items():
        held = [
            int(promise["index"])
            for promise in promises
            if promise["kind"] == "holds"
            and (promise["node"], promise["term"]) == (node_id, core.engine.term)
        ]
        if held and core.journal.last_index < max(held):
            broken.append(f"{node_id} ends at {core.journal.last_index}, not at {max(held)}")
    return broken


def lost_in(stage: Stage, promises: list[dict[str, str | int]]) -> list[str]:
    """Tasks and results that were accepted, and that some node does not have."""
    lost = []
    for node_id, core in stage.cluster.cores.items():
        db = core.ledger.connection
        tasks = {int.from_bytes(row[0], "big") for row in db.execute("SELECT task_id FROM task")}
        done = dict(db.execute("SELECT ref, fence FROM subtask WHERE state = ?", (SUCCEEDED,)))
        for promise in promises:
            if promise["kind"] == "task" and promise["number"] not in tasks:
                lost.append(f"{node_id} lost task {promise['number']}")
            elif promise["kind"] == "done" and done.get(promise["ref"]) != promise["fence"]:
                lost.append(f"{node_id} lost the result of subtask {promise['ref']}")
    return lost


def unsound(stage: Stage) -> list[str]:
    """What keeps the nodes from being one sound mesh that takes work."""
    cores = stage.cluster.cores
    for node_id in NODES:
        stage.submit(FIRST_TASK * 2 + int(node_id[1:]), through=node_id)
    stage.settle()
    found = [
        f"{node_id}: {violation}"
        for node_id, core in cores.items()
        for violation in invariants.violations(core.ledger.connection)
    ]
    if len({core.ledger.full_digest() for core in cores.values()}) != 1:
        found.append("the ledgers differ")
    return found

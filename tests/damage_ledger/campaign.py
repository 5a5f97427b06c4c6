"""Bits flipped and ends cut off in one voter's files, case after case: is each found, or nothing lost?

Three voters work over virtual time. One is killed; from an image of its folder, each case makes a
damaged one, looks at it as `doctor` does, and starts the node on it. Then one of these must come:
it refuses to start, it takes itself out of service, or its rows and indexes are found equal with
the majority's, and by an independent look at every row too. Anything else is a case that got
through. The other two voters must never take anything from it.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Claim,
    Command,
    Complete,
    OpenSession,
    Submit,
)
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Value
from quorumesh.v1.workers_pb2 import Completion

from consensus.core import Core
from consensus.engine.disk import Disk
from consensus.engine.opening import read_journal, segment_name
from consensus.errors import Damaged
from consensus.examining import examine
from consensus.ledger import Applied
from consensus.ledger.parts import parts
from tests.consensus.cluster import Cluster

SCRUB_MS = 200
CASE_MS_MAX = 20_000
TASKS = 120
VICTIM = "n3"
KINDS = ("ledger", "wal", "journal", "vote", "current")

AT_OPEN, IN_SERVICE, EQUAL, THROUGH = "at open", "in service", "nothing lost", "GOT THROUGH"


@dataclass(frozen=True, slots=True)
class Damage:
    """One change to one file: a bit flipped at a byte, or all from there cut off."""

    kind: str
    file: str  # below the node's folder
    at: int
    bit: int | None  # None: cut off

    def apply(self, root: Path) -> None:
        path = root / self.file
        data = bytearray(path.read_bytes())
        if self.bit is None:
            del data[self.at :]
        else:
            data[self.at] ^= 1 << self.bit
        path.write_bytes(data)

    def __str__(self) -> str:
        how = f"cut at {self.at}" if self.bit is None else f"bit {self.bit} of byte {self.at}"
        return f"{self.file}: {how}"


@dataclass(frozen=True, slots=True)
class Case:
    """What came of one damage. `doctor` says whether the files alone gave it away."""

    damage: Damage
    end: str
    doctor: bool
    why: str


class Grants:
    """Remembers what was granted, so that work can be completed."""

    def __init__(self) -> None:
        self.open: list[tuple[int, int]] = []

    def entry_applied(self, applied: Applied) -> None:
        self.open.extend((grant.subtask_ref, grant.fence) for grant in applied.grants)

    def ledger_replaced(self) -> None: ...


class Campaign:
    """Three voters, one of which is damaged again and again."""

    def __init__(self, root: Path, *, seed: int) -> None:
        self.rng = random.Random(seed)
        self.image = root / "image"
        self.cluster = Cluster(
            root, seed=seed, scrub_ms=SCRUB_MS, compact_entries=60, segment_bytes_max=16_384
        )
        self.sent_count = 0  # copies, in whole or part, that the victim sent
        self._work(root)

    def cases(self, kind: str, *, flips: int, cuts: int) -> Iterator[Case]:
        """Damage files of one kind so many times."""
        for number in range(flips + cuts):
            sizes = self._sizes(kind, whole_files=number >= flips)
            file = self.rng.choice(sorted(sizes))
            at = self.rng.randrange(sizes[file])
            bit = self.rng.randrange(8) if number < flips else None
            yield self._case(Damage(kind, file, at, bit))

    def _sizes(self, kind: str, *, whole_files: bool) -> dict[str, int]:
        """The files of one kind, and how many of their bytes are to be damaged.

        Nothing proves yet that the journal's last group was synced: without it the journal is one
        that a power loss cut short, and no look at it can tell more. Likewise a last file that was
        cut, for with its end went the proof.
        """
        sizes = {
            str(path.relative_to(self.image)): path.stat().st_size
            for path in self.image.rglob("*")
            if path.is_file() and kind_of(path) == kind
        }
        if kind == "journal":
            sequence, proven_bytes = read_journal(self.image / "journal", Disk()).proven
            last = f"journal/{segment_name(sequence)}"
            sizes = {file: size for file, size in sizes.items() if file < last}
            if not whole_files:
                sizes[last] = proven_bytes
        return {file: size for file, size in sizes.items() if size}

    def assert_others_are_well(self) -> None:
        """The two sound voters agree, hold all rows rightly, and took no copy from anybody."""
        self.cluster.world.run(self.cluster.agree)
        self.cluster.assert_sound()
        for core in self.cluster.cores.values():
            assert not core.diverged and core.snapshots.installed_count == 0
        assert self.sent_count == 0

    def _case(self, damage: Damage) -> Case:
        folder = self.cluster.root / VICTIM
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.image, folder)
        damage.apply(folder)
        seen = self._doctor(folder)
        try:
            core = self.cluster.start(VICTIM)
        except Damaged as error:
            self.cluster.wires.ends.pop(VICTIM, None)
            self.cluster.cores.pop(VICTIM, None)
            return Case(damage, AT_OPEN, seen, str(error))
        self._watch()
        try:
            end, why = self._run(core)
        finally:
            self._remember(folder)
            self.cluster.kill(VICTIM)
        return Case(damage, end, seen, why)

    def _remember(self, folder: Path) -> None:
        """What the node has promised since stays promised: only its ledger is that of the image."""
        for name in ("vote", "CURRENT"):
            shutil.copyfile(folder / name, self.image / name)
        shutil.rmtree(self.image / "journal")
        shutil.copytree(folder / "journal", self.image / "journal")

    def _doctor(self, folder: Path) -> bool:
        aside = self.cluster.root / "aside"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        return not examine(folder, aside).is_sound

    def _watch(self) -> None:
        end = self.cluster.wires.ends[VICTIM]
        send = end.send

        def watched(peer: str, frame: object) -> bool:
            self.sent_count += frame.WhichOneof("kind") == "snapshot"  # type: ignore[attr-defined]
            return send(peer, frame)  # type: ignore[arg-type]

        end.send = watched  # type: ignore[method-assign]

    def _run(self, core: Core) -> tuple[str, str]:
        """Until the node ends by itself, or a whole round of its own has found it equal."""
        cluster, rounds = self.cluster, core.scrubbing.view().round_count

        def is_compared() -> bool:
            view = core.scrubbing.view()
            return view.round_count > rounds and view.result == "equal"

        try:
            cluster.world.run(lambda: is_compared() and cluster.agree(), ms_max=CASE_MS_MAX)
        except Damaged as error:
            return IN_SERVICE, str(error)
        except AssertionError as error:
            return THROUGH, f"{error}: {core.scrubbing.view()}"
        other = next(one for name, one in cluster.cores.items() if name != VICTIM)
        difference = compare_rows(core.ledger_path, other.ledger_path)
        return (THROUGH, difference) if difference else (EQUAL, "")

    def _work(self, root: Path) -> None:
        """Join three voters, work until all tables have rows, and take the image."""
        cluster = self.cluster
        grants = Grants()
        cluster.start("n1").observe(grants)
        cluster.wait_leader()
        for name in ("n2", VICTIM):
            token = AddToken(token_id=name.encode(), secret_digest=b"s")
            admit = Admit(token_id=name.encode(), secret_digest=b"s", node_id=name, address=name)
            cluster.propose("n1", Command(add_token=token))
            cluster.propose("n1", Command(admit=admit))
            cluster.start(name, joined_voters={"n1": "n1"})
        cluster.world.run(lambda: len(cluster.cores["n1"].engine.voters) == 3)
        hello = OpenSession(session=b"w", node_id="n1", name="w", skills=["s"], nonce=1)
        cluster.propose("n1", Command(open_session=hello))
        cluster.propose("n1", Command(claim=Claim(session=b"w", epoch=1, sequence=1, slots=5)))
        for number in range(TASKS):
            cluster.propose("n1", _submit(number, self.rng))
            while number % 3 and grants.open:
                ref, fence = grants.open.pop()
                output = Value(data=self.rng.randbytes(self.rng.randrange(200)))
                done = Completion(subtask_ref=ref, fence=fence, output=output)
                cluster.propose("n1", Command(complete=Complete(completion=done)))
        cluster.world.run(cluster.agree)
        assert cluster.cores[VICTIM].compaction.done_count > 0
        shutil.copytree(root / VICTIM, self.image)
        # What only helps readers to share the log is made anew by whoever opens first.
        for path in self.image.rglob("*-shm"):
            path.unlink()
        cluster.kill(VICTIM)


def _submit(number: int, rng: random.Random) -> Command:
    wide = [SubtaskSpec(id=f"a{at}", skill="s" if at < 2 else "none") for at in range(3)]
    last = SubtaskSpec(id="z", skill="s", needs=["a0", "a1"])
    last.input.data = rng.randbytes(rng.randrange(600))
    spec = TaskSpec(name=f"task {number}", subtasks=[*wide, last])
    task_id = number.to_bytes(16, "big")
    return Command(submit=Submit(task_id=task_id, spec=spec.SerializeToString()))


def kind_of(path: Path) -> str:
    """Which kind of damage a file is for; empty: none."""
    if path.name == "ledger.db":
        return "ledger"
    if path.name == "ledger.db-wal":
        return "wal"
    if path.suffix == ".journal":
        return "journal"
    return {"vote": "vote", "CURRENT": "current"}.get(path.name, "")


def compare_rows(path: Path, other: Path) -> str:
    """Where two live ledgers differ, looked at row by row and index by index; empty: nowhere."""
    with (
        closing(sqlite3.connect(path.as_uri() + "?mode=ro", uri=True)) as one,
        closing(sqlite3.connect(other.as_uri() + "?mode=ro", uri=True)) as two,
    ):
        said = one.execute("PRAGMA integrity_check").fetchall()
        if said != [("ok",)]:
            return f"its structure: {said[:3]}"
        for part in parts():
            names = ", ".join(column.name for column in part.columns)
            order = ", ".join(column.name for column in part.key)
            where = f" WHERE {part.where}" if part.where else ""
            query = f"SELECT {names} FROM {part.source}{where} ORDER BY {order}"
            if one.execute(query).fetchall() != two.execute(query).fetchall():
                return f"its {part.name}"
    return ""

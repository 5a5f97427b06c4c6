"""Measures a mesh whose ledger is large while a voter that missed much of the log comes back."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from consensus.compaction import HELD_BYTES_MAX
from consensus.ledger import Ledger
from consensus.snapshots import WAL_BYTES_MAX
from tests.e2e.mesh_process import LocalMesh, NodeProcess, Site, wait_for
from tests.size.filling import Filling
from tests.size.measuring import Bytes, Hold, Load, holds_of

SLOTS = 256
LAG_ENTRIES_MAX = 50  # behind its leader by no more than a voter is that may be added
LOAD_ALONE_S = 8.0
AFTER_S = 4.0
CATCH_UP_S_MAX = 600.0
HOLD_MS_BAR, GAP_S_BAR = 60.0, 1.0
JOURNAL_BYTES_BOUND = HELD_BYTES_MAX + (64 << 20)
HOLDS_SHOWN = 5
PORTS = "ports.json"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Size:
    """How large the run is."""

    tasks: int
    missed: int
    rate: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run has shown. Holds are of each node while the copy was made, sent and installed."""

    tasks: int
    missed: int
    ledger_bytes: int
    start_s: float  # monotonic, when the voter was started
    install_s: float  # until its copy was installed
    catch_up_s: float
    installs: int
    rate_alone: float
    rate: float
    gap_s: float
    holds: dict[str, list[Hold]]  # longest first, by what the node is
    holds_alone: dict[str, list[Hold]]
    journal_bytes: int
    wal_bytes: int
    failed: int

    def longest_ms(self, what: str, *, alone: bool = False) -> float:
        holds = (self.holds_alone if alone else self.holds).get(what, [])
        return round(max((hold.own_ms for hold in holds), default=0.0), 1)

    def faults(self) -> list[str]:
        """Which bars were not met."""
        found = [
            f"the loop of the {what} was held up for {self.longest_ms(what)} ms"
            for what in self.holds
            if self.longest_ms(what) > HOLD_MS_BAR
        ]
        if self.gap_s > GAP_S_BAR:
            found.append(f"no write was acknowledged for {self.gap_s:.2f} s")
        if self.journal_bytes > JOURNAL_BYTES_BOUND or self.wal_bytes > WAL_BYTES_MAX:
            found.append(f"{self.journal_bytes} of journal, {self.wal_bytes} of write-ahead log")
        if self.installs < 1:
            found.append("no copy was installed")
        if self.failed:
            found.append(f"{self.failed} tasks of the load failed")
        return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/size", description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000, help="in the ledger at the start")
    parser.add_argument("--missed", type=int, default=5_000, help="entries that one voter missed")
    parser.add_argument("--rate", type=int, default=500, help="subtasks a second all the while")
    parser.add_argument(
        "--folder", type=Path, help="where to work; what was filled there is used again"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    size = Size(options.tasks, options.missed, options.rate)

    def say(text: str) -> None:
        console.print(f"[dim]{text}[/dim]")

    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        figures = measure(options.folder, size, say)
    else:
        with tempfile.TemporaryDirectory(prefix="quorumesh-size-") as folder:
            figures = measure(Path(folder), size, say)
    show(console, figures)
    if options.json is not None:
        options.json.write_text(json.dumps(asdict(figures), indent=2) + "\n", encoding="utf-8")
    return 1 if figures.faults() else 0


def measure(folder: Path, size: Size, say: Say) -> Figures:
    """Fill, start two nodes, put the load on them, start the third, and watch until it is level."""
    prepared = folder / "prepared"
    if not (prepared / PORTS).exists():
        with LocalMesh(prepared, slots=SLOTS, workers=0) as mesh:
            shutil.rmtree(prepared, ignore_errors=True)
            prepared.mkdir()
            mesh.grow(3)
            for node in mesh.nodes:
                node.stop()
            give_ledgers(mesh.nodes, prepared / "filling", size, say)
            ports = [node.port for node in mesh.nodes]
            (prepared / PORTS).write_text(json.dumps(ports), encoding="ascii")
    ports = json.loads((prepared / PORTS).read_text(encoding="ascii"))
    root = folder / "mesh"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root)
    with LocalMesh(root) as mesh:
        for at, port in enumerate(ports, 1):
            holds = root / f"node-{at}.holds"
            launcher = [sys.executable, "-m", "tests.size.probed_node", str(holds)]
            node = NodeProcess(
                name=f"node-{at}",
                root=root,
                slots=SLOTS,
                agents=(),
                workers=0 if at == 3 else 1,
                environment={},
                site=Site(port=port, launcher=launcher),
            )
            mesh.nodes.append(node)
        return asyncio.run(_come_back(mesh, size, say))


def give_ledgers(nodes: list[NodeProcess], folder: Path, size: Size, say: Say) -> None:
    """Two nodes get the whole ledger, the third one that ends `missed` entries before it."""
    path = folder / "ledger.db"
    folder.mkdir()
    first = _ledger_of(nodes[0])
    shutil.copy(first, path)
    say(f"Filling a ledger with {size.tasks:,} tasks …")
    bulk = size.tasks - size.missed // 2
    with Filling(path) as filling:
        filling.add_tasks(bulk, lambda done: say(f"  {done:,} tasks"))
    _give(nodes[2], path)
    with Filling(path) as filling:
        filling.add_entries(size.missed, lambda done: say(f"  {done:,} entries missed"))
    for node in nodes[:2]:
        _give(node, path)
    shutil.rmtree(folder)


def _ledger_of(node: NodeProcess) -> Path:
    state = node.data / "state"
    name = (state / "CURRENT").read_text(encoding="ascii").strip()
    return state / name / "ledger.db"


def _give(node: NodeProcess, filled: Path) -> None:
    """As an install does: a folder of its own for the ledger, and its name in CURRENT."""
    ledger = Ledger.open(str(filled))
    name = f"ledger-{ledger.applied_index}"
    ledger.close()
    state = node.data / "state"
    (state / name).mkdir()
    shutil.copy(filled, state / name / "ledger.db")
    (state / "CURRENT").write_text(f"{name}\n", encoding="ascii")


async def _come_back(mesh: LocalMesh, size: Size, say: Say) -> Figures:
    first, second, late = mesh.nodes
    for node in (first, second):
        node.start()
    for node in (first, second):
        await asyncio.to_thread(mesh.wait_ready, node)
    leader = await asyncio.to_thread(mesh.leader)
    follower = second if leader is first else first
    ledger_bytes = _ledger_of(leader).stat().st_size
    load = Load(follower, size.rate)
    with Bytes(mesh.nodes) as seen:
        running = asyncio.create_task(load.run())
        await load.has_begun()
        alone_s = time.monotonic()
        say(f"{size.rate} subtasks/s on two nodes of a ledger of {ledger_bytes >> 20} MiB …")
        await asyncio.sleep(LOAD_ALONE_S)
        start_s = time.monotonic()
        say(f"Starting the node that missed {size.missed:,} entries …")
        late.start()
        installs, install_s = await asyncio.to_thread(_wait_level, leader, late)
        level_s = time.monotonic()
        await asyncio.sleep(AFTER_S)
        end_s = time.monotonic()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    names = {"leader": leader, "follower": follower, "voter that came back": late}
    files = {what: mesh.root / f"{node.name}.holds" for what, node in names.items()}
    return Figures(
        tasks=size.tasks,
        missed=size.missed,
        ledger_bytes=ledger_bytes,
        start_s=start_s,
        install_s=round(install_s - start_s, 1),
        catch_up_s=round(level_s - start_s, 1),
        installs=installs,
        rate_alone=round(load.done_per_s(alone_s, start_s)),
        rate=round(load.done_per_s(start_s, level_s)),
        gap_s=round(load.gap_s(start_s, end_s), 3),
        holds={w: holds_of(f, since_s=start_s, until_s=end_s) for w, f in files.items()},
        holds_alone={w: holds_of(f, since_s=alone_s, until_s=start_s) for w, f in files.items()},
        journal_bytes=seen.journal_bytes,
        wal_bytes=seen.wal_bytes,
        failed=load.failed_count,
    )


def _wait_level(leader: NodeProcess, late: NodeProcess) -> tuple[int, float]:
    """Until the node has applied what its leader has, within a few entries.

    Returns how many copies it installed, and the monotonic time at which the first was seen.
    """
    seen_s: list[float] = []

    def level() -> bool:
        assert not late.has_ended(), late.log_tail()
        mine = late.status()
        if mine.snapshot_install_count and not seen_s:
            seen_s.append(time.monotonic())
        return mine.revision + LAG_ENTRIES_MAX >= leader.status().revision

    wait_for(level, "the voter that came back is level", within_s=CATCH_UP_S_MAX)
    return late.status().snapshot_install_count, min(seen_s, default=time.monotonic())


def show(console: Console, figures: Figures) -> None:
    title = (
        f"{figures.tasks:,} tasks, {figures.missed:,} entries missed, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("what", "measured", "bar"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for what in figures.holds:
        table.add_row(
            f"longest hold of the {what}'s loop (before: {figures.longest_ms(what, alone=True)})",
            f"{figures.longest_ms(what)} ms",
            f"{HOLD_MS_BAR:.0f} ms",
        )
    table.add_row("ledger", f"{figures.ledger_bytes >> 20} MiB", "")
    table.add_row("catch-up, from its start", f"{figures.catch_up_s} s", "")
    table.add_row("of that until its copy was installed", f"{figures.install_s} s", "")
    table.add_row("subtasks done meanwhile", f"{figures.rate:.0f}/s", "")
    table.add_row("subtasks done before", f"{figures.rate_alone:.0f}/s", "")
    table.add_row("longest write gap", f"{figures.gap_s} s", f"{GAP_S_BAR:.0f} s")
    for text, count, bound in (
        ("journal", figures.journal_bytes, JOURNAL_BYTES_BOUND),
        ("write-ahead log", figures.wal_bytes, WAL_BYTES_MAX),
    ):
        table.add_row(f"largest {text}", f"{count / (1 << 20):.1f} MiB", f"{bound >> 20} MiB")
    console.print(table)
    for what, holds in figures.holds.items():
        for hold in holds[:HOLDS_SHOWN]:
            console.print(
                f"{what}: {hold.held_ms} ms at {hold.at_s - figures.start_s:.1f} s, "
                f"{hold.starved_ms} starved, {hold.cpu_ms} running, {hold.gc_ms} collecting, "
                f"{hold.others_starved_ms} another thread starved: "
                f"{hold.stack or 'not seen'}"
            )
    for fault in figures.faults():
        console.print(f"[red]not met: {fault}[/red]")


if __name__ == "__main__":
    sys.exit(main())

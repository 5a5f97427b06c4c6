"""Measures a mesh of three nodes and two workers on this machine, beside the floors."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mesh import AsyncClient
from tests.bench.loads import chain, fan, flat, throughput, timed, write_gap
from tests.bench.restart import measure_restart
from tests.e2e.mesh_process import LocalMesh, NodeProcess

SLOTS = 256
WARM_SUBTASKS = 1_000
FAILOVER_WITHIN_S = 15.0
SYNC_TRIES = 50

Figures = dict[str, object]


@dataclass(frozen=True, slots=True)
class Trials:
    """How often each thing is measured."""

    flow_subtasks: int
    roundtrips: int
    chains: int
    fans: int
    failovers: int
    restart_tasks: int


QUICK = Trials(
    flow_subtasks=10_000, roundtrips=300, chains=5, fans=5, failovers=5, restart_tasks=100_000
)
FULL = Trials(
    flow_subtasks=40_000, roundtrips=1_000, chains=10, fans=10, failovers=10, restart_tasks=100_000
)

# Key, what it is, unit, whether more is better, the floor (None: none was set).
ROWS: Sequence[tuple[str, str, str, bool, float | None]] = (
    ("subtasks_per_s", "durable no-op subtasks", "/s", True, 2_000),
    ("roundtrip_ms.p50", "submit to result, median", "ms", False, 10),
    ("roundtrip_ms.p99", "submit to result, 99 of 100", "ms", False, None),
    ("chain_100_s", "chain of 100", "s", False, 1),
    ("fan_1000_s", "fan 1 to 1000 to 1", "s", False, 1),
    ("failover_s.median", "write gap when the leader is killed, median", "s", False, 2),
    ("failover_s.max", "the longest of these", "s", False, None),
    ("cpu_s_per_1000", "processor time of nodes and workers per 1,000 subtasks", "s", False, None),
    ("bytes_per_task", "ledger on disk per task of one subtask", "bytes", False, None),
    ("restart_100k_s", "open a ledger of 100,000 tasks and grant from it", "s", False, None),
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer trials; at most 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here as well")
    options = parser.parse_args(arguments)
    wide = None if sys.stdout.isatty() else 120
    console = Console(highlight=False, width=wide)
    started = time.monotonic()
    trials = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="quorumesh-bench-") as folder:
        figures = measure(Path(folder), trials, lambda text: console.print(f"[dim]{text}[/dim]"))
    figures["took_s"] = round(time.monotonic() - started, 1)
    console.print(table_of(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        console.print(f"Written to {options.json}.")
    return 0


def measure(folder: Path, trials: Trials, say: Callable[[str], None]) -> Figures:
    """All figures, each with the number of trials behind it."""
    figures: Figures = {"sync_ms": sync_ms(folder), "cores": os.cpu_count()}
    say(f"Filling a ledger with {trials.restart_tasks:,} tasks and opening it …")
    restart = measure_restart(folder / "restart", trials.restart_tasks)
    figures["bytes_per_task"] = {"value": round(restart.bytes_per_task), "n": restart.tasks}
    figures["restart_100k_s"] = {"value": round(restart.open_s, 3), "n": restart.opens}
    say("Starting three nodes, two of them with a worker …")
    with LocalMesh(folder, slots=SLOTS) as mesh:
        mesh.add(workers=0)
        mesh.add(workers=1)
        mesh.add(workers=1)
        asyncio.run(_measure_mesh(mesh, trials, figures, say))
    return figures


async def _measure_mesh(
    mesh: LocalMesh, trials: Trials, figures: Figures, say: Callable[[str], None]
) -> None:
    follower = mesh.followers()[0]
    async with _client(follower) as client:
        await throughput(client, WARM_SUBTASKS, lambda: 0.0)
        say(f"{trials.flow_subtasks:,} no-op subtasks …")
        flow = await throughput(
            client, trials.flow_subtasks, lambda: sum(node.cpu_s() for node in mesh.running())
        )
        rate, cpu_s = flow.subtasks / flow.seconds, flow.cpu_s * 1_000 / flow.subtasks
        figures["subtasks_per_s"] = {"value": round(rate), "n": flow.subtasks}
        figures["cpu_s_per_1000"] = {"value": round(cpu_s, 3), "n": flow.subtasks}
        say(f"{trials.roundtrips:,} round trips, {trials.chains} chains, {trials.fans} fans …")
        trips = [await timed(client, flat(1, "round trip")) for _ in range(trials.roundtrips)]
        figures["roundtrip_ms"] = {
            "p50": round(statistics.median(trips) * 1_000, 2),
            "p99": round(sorted(trips)[int(len(trips) * 0.99) - 1] * 1_000, 2),
            "n": len(trips),
        }
        chains = [await timed(client, chain(100)) for _ in range(trials.chains)]
        figures["chain_100_s"] = {"value": round(statistics.median(chains), 3), "n": len(chains)}
        fans = [await timed(client, fan(1_000)) for _ in range(trials.fans)]
        figures["fan_1000_s"] = {"value": round(statistics.median(fans), 3), "n": len(fans)}
    say(f"Killing the leader {trials.failovers} times …")
    gaps = [await _failover(mesh) for _ in range(trials.failovers)]
    figures["failover_s"] = {
        "median": round(statistics.median(gaps), 3),
        "max": round(max(gaps), 3),
        "n": len(gaps),
    }


async def _failover(mesh: LocalMesh) -> float:
    """The write gap seen through a follower; the killed node is back and ready afterwards."""
    leader = await asyncio.to_thread(mesh.leader)
    follower = next(node for node in mesh.running() if node is not leader)
    async with _client(follower) as client:
        gap_s = await write_gap(client, leader.kill, within_s=FAILOVER_WITHIN_S)
    leader.start()
    await asyncio.to_thread(mesh.wait_ready, leader, voters=3)
    return gap_s


def _client(node: NodeProcess) -> AsyncClient:
    return AsyncClient([node.address], profile=node.profile, timeout_s=60)


def sync_ms(folder: Path) -> float:
    """What one sync of a small write costs on this disk: the figures stand on it."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(SYNC_TRIES):
            file.write(b"x" * 512)
            file.flush()
            start = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - start)
    return round(statistics.median(times) * 1_000, 3)


def table_of(figures: Figures) -> Table:
    title = f"{figures['cores']} cores, one sync takes {figures['sync_ms']} ms here"
    table = Table(title=title, title_justify="left")
    for heading in ("figure", "what", "measured", "floor", "n"):
        table.add_column(heading, justify="right" if heading in ("measured", "n") else "left")
    for key, what, unit, more_is_better, floor in ROWS:
        name, _, part = key.partition(".")
        figure = figures[name]
        assert isinstance(figure, dict)
        value = figure[part or "value"]
        met = floor is None or (value >= floor if more_is_better else value <= floor)
        bound = "" if floor is None else f"{'≥' if more_is_better else '≤'} {floor:,} {unit}"
        shown = f"{value:,} {unit}" if met else f"[red]{value:,} {unit}[/red]"
        table.add_row(key, what, shown, bound, f"{figure['n']:,}")
    return table


if __name__ == "__main__":
    sys.exit(main())

"""Follows a batch through the ledger's events, and kills the leader once it is well under way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from quorumesh.v1.tasks_pb2 import TaskEvent
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from examples.demo.nodes import Mesh, Node
from mesh import Client

KILL_SHARE = 0.3  # of all subtasks done
KILL_HELD_MIN = 3  # claims that the leader's worker must hold
_ENDS = frozenset(
    {
        TaskEvent.SUBTASK_SUCCEEDED,
        TaskEvent.ATTEMPT_FAILED,
        TaskEvent.ATTEMPT_LOST,
        TaskEvent.SUBTASK_FAILED,
        TaskEvent.SUBTASK_CANCELLED,
        TaskEvent.DELEGATED,
    }
)
_TASK_ENDS = frozenset({TaskEvent.TASK_SUCCEEDED, TaskEvent.TASK_FAILED, TaskEvent.TASK_CANCELLED})


@dataclass(slots=True)
class Tallies:
    """What the events so far say: who holds what, and how much is done."""

    held: dict[str, dict[str, TaskEvent]] = field(default_factory=dict)  # node id → subtask → claim
    done_count: int = 0

    def take(self, event: TaskEvent) -> None:
        if event.kind == TaskEvent.CLAIMED:
            self.held.setdefault(event.node_id, {})[event.subtask] = event
        elif event.kind in _ENDS:
            for claims in self.held.values():
                claims.pop(event.subtask, None)
            self.done_count += event.kind == TaskEvent.SUBTASK_SUCCEEDED

    def held_by(self, node_id: str) -> dict[str, TaskEvent]:
        return self.held.get(node_id, {})


@dataclass(frozen=True, slots=True)
class Kill:
    """What was killed, when, and the claims it held as far as the follower had heard."""

    node: Node
    pid: int
    wall_ms: int
    held: dict[str, TaskEvent]


class Failover:
    """Measures, beside the batch, how long until a survivor leads and can write."""

    def __init__(self, mesh: Mesh, killed_id: str) -> None:
        self.leader = ""
        self.seconds = 0.0
        self._began = time.monotonic()
        self._thread = threading.Thread(target=self._look, args=(mesh, killed_id), daemon=True)
        self._thread.start()

    def wait(self, s_max: float) -> bool:
        """True: a survivor leads."""
        self._thread.join(s_max)
        return bool(self.leader)

    def _look(self, mesh: Mesh, killed_id: str) -> None:
        while time.monotonic() - self._began < 30:
            found = mesh.leader(besides=killed_id)
            if found is not None:
                self.seconds = time.monotonic() - self._began
                self.leader = found[0].name
                return
            time.sleep(0.02)


def follow(
    client: Client,
    task_id: str,
    *,
    mesh: Mesh,
    leader: Node,
    subtask_count: int,
    console: Console,
    on_taken_over: Callable[[TaskEvent, TaskEvent], None],
) -> tuple[Kill | None, Failover | None]:
    """Watch until the task has ended; kill the leader on the way.

    `on_taken_over(lost claim, new claim)` is called once, for the first claim taken over.
    """
    tallies = Tallies()
    kill: Kill | None = None
    failover: Failover | None = None
    with _Progress(console, subtask_count) as show:
        for event in client.watch(task_id):
            tallies.take(event)
            show(tallies, mesh, kill)
            ready = tallies.done_count >= KILL_SHARE * subtask_count
            if kill is None and ready and len(tallies.held_by(leader.node_id)) >= KILL_HELD_MIN:
                kill = _kill(leader, dict(tallies.held_by(leader.node_id)))
                failover = Failover(mesh, leader.node_id)
                held = len(kill.held)
                console.print(
                    f"  [bold red]kill -9 {kill.pid}[/] — {leader.name}, the leader, "
                    f"holding {held} claims, {tallies.done_count} of {subtask_count} subtasks done"
                )
            elif kill and event.kind == TaskEvent.CLAIMED and event.subtask in kill.held:
                lost = kill.held[event.subtask]
                if event.fence > lost.fence and event.node_id != leader.node_id:
                    on_taken_over(lost, event)
            if event.kind in _TASK_ENDS:
                break
    return kill, failover


def _kill(node: Node, held: dict[str, TaskEvent]) -> Kill:
    pid = node.pid
    wall_ms = time.time_ns() // 1_000_000
    node.kill()
    return Kill(node=node, pid=pid, wall_ms=wall_ms, held=held)


class _Progress:
    """A bar with what each node holds beside it."""

    def __init__(self, console: Console, total: int) -> None:
        self._bar = Progress(
            TextColumn("  {task.completed:>3.0f}/{task.total:.0f} subtasks"),
            BarColumn(bar_width=36),
            TimeElapsedColumn(),
            TextColumn("{task.fields[holds]}"),
            console=console,
            transient=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=total, holds="")

    def __enter__(self) -> Callable[[Tallies, Mesh, Kill | None], None]:
        self._bar.start()
        return self._show

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def _show(self, tallies: Tallies, mesh: Mesh, kill: Kill | None) -> None:
        dead = kill.node.name if kill else ""
        holds = "  ".join(
            f"[red]{node.name} dead[/]"
            if node.name == dead
            else f"{node.name} {len(tallies.held_by(node.node_id)):>2}"
            for node in mesh.nodes
        )
        self._bar.update(self._task, completed=tallies.done_count, holds=f"running: {holds}")

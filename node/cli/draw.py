"""Tables, trees and lines for people. Plain functions from messages to what `rich` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from quorumesh.v1 import locks_pb2, mesh_pb2, tasks_pb2, values_pb2
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mesh.ids import id_text
from node.cli.plain import plain_value

OUTPUT_CHARS_MAX = 200
_COLOUR = {
    "WAITING": "dim", "BACKOFF": "yellow", "READY": "cyan", "CLAIMED": "blue",
    "DELEGATED": "blue", "SUCCEEDED": "green", "FAILED": "red", "CANCELLED": "magenta",
    "RUNNING": "blue",
}  # fmt: skip
_EVENT_COLOUR = {
    "SUBTASK_SUCCEEDED": "green", "TASK_SUCCEEDED": "bold green", "TASK_FAILED": "bold red",
    "SUBTASK_FAILED": "red", "ATTEMPT_FAILED": "yellow", "ATTEMPT_LOST": "yellow",
    "STALE_REFUSED": "bold yellow", "CLAIMED": "blue", "BALLOT_DECIDED": "bold cyan",
}  # fmt: skip


def state_name(state: int) -> str:
    """The name of a task's state as people read it."""
    return values_pb2.TaskState.Name(values_pb2.TaskState.ValueType(state)).removeprefix("TASK_")


def subtask_state_name(state: int) -> str:
    return values_pb2.SubtaskState.Name(values_pb2.SubtaskState.ValueType(state))


def pretty(data: object) -> str:
    """JSON as people read it."""
    return json.dumps(data, ensure_ascii=False, indent=2)


def clock(wall_ms: int) -> str:
    """Local time of day, with milliseconds; empty for 0."""
    if not wall_ms:
        return ""
    stamp = datetime.fromtimestamp(wall_ms / 1000)
    return stamp.strftime("%H:%M:%S.") + f"{wall_ms % 1000:03d}"


def task_table(tasks: Sequence[tasks_pb2.TaskInfo]) -> Table | Text:
    """One row per task."""
    if not tasks:
        return Text("no tasks yet: mesh submit FILE", style="dim")
    table = _table("id", "name", "state", "done", "submitted", "took")
    for task in tasks:
        took = f"{(task.ended_wall_ms - task.submitted_wall_ms) / 1000:.1f} s"
        table.add_row(
            id_text(task.task_id),
            escape(task.name),
            _coloured(state_name(task.state)),
            f"{task.ended_count}/{task.subtask_count}",
            clock(task.submitted_wall_ms),
            took if task.ended_wall_ms else "",
        )
    return table


def task_tree(task: tasks_pb2.TaskInfo, *, outputs: bool = False) -> Tree:
    """A task, its subtasks under those that spawned them, and its ballots."""
    head = f"[bold]{escape(task.name or 'task')}[/] {id_text(task.task_id)} "
    head += f"{_coloured(state_name(task.state))} {task.ended_count}/{task.subtask_count}"
    if task.HasField("failure"):
        head += f" [red]{escape(task.failure.code)}: {escape(task.failure.message)}[/]"
    tree = Tree(head)
    children: dict[str, list[tasks_pb2.SubtaskInfo]] = {}
    for subtask in task.subtasks:
        children.setdefault(subtask.parent, []).append(subtask)
    _grow(tree, "", children, outputs)
    for ballot in task.ballots:
        tree.add(_ballot_line(ballot))
    return tree


def event_text(event: tasks_pb2.TaskEvent) -> str:
    """One event in a few words, without marks for colour."""
    kind = tasks_pb2.TaskEvent.Kind.Name(event.kind).lower().replace("_", " ")
    parts = [event.subtask, kind]
    if event.kind == tasks_pb2.TaskEvent.PROGRESS:
        parts = [event.subtask, f"{event.fraction:.0%}"]
    if event.worker or event.node_id:
        parts.append(f"{event.node_id}/{event.worker}")
    if event.fence:
        parts.append(f"fence {event.fence}")
    if event.detail:
        parts.append(event.detail)
    return " ".join(part for part in parts if part)


def event_line(event: tasks_pb2.TaskEvent, *, with_task: bool = False) -> Text:
    """One event as a line: time, revision, what happened."""
    kind = tasks_pb2.TaskEvent.Kind.Name(event.kind)
    line = Text(f"{clock(event.wall_ms):12} r{event.revision:<7} ", style="dim")
    if with_task:
        line.append(f"{id_text(event.task_id)[-8:]} ")
    line.append(event_text(event), style=f"not dim {_EVENT_COLOUR.get(kind, '')}")
    return line


def status_tables(status: mesh_pb2.StatusReply) -> list[Table | Text]:
    """How the answering node sees the mesh: itself, the members, the workers."""
    why = status.trouble or "it hears no leader with a majority"
    write = "can write" if status.writable else f"READ-ONLY: {why}"
    head = Text()
    head.append(f"mesh {status.mesh_id}  ", style="bold")
    head.append(write, style="green" if status.writable else "bold red")
    facts = _table("", "", show_header=False)
    rows: Mapping[str, str] = {
        "this node": f"{status.name} ({status.node_id}), {status.role}",
        "leader": status.leader_id or "none known",
        "heard from it": f"{status.leader_age_ms} ms ago",
        "revision": f"{status.revision} (committed {status.commit_index}, term {status.term})",
        "tasks": f"{status.task_count}; subtasks ready {status.ready_count}, "
        f"claimed {status.claimed_count}",
        "disk": f"journal {_size(status.journal_bytes)}, ledger {_size(status.ledger_bytes)}",
        "last compared": _compared(status),
        "runs on": f"{status.loop}, version {status.version}",
    }
    for name, text in rows.items():
        facts.add_row(name, escape(text))
    return [head, facts, member_table(status.members), worker_table(status.workers)]


def _compared(status: mesh_pb2.StatusReply) -> str:
    """What came of comparing this node's rows with those of the other voters."""
    if not status.HasField("scrub"):
        return "not yet since it started"
    scrub = status.scrub
    words = {
        "equal": "equal with a majority of the voters",
        "undecided": "too few voters answered",
        "differs": "the voters DIFFER, and no majority agrees: mesh doctor",
        "damaged": "this node's ledger is DAMAGED",
    }.get(scrub.result, scrub.result)
    return f"{words}, at revision {scrub.revision}, {scrub.age_ms / 1_000:.0f} s ago"


def member_table(members: Sequence[mesh_pb2.Member]) -> Table:
    """One row per node."""
    table = _table("node", "name", "address", "votes", "seems", "")
    for member in members:
        table.add_row(
            member.node_id,
            escape(member.name),
            member.address,
            "leaving" if member.leaving else "yes" if member.voter else "no",
            "[green]alive[/]" if member.alive else "[red]gone[/]",
            "leader" if member.leader else "",
        )
    return table


def worker_table(workers: Sequence[mesh_pb2.WorkerStatus]) -> Table | Text:
    """One row per worker, with what it holds."""
    if not workers:
        return Text("no workers: start a node with --agents MODULE", style="dim")
    table = _table("worker", "node", "held", "skills", "")
    for worker in workers:
        table.add_row(
            escape(worker.name),
            worker.node_id,
            f"{worker.held}/{worker.slots}",
            escape(", ".join(worker.skills)),
            "" if worker.open else "[red]closed[/]",
        )
    return table


def lock_table(locks: Sequence[locks_pb2.LockInfo]) -> Table | Text:
    """One row per claim that is held."""
    if not locks:
        return Text("nothing is claimed", style="dim")
    table = _table("what", "holder", "fence", "lease left", "since")
    for lock in locks:
        left = f"{lock.lease_ms_left / 1000:.1f} s"
        table.add_row(
            escape(lock.name), escape(lock.holder), str(lock.fence), left,
            clock(lock.claimed_wall_ms),
        )  # fmt: skip
    return table


def _grow(
    tree: Tree,
    parent: str,
    children: Mapping[str, Sequence[tasks_pb2.SubtaskInfo]],
    outputs: bool,
) -> None:
    pending = [(tree, parent)]
    while pending:
        branch, name = pending.pop()
        for subtask in children.get(name, ()):
            twig = branch.add(_subtask_line(subtask))
            if outputs and subtask.HasField("output"):
                text = json.dumps(plain_value(subtask.output), ensure_ascii=False)
                cut = text if len(text) <= OUTPUT_CHARS_MAX else text[:OUTPUT_CHARS_MAX] + " …"
                twig.add(Text(cut, style="dim"))
            pending.append((twig, subtask.id))


def _subtask_line(subtask: tasks_pb2.SubtaskInfo) -> str:
    parts = [f"[bold]{escape(subtask.id)}[/] {escape(subtask.skill)}"]
    parts.append(_coloured(subtask_state_name(subtask.state)))
    if subtask.worker or subtask.node_id:
        parts.append(escape(f"{subtask.node_id}/{subtask.worker}"))
    if subtask.fence:
        parts.append(f"fence {subtask.fence}")
    if subtask.attempt > 1:
        parts.append(f"attempt {subtask.attempt}")
    if subtask.label:
        parts.append(f"votes [cyan]{escape(subtask.label)}[/]")
    if subtask.needs:
        parts.append(f"[dim]needs {escape(', '.join(subtask.needs))}[/]")
    if subtask.waiting_reason:
        parts.append(f"[yellow]{escape(subtask.waiting_reason)}[/]")
    if subtask.HasField("failure"):
        parts.append(f"[red]{escape(subtask.failure.code)}: {escape(subtask.failure.message)}[/]")
    return "  ".join(parts)


def _ballot_line(ballot: tasks_pb2.BallotInfo) -> str:
    votes = ", ".join(f"{escape(tally.label)} {tally.votes}" for tally in ballot.tallies)
    if ballot.HasField("failure"):
        end = f"[red]{escape(ballot.failure.code)}[/]"
    else:
        end = f"[green]{escape(ballot.label)}[/]" if ballot.decided else "[dim]open[/]"
    return f"[bold]ballot {escape(ballot.id)}[/]  {end}  [dim]{votes}[/]"


def _table(*names: str, show_header: bool = True) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", show_header=show_header)
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name in ("id", "node", "address"))
    return table


def _coloured(state: str) -> str:
    return f"[{_COLOUR.get(state, 'default')}]{state.lower()}[/]"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"

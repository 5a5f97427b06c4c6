"""How the demo speaks: every line it prints is made here."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from quorumesh.v1.mesh_pb2 import DigestReply, StatusReply
from quorumesh.v1.tasks_pb2 import TaskEvent
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from examples.demo.batch import Failover
from examples.demo.nodes import Mesh, Node
from examples.demo.proof import Bar, Killed, takeover_s, takeovers_of
from examples.support_desk import report
from examples.support_desk.facts import Answered, Story
from examples.support_desk.questions import Question

ASK = "examples.support_desk.ask"
WELCOME = (
    "Three nodes on this machine answer questions about Python from the documentation that ships "
    "inside Python. Three retrieval agents vote on each answer, a fourth writes it. Half-way the "
    "leading node is killed with kill -9; nothing may be lost or done twice.\n"
    "Less than half a minute. All of it runs on loopback, in a folder that is removed after."
)
WIDTH_MIN = 80
WIDTH_OF_TABLE = 104  # narrower terminals get two lines per question instead
WIDTH_MAX = 140
PROOF_LINES_MAX = 8


def console_for(*, no_color: bool) -> Console:
    """A console wide enough for the tables, also when the output is a file."""
    console = Console(highlight=False, no_color=no_color or None)
    width = console.width if console.is_terminal else 120
    return Console(
        highlight=False, no_color=no_color or None, width=max(WIDTH_MIN, min(WIDTH_MAX, width))
    )


def welcome(console: Console) -> None:
    console.print(Panel(WELCOME, title="[bold]Quorumesh[/]", width=min(console.width, 92)))


def step(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def started(console: Console, node: Node, how: str) -> None:
    name = report.node_text(node.name)
    console.print(Text.assemble("  ", name, f"  pid {node.pid:<7} {node.address:<16} {how}"))


def members(console: Console, mesh: Mesh, status: StatusReply) -> None:
    leader = mesh.names().get(status.node_id, status.name)
    voters = sum(member.voter for member in status.members)
    console.print(
        f"  {voters} voters, term {status.term}, led by {leader} for now; "
        f"any one of them may die. Loop: {status.loop}."
    )


def compound(
    console: Console, question: str, rows: Sequence[Answered], story: Story, took_s: float
) -> None:
    console.print(report.compound_tree(question, rows))
    called_off = sum(ballot.cancelled for row in rows for ballot in row.ballots)
    voters = "1 slow voter was" if called_off == 1 else f"{called_off} slow voters were"
    console.print(
        f"  {len(story.completions)} subtasks in {took_s:.1f} s; {voters} called off: "
        "the ballot was already decided."
    )


def pace(console: Console, think_ms: int) -> None:
    console.print(
        f"  All three voters are heard. Each waits {think_ms} ms before it votes, as a model would."
    )


def late(console: Console, lost: TaskEvent, names: Mapping[str, str], reason: str) -> None:
    node = names.get(lost.node_id, lost.node_id)
    console.print(
        f"  the demo speaks for {node}'s dead worker and hands in {short(lost.subtask)} "
        f"under fence {lost.fence}: [bold]{reason}[/]"
    )


def finished(console: Console, failover: Failover, took_s: float) -> None:
    console.print(
        f"  {failover.leader} led {failover.seconds:.1f} s after the kill; "
        f"all answers came {took_s:.1f} s after the submit."
    )


def restarted(console: Console, node: Node) -> None:
    console.print(
        Text.assemble("  ", report.node_text(node.name), f"  starts again, pid {node.pid}")
    )


def caught_up(console: Console, node: Node, took_s: float) -> None:
    console.print(
        f"  {node.name} holds the same ledger as the others {took_s:.1f} s after its restart."
    )


def digests(console: Console, replies: Mapping[str, DigestReply]) -> None:
    for name, reply in replies.items():
        line = f"  revision {reply.revision}  hash of all tables {reply.full.hex()[:32]}…"
        console.print(Text.assemble("  ", report.node_text(name), line))


def batch(console: Console, rows: Sequence[Answered], questions: Sequence[Question]) -> None:
    if console.width >= WIDTH_OF_TABLE:
        console.print(report.batch_table(rows, questions))
    else:
        console.print(report.batch_lines(rows, questions))
    console.print(
        "✓ ✗: does the topic answer it. Digits: the node that voted; w: that wrote. s: from claim to answer.",
        style="dim",
    )
    step(console, "Does voting pay?")
    console.print(report.score_table(rows, questions))


def proof(console: Console, story: Story, killed: Killed) -> None:
    """One line per claim that changed hands, those with a late result first."""
    takeovers = takeovers_of(story, killed)
    late = {(event.subtask, event.fence): event for event in story.stale}
    takeovers.sort(key=lambda taken: (taken.subtask, taken.lost_fence) not in late)
    for taken in takeovers[:PROOF_LINES_MAX]:
        after_s = (taken.claimed_wall_ms - killed.wall_ms) / 1_000
        refused = (taken.subtask, taken.lost_fence) in late
        console.print(
            Text.assemble(
                f"  {short(taken.subtask):<12} fence {taken.lost_fence:<4} ",
                report.node_text(taken.lost_node),
                (" (killed)", "red"),
                f" → fence {taken.fence:<4} ",
                report.node_text(taken.node),
                (f"  after {after_s:.1f} s", "dim"),
                ("; late result refused: STALE_FENCE", "bold") if refused else "",
            )
        )
    if len(takeovers) > PROOF_LINES_MAX:
        console.print(f"  … and {len(takeovers) - PROOF_LINES_MAX} more", style="dim")
    for event in story.stale[:PROOF_LINES_MAX]:
        console.print(f"  on record at revision {event.revision}: {event.detail}", style="dim")
    console.print(
        f"  {story.claim_count} claims, {len(story.completions)} completions; last takeover "
        f"{takeover_s(takeovers, killed):.1f} s after the kill (lease {killed.lease_s:.1f} s, "
        f"fail-over {killed.failover_s:.1f} s)"
    )


def bars(console: Console, found: Sequence[Bar]) -> None:
    step(console, "Promises")
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    for bar in found:
        mark = Text("✓" if bar.holds else "✗ NOT MET", style="green" if bar.holds else "bold red")
        table.add_row(Text.assemble("  ", mark), bar.name, bar.found, Text(bar.asked, style="dim"))
    console.print(table)


def stopped(console: Console, clean: bool, took_s: float) -> None:
    how = (
        "All nodes stopped when asked" if clean else "[bold red]A node had to be killed to stop[/]"
    )
    console.print(f"  {how}; {took_s:.0f} s in all.", style="dim")


def kept(console: Console, mesh: Mesh) -> None:
    """Three commands to paste, for a mesh that stays up."""
    node = mesh.nodes[0]
    use = f"QUORUMESH_PROFILE={node.profile}"
    python = os.path.relpath(sys.executable)
    script = Path(python).with_name("mesh")
    command = str(script) if script.exists() else f"{python} -m node.cli.main"
    joining = f"--data {node.folder.with_name('node-4')} --name node-4 --listen 127.0.0.1:0"
    console.print()
    console.print("[bold]The mesh stays up until Ctrl-C.[/] In another terminal, in this folder:")
    for title, line in (
        ("ask it something", f'{use} {python} -m {ASK} "What is a raw string?"'),
        ("submit by gRPC alone", f"{python} examples/grpc_client.py {node.profile}"),
        (
            "join a fourth node",
            f"{command} node start {joining} --no-profile --join $({use} {command} join-token)",
        ),
    ):
        console.print(f"\n  # {title}", style="dim")
        console.print(Text(f"  {line}"), soft_wrap=True)


def short(subtask: str) -> str:
    """q17/tfidf, without the task's first subtask before it."""
    return subtask.removeprefix("batch/").removeprefix("ask/")

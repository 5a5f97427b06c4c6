"""Draws what the desk did: a tree for one question, a table for a batch, scores at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from examples.support_desk.facts import VOTERS, Answered, Ballot, accuracy, verdict
from examples.support_desk.questions import Question

NODE_STYLES = ("cyan", "magenta", "yellow", "green", "blue")
QUOTE_LINES_MAX = 5
QUOTE_CHARS = 64


def node_text(name: str) -> Text:
    """A node's name in the colour it keeps throughout."""
    digits = "".join(letter for letter in name if letter.isdigit())
    style = NODE_STYLES[(int(digits) - 1) % len(NODE_STYLES)] if digits else "white"
    return Text(name or "nobody", style=style)


def compound_tree(question: str, rows: Sequence[Answered], *, title: str = "") -> Tree:
    """The question, its parts, who voted for what where, and what was quoted."""
    tree = Tree(Text.assemble((title + " " if title else ""), (question, "bold")))
    for row in rows:
        part = tree.add(Text.assemble((f"{row.id}  ", "dim"), (row.question, "bold")))
        votes = part.add(_decision(row))
        for ballot in row.ballots:
            votes.add(_ballot_text(ballot, row.topic))
        part.add(
            Text.assemble("writer on ", node_text(row.writer_node), (f", {row.source}", "dim"))
        ).add(_quote(row.quote))
    return tree


def batch_table(rows: Sequence[Answered], questions: Sequence[Question]) -> Table:
    """A line per question: the decision, each vote and its node, the writer's node, the time."""
    expected = {question.id: question.topics for question in questions}
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold", expand=True)
    table.add_column("", style="dim", no_wrap=True, min_width=3)
    table.add_column("question", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("decided", width=17, no_wrap=True, overflow="ellipsis")
    for voter in VOTERS:
        table.add_column(voter, width=14, no_wrap=True, overflow="ellipsis")
    table.add_column("w", no_wrap=True, min_width=1)
    table.add_column("s", justify="right", no_wrap=True, min_width=4)
    for row in rows:
        wanted = expected[row.id]
        table.add_row(
            row.id,
            escape(row.question),
            _mark(row.topic, row.topic in wanted),
            *(_vote_cell(ballot, wanted) for ballot in row.ballots),
            _node_digit(row.writer_node),
            f"{row.took_ms / 1_000:.1f}",
        )
    return table


def batch_lines(rows: Sequence[Answered], questions: Sequence[Question]) -> Group:
    """The same for narrow terminals: two lines per question."""
    expected = {question.id: question.topics for question in questions}
    lines = []
    for row in rows:
        decided = _mark(row.topic, row.topic in expected[row.id])
        lines.append(Text.assemble((f"{row.id} ", "dim"), decided, "  ", row.question))
        cells = [Text("    ")]
        for ballot in row.ballots:
            cells += [Text(f"{ballot.voter} ", style="dim"), _vote_cell(ballot, expected[row.id])]
            cells.append(Text("  "))
        writer = Text.assemble(("writer ", "dim"), _node_digit(row.writer_node))
        lines.append(Text.assemble(*cells, writer, f"  {row.took_ms / 1_000:.1f} s"))
    return Group(*lines)


def score_table(rows: Sequence[Answered], questions: Sequence[Question]) -> RenderableType:
    """How many each agent had right alone, how many the vote had, and what that means."""
    right = accuracy(rows, questions)
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    names = {
        "bm25": "bm25   word statistics of passages",
        "tfidf": "tfidf  angle between question and topic",
        "names": "names  symbols, keywords, headings",
        "vote": "vote   plurality of the three",
    }
    for name, label in names.items():
        share = right[name] / max(1, len(rows))
        bar = Text("█" * round(share * 30), style="green" if name == "vote" else "blue")
        count = f"{right[name]}/{len(rows)}"
        table.add_row(label, count, f"{share:.0%}", bar)
    return Group(table, Text(verdict(right, len(rows)), style="bold"))


def tallies_text(tallies: Mapping[str, int]) -> str:
    """`truth 2, booleans 1`, the largest first."""
    ordered = sorted(tallies.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{label} {votes}" for label, votes in ordered)


def _decision(row: Answered) -> Text:
    decided = (row.topic or "nothing", "green bold")
    return Text.assemble("ballot decided ", decided, f"  ({tallies_text(row.tallies)})")


def _ballot_text(ballot: Ballot, decided: str) -> Text:
    where = Text.assemble(" on ", node_text(ballot.node), (f", fence {ballot.fence}", "dim"))
    if ballot.cancelled:
        what = ("called off: the others had already decided", "dim italic")
        return Text.assemble(f"{ballot.voter:<6}", what, where if ballot.node else "")
    style = "green" if ballot.topic == decided else "red"
    took = (f", {ballot.work_ms / 1_000:.2f} s", "dim")
    return Text.assemble(f"{ballot.voter:<6}", (ballot.topic, style), where, took)


def _quote(quote: str) -> Text:
    lines = textwrap.wrap(" ".join(quote.split()), QUOTE_CHARS)
    shown = lines[:QUOTE_LINES_MAX]
    if len(lines) > QUOTE_LINES_MAX:
        shown[-1] = f"{shown[-1].rstrip(' .…')} …"
    return Text(
        "\n".join(f"“{line}" if n == 0 else f" {line}" for n, line in enumerate(shown)) + "”"
    )


def _mark(topic: str, right: bool) -> Text:
    return Text.assemble(("✓ " if right else "✗ ", "green" if right else "red"), topic or "nothing")


def _vote_cell(ballot: Ballot, wanted: frozenset[str]) -> Text:
    if ballot.cancelled:
        return Text("called off", style="dim italic")
    style = "" if ballot.topic in wanted else "dim"
    return Text.assemble(_node_digit(ballot.node), " ", (ballot.topic or "no vote", style))


def _node_digit(name: str) -> Text:
    node = node_text(name)
    return Text(node.plain.removeprefix("node-"), style=node.style)

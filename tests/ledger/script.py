"""A tiny language for conversations with the ledger: lines that begin with > are commands."""

from __future__ import annotations

import re

from quorumesh.v1.ledger_pb2 import Cancel, CloseSession, Command, Suspect
from quorumesh.v1.tasks_pb2 import BallotSpec, TaskEvent
from quorumesh.v1.values_pb2 import Reason
from quorumesh.v1.workers_pb2 import Spawn

from consensus.ledger import Applied
from tests.ledger.world import World, complete_command, fail_command, sub

_NODE = re.compile(r"([\w.-]+)(?:\(([^)]*)\))?")


def _subtasks(text: str) -> list[object]:
    """`a b(needs a) v(votes q)` as subtasks."""
    found = []
    for name, words in _NODE.findall(text):
        kind, _, rest = words.partition(" ")
        if kind == "votes":
            found.append(sub(name, ballot=rest))
        elif kind == "optional":
            found.append(sub(name, optional=True))
        else:
            found.append(sub(name, *rest.split()))
    return found


def run_line(world: World, line: str) -> str:
    verb, _, rest = line.partition(" ")
    before = len(world.log)
    name, _, tail = rest.partition(" ")
    applied: list[Applied] = []
    world.seen = applied.append
    match verb:
        case "submit":
            text, _, ballots = tail.partition(" ballots ")
            found = [BallotSpec(id=ballot) for ballot in ballots.split()]
            world.submit(name, *_subtasks(text), ballots=found)
        case "work":
            node, _, slots = tail.partition(" ")
            world.work(name, node=node, slots=int(slots))
        case "complete":
            subtask, _, fence = name.partition("@")
            data = tail or '"out"'
            world.apply(complete_command(world.grant(subtask, fence), data))
        case "fail":
            subtask, _, fence = name.partition("@")
            world.apply(fail_command(world.grant(subtask, fence), final=tail == "final"))
        case "spawn":
            join, _, children = tail.partition(" ")
            spawn = Spawn(subtasks=_subtasks(children), join=join)
            world.complete(name, spawn=spawn)
        case "cancel":
            world.apply(Command(cancel=Cancel(task_id=name.encode())))
        case "close":
            world.apply(Command(close_session=CloseSession(session=name.encode(), epoch=1)))
        case "suspect":
            world.apply(Command(suspect=Suspect(node_id=name)))
        case "wait":
            world.wait(int(name))
        case _:
            raise ValueError(f"unknown command {line!r}")
    assert len(world.log) > before
    return "".join(f"{text}\n" for one in applied for text in render(one))


def render(applied: Applied) -> list[str]:
    lines = []
    for outcome in applied.outcomes:
        word = Reason.Name(outcome.reason) if outcome.reason else "accepted"
        note = f": {outcome.message}" if outcome.message else ""
        lines.append(f"r{applied.revision} {word}{note}")
    for event in applied.events:
        parts = [TaskEvent.Kind.Name(event.kind), event.task_id.decode(), event.subtask]
        if event.fence:
            parts.append(f"fence {event.fence} {event.node_id}/{event.worker}")
        if event.detail:
            parts.append(f"({event.detail})")
        lines.append("  " + " ".join(part for part in parts if part))
    lines += [f"  revoke {ref.fence} ({ref.why})" for ref in applied.revokes]
    return lines


def run_script(text: str) -> str:
    """The script with what the ledger answers now in place of what it answered then."""
    world = World()
    done = []
    for line in text.splitlines():
        if line.startswith("> "):
            done.append(f"{line}\n{run_line(world, line[2:])}")
        elif line.startswith("#"):
            done.append(f"{line}\n")
    return "".join(done)

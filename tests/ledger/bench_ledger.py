"""What submit + claim + complete cost per subtask. Run by hand: python tests/ledger/bench_ledger.py"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from quorumesh.v1.ledger_pb2 import (
    Claim,
    Command,
    Complete,
    Entry,
    OpenSession,
    Proposal,
    Submit,
)
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.workers_pb2 import Completion

from consensus.ledger import GrantRef, Ledger

BATCH = 256


def apply(ledger: Ledger, commands: list[Command]) -> list[GrantRef]:
    entry = Entry(apply_version=1, proposals=[Proposal(command=c) for c in commands])
    entry = Entry.FromString(entry.SerializeToString())
    return ledger.apply(ledger.applied_index + 1, 1, entry).grants


def submits(start: int, count: int, classes: int) -> list[Command]:
    return [
        Command(
            submit=Submit(
                task_id=b"%d" % n,
                spec=TaskSpec(
                    subtasks=[SubtaskSpec(id="a", skill=f"s{n % classes}")]
                ).SerializeToString(),
            )
        )
        for n in range(start, start + count)
    ]


def run(path: str, *, backlog: int, classes: int, rounds: int) -> float:
    """Microseconds of apply per subtask, with so many others ready."""
    ledger = Ledger.open(path)
    at = 0
    while at < backlog:
        apply(ledger, submits(at, min(1000, backlog - at), classes))
        at += 1000
    ledger.checkpoint()
    skills = [f"s{n}" for n in range(classes)]
    session = OpenSession(session=b"w", node_id="n", name="w", skills=skills, nonce=1)
    apply(ledger, [Command(open_session=session)])
    grants = apply(ledger, [Command(claim=Claim(session=b"w", epoch=1, sequence=1, slots=BATCH))])
    spent = 0.0
    done = 0
    for _ in range(rounds):
        commands = submits(at, BATCH, classes)
        commands += [
            Command(
                complete=Complete(completion=Completion(subtask_ref=g.subtask_ref, fence=g.fence))
            )
            for g in grants
        ]
        at += BATCH
        started = time.perf_counter()
        grants = apply(ledger, commands)
        spent += time.perf_counter() - started
        done += BATCH
    ledger.close()
    return spent / done * 1e6


if __name__ == "__main__":
    backlog = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    classes = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    with tempfile.TemporaryDirectory() as folder:
        cost = run(str(Path(folder) / "ledger.db"), backlog=backlog, classes=classes, rounds=40)
    print(f"{cost:.1f} us per subtask, backlog {backlog}, classes {classes}, batches of {BATCH}")

"""What the ledger costs, in microseconds of CPU. Run by hand, never in CI:

python -m tests.ledger.bench_ledger                      submit + claim + complete, reads, timers
python -m tests.ledger.bench_ledger --ready 1000000      claims with so much ready in 100 classes
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from quorumesh.v1.ledger_pb2 import Claim, Command, Complete, Entry, OpenSession, Submit
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Value
from quorumesh.v1.workers_pb2 import Completion, ToWorker

from consensus.ledger import Applied, GrantRef, Ledger
from tests.ledger.world import entry_of, open_command

BATCH = 256
INPUT = Value(data=b'"' + b"x" * 198 + b'"')


def apply(ledger: Ledger, commands: list[Command]) -> tuple[Applied, float]:
    """Apply one entry, parsed from bytes as a node does; and what that took."""
    data = entry_of(*commands).SerializeToString()
    started = time.process_time()
    applied = ledger.apply(ledger.applied_index + 1, 1, Entry.FromString(data))
    return applied, (time.process_time() - started) * 1e6


def submits(start: int, count: int, classes: int) -> list[Command]:
    return [
        Command(
            submit=Submit(
                task_id=b"%016d" % n,
                spec=TaskSpec(
                    subtasks=[SubtaskSpec(id="a", skill=f"s{n % classes}", input=INPUT)]
                ).SerializeToString(),
            )
        )
        for n in range(start, start + count)
    ]


def completions(grants: list[GrantRef]) -> list[Command]:
    return [
        Command(
            complete=Complete(
                completion=Completion(subtask_ref=g.subtask_ref, fence=g.fence, output=INPUT)
            )
        )
        for g in grants
    ]


def offer(ledger: Ledger, name: str, *, classes: int, slots: int) -> tuple[Applied, float]:
    skills = [f"s{n}" for n in range(classes)]
    session = OpenSession(session=name.encode(), node_id="n", name=name, skills=skills, nonce=1)
    apply(ledger, [Command(open_session=session)])
    claim = Claim(session=name.encode(), epoch=1, sequence=1, slots=slots)
    return apply(ledger, [Command(claim=claim)])


def show(name: str, costs_us: list[float], count: int = 1) -> None:
    costs = sorted(cost / count for cost in costs_us)
    p99 = costs[min(len(costs) - 1, len(costs) * 99 // 100)]
    print(f"{name:44} best {costs[0]:8.1f}  median {statistics.median(costs):8.1f}  p99 {p99:8.1f}")


def best_of(count: int, work: Callable[[], object]) -> list[float]:
    costs = []
    for _ in range(count):
        started = time.process_time()
        work()
        costs.append((time.process_time() - started) * 1e6)
    return costs


def run_rounds(ledger: Ledger, *, rounds: int) -> None:
    """Each round submits, claims and completes BATCH subtasks in one entry."""
    applied, _ = offer(ledger, "w", classes=10, slots=BATCH)
    costs = []
    grants: list[GrantRef] = []
    for number in range(rounds):
        commands = submits(number * BATCH, BATCH, 10) + completions(grants)
        applied, cost_us = apply(ledger, commands)
        grants = applied.grants
        costs.append(cost_us)
    show("submit + claim + complete, per subtask", costs[1:], BATCH)
    reader = ledger.reader()
    refs = grants[:64]
    show("grants of 64, per grant", best_of(50, lambda: reader.grants(refs)), 64)
    found = reader.grants(refs)
    wrap = best_of(50, lambda: ToWorker(grants=found).SerializeToString())
    show("serialising 64 grants, per grant", wrap, 64)
    due = []
    for _ in range(200):
        apply(ledger, [])
        due += best_of(1, ledger.next_due_ms)
    show("next_due_ms after an entry", due)
    show("counts", best_of(200, reader.counts))


def fill(path: str, *, ready: int, classes: int) -> None:
    """Rows as if so many tasks of one subtask each had been submitted."""
    ledger = Ledger.open(path)
    apply(ledger, submits(0, classes, classes))
    db = ledger.connection
    db.execute("BEGIN")
    numbers = "WITH RECURSIVE n(i) AS (SELECT ?1 + 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?2)"
    for table, changes in (
        ("task", {"seq": "i", "task_id": "CAST(printf('%016d', i) AS BLOB)"}),
        ("subtask", {"ref": "i << 20 | 1", "class_id": "1 + (i * 7919) % ?1", "band": "i % 10"}),
    ):
        names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        values = [changes.get(name, f"model.{name}") for name in names]
        key = names[0]
        db.execute(
            f"INSERT INTO {table} {numbers} SELECT {','.join(values)} FROM n,"
            f" (SELECT * FROM {table} ORDER BY {key} LIMIT 1) model",
            (classes, ready),
        )
    db.execute("UPDATE ledger SET task_seq=?1, task_count=?1, running_count=?1, ready_count=?1",
               (ready,))  # fmt: skip
    db.execute("COMMIT")
    ledger.checkpoint()
    ledger.close()


def run_claims(path: str, *, ready: int, classes: int) -> None:
    """How long one claim of 8 takes when there is a great deal to choose from."""
    fill(path, ready=ready, classes=classes)
    started = time.perf_counter()
    ledger = Ledger.open(path)
    print(f"opening took {(time.perf_counter() - started) * 1e3:.1f} ms")
    workers = min(300, ready // classes // 16)
    for some in (classes, 1):
        costs = []
        for number in range(workers):
            applied, cost_us = offer(ledger, f"w{some}.{number}", classes=some, slots=8)
            assert len(applied.grants) == 8
            costs.append(cost_us)
        print(f"the first claim, with nothing in memory: {costs[0]:.1f}")
        show(f"claim of 8, worker of {some} classes", costs[1:])
    costs = []
    for _ in range(workers):
        applied, cost_us = apply(ledger, completions(applied.grants))
        costs.append(cost_us)
    show("8 completions that bring 8 grants", costs)
    show("counts", best_of(200, ledger.reader().counts))
    apply(ledger, [open_command("last", "none")])
    show("next_due_ms", best_of(1, ledger.next_due_ms))
    ledger.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready", type=int, default=0, help="so many ready subtasks")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=60)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "ledger.db")
        if asked.ready:
            run_claims(path, ready=asked.ready, classes=asked.classes)
        else:
            run_rounds(Ledger.open(path), rounds=asked.rounds)

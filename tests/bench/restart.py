"""How long a ledger of many tasks takes to open, and how many bytes it needs for each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from quorumesh.v1.ledger_pb2 import Bootstrap, Claim, Command, Entry, OpenSession, Proposal, Submit

from consensus.ledger import APPLY_VERSION, Ledger
from tests.bench.loads import NO_OP, flat

ENTRY_TASKS = 500
OPENS = 3
SLOTS = 256


@dataclass(frozen=True, slots=True)
class Restart:
    """The figures of one filled ledger."""

    tasks: int
    bytes_per_task: float
    open_s: float
    opens: int


def measure_restart(folder: Path, tasks: int) -> Restart:
    """Fill a ledger with tasks of one ready subtask each, then open it a few times.

    Opened means that a worker has come and been granted its first subtasks.
    """
    folder.mkdir(parents=True)
    path = folder / "ledger.db"
    _fill(path, tasks)
    size = sum(file.stat().st_size for file in folder.iterdir())
    times = []
    for _ in range(OPENS):
        start = time.perf_counter()
        ledger = Ledger.open(str(path))
        _grant_some(ledger)
        times.append(time.perf_counter() - start)
        ledger.close()
    return Restart(tasks, size / tasks, sorted(times)[OPENS // 2], OPENS)


def _fill(path: Path, tasks: int) -> None:
    ledger = Ledger.open(str(path))
    founder = Bootstrap(
        mesh_id="bench",
        node_id="n1",
        name="n1",
        address="127.0.0.1:1",
        apply_version_max=APPLY_VERSION,
    )
    ledger.apply(1, 1, _entry(1, [Command(bootstrap=founder)]))
    spec = flat(1, "restart").SerializeToString()
    index = 1
    for first in range(0, tasks, ENTRY_TASKS):
        index += 1
        commands = [
            Command(submit=Submit(task_id=number.to_bytes(16, "big"), spec=spec, principal="bench"))
            for number in range(first + 1, min(first + ENTRY_TASKS, tasks) + 1)
        ]
        applied = ledger.apply(index, 1, _entry(index, commands))
        assert not any(outcome.reason for outcome in applied.outcomes), applied.outcomes[0]
    assert ledger.checkpoint(), "the checkpoint met a reader"
    ledger.close()


def _grant_some(ledger: Ledger) -> None:
    index = ledger.applied_index + 1
    session = index.to_bytes(16, "big")
    opened = OpenSession(session=session, node_id="n1", name="w", skills=[NO_OP], nonce=index)
    [outcome] = ledger.apply(index, 1, _entry(index, [Command(open_session=opened)])).outcomes
    offer = Claim(session=session, epoch=outcome.epoch, sequence=1, slots=SLOTS)
    applied = ledger.apply(index + 1, 1, _entry(index + 1, [Command(claim=offer)]))
    assert len(applied.grants) == SLOTS


def _entry(index: int, commands: list[Command]) -> Entry:
    return Entry(
        apply_version=APPLY_VERSION,
        counted_ms=index,
        wall_ms=index,
        proposals=[Proposal(sequence=at, command=one) for at, one in enumerate(commands, 1)],
    )

"""A real worker process against the real ledger: what is granted, spawned, retried and put together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import msgspec
import pytest
from quorumesh.v1.ledger_pb2 import Bootstrap, Command, Entry, Outcome, Proposal, Submit
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.values_pb2 import Reason
from quorumesh.v1.workers_pb2_grpc import add_WorkersServicer_to_server
from small_mesh import now_ms

from consensus.ledger import APPLY_VERSION, LEASE_MS, Ledger, Reader, invariants
from mesh import spec_of
from node.api.sessions import Sessions
from node.api.workers import WorkersService
from node.supervisor import Supervisor, WorkerSpec

pytestmark = pytest.mark.slow

LAST = (TaskEvent.TASK_SUCCEEDED, TaskEvent.TASK_FAILED, TaskEvent.TASK_CANCELLED)


class LedgerReplica:
    """The port over a ledger in memory: every proposal is an entry, and timers fire by themselves."""

    node_id = "n1"

    def __init__(self) -> None:
        self.ledger = Ledger.open(":memory:")
        self.reader: Reader = self.ledger.reader()
        self.sessions: Sessions | None = None
        self.ended: dict[bytes, asyncio.Event] = {}

    def counted_now_ms(self) -> int:
        return now_ms()

    def enter(self, commands: Sequence[Command]) -> list[Outcome]:
        entry = Entry(
            apply_version=APPLY_VERSION,
            counted_ms=now_ms(),
            wall_ms=1_700_000_000_000,
            proposals=[Proposal(command=command) for command in commands],
        )
        applied = self.ledger.apply(self.ledger.applied_index + 1, 1, entry)
        if self.sessions is not None:
            self.sessions.entry_applied(applied)
        for event in applied.events:
            if event.kind in LAST:
                self.ended.setdefault(event.task_id, asyncio.Event()).set()
        return applied.outcomes

    async def propose(self, commands: Sequence[Command], *, timeout_ms: int) -> list[Outcome]:
        await asyncio.sleep(0)
        return self.enter(commands)

    async def fire_timers(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            due_ms = self.ledger.next_due_ms()
            if due_ms is not None and due_ms <= now_ms():
                self.enter([])

    async def run(self, document: dict[str, object]) -> object:
        """Submit a task and give its output when it has ended."""
        task_id = len(self.ended).to_bytes(16, "big")
        event = self.ended[task_id] = asyncio.Event()
        submit = Submit(task_id=task_id, spec=spec_of(document).SerializeToString())
        [outcome] = self.enter([Command(submit=submit)])
        assert outcome.reason == Reason.REASON_UNSPECIFIED, outcome.message
        async with asyncio.timeout(20):
            await event.wait()
        rows = self.ledger.connection.execute(
            "SELECT failure_code FROM task WHERE task_id=?", (task_id,)
        )
        [(code,)] = rows.fetchall()
        if code:
            return code
        info = self.reader.task(task_id, with_subtasks=False, with_outputs=True)
        assert info is not None
        return msgspec.json.decode(info.output.data)


@asynccontextmanager
async def ledger_node(folder: Path) -> AsyncIterator[LedgerReplica]:
    replica = LedgerReplica()
    bootstrap = Bootstrap(mesh_id="m", node_id="n1", name="n1", address="a:1", apply_version_max=1)
    replica.enter([Command(bootstrap=bootstrap)])
    sessions = Sessions(
        replica, lease_ms=LEASE_MS, monotonic_ms=now_ms, on_progress=lambda event: None
    )
    replica.sessions = sessions
    server = grpc.aio.server()
    add_WorkersServicer_to_server(WorkersService(sessions, node_id="n1"), server)
    address = f"unix:{folder}/worker.sock"
    server.add_insecure_port(address)
    await server.start()
    agents = str(Path(__file__).parent / "bad_agents.py")
    spec = WorkerSpec(name="w0", connect=address, agents=(agents,), slots=64)
    supervisor = Supervisor([spec], log_folder=folder, drain_ms=1_000)
    runs = (sessions.run(), supervisor.run(), replica.fire_timers())
    tasks = [asyncio.ensure_future(run) for run in runs]
    try:
        yield replica
    finally:
        await supervisor.stop()
        await server.stop(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert invariants.violations(replica.ledger.connection) == []


def subtask(name: str, skill: str, value: object = None, *needs: str) -> dict[str, object]:
    return {"id": name, "skill": skill, "input": value, "needs": list(needs)}


async def test_outputs_flow_down_the_graph(tmp_path: Path) -> None:
    async with ledger_node(tmp_path) as mesh:
        parts = [subtask(f"p{n}", "typed", n) for n in range(200)]
        join = subtask("sum", "combine.sum", None, *(f"p{n}" for n in range(200)))

        total = await mesh.run({"name": "fan", "subtasks": [*parts, join]})

        assert total == sum(range(1, 201))


async def test_a_chain_runs_in_order(tmp_path: Path) -> None:
    async with ledger_node(tmp_path) as mesh:
        links = [subtask("c0", "echo", "x")]
        links += [subtask(f"c{n}", "combine.concat", None, f"c{n - 1}") for n in range(1, 50)]

        assert await mesh.run({"name": "chain", "subtasks": links}) == "x"


async def test_failures_have_their_types_in_the_ledger(tmp_path: Path) -> None:
    async with ledger_node(tmp_path) as mesh:
        codes = []
        for skill in ("raises_final", "not_json", "too_large", "spawns_badly"):
            codes.append(await mesh.run({"name": skill, "subtasks": [subtask("a", skill)]}))
        codes.append(await mesh.run({"name": "t", "subtasks": [subtask("a", "typed", "no")]}))

        assert all(isinstance(code, str) for code in codes)
        story = mesh.ledger.connection.execute("SELECT failure_code FROM subtask ORDER BY ref")
        own = ["NO_USE", "BAD_OUTPUT", "VALUE_TOO_LARGE", "BAD_OUTPUT", "BAD_INPUT"]
        assert [code for (code,) in story] == own


async def test_a_worker_that_dies_gives_its_claims_back(tmp_path: Path) -> None:
    async with ledger_node(tmp_path) as mesh:
        marker = str(tmp_path / "marker")
        others = [subtask(f"o{n}", "sleep", {"ms": 300}) for n in range(5)]
        document = {"name": "exit", "subtasks": [subtask("a", "exits", marker), *others]}

        output = await mesh.run({**document, "output": "a"})

        assert output == "second time"

"""One node over its life: stopped and started again, watched slowly, read heavily, broken."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest
from quorumesh.v1.mesh_pb2 import DigestRequest
from quorumesh.v1.mesh_pb2_grpc import MeshStub
from quorumesh.v1.tasks_pb2 import (
    GetTaskRequest,
    SubmitManyRequest,
    SubmitRequest,
    TaskEvent,
    TaskSpec,
    WatchTaskRequest,
)
from quorumesh.v1.tasks_pb2_grpc import TasksStub

from consensus.errors import Unavailable
from consensus.ledger import Applied, Ledger, Reader
from mesh.credentials import CHANNEL_TLS_OPTIONS
from mesh.ids import uuid7
from node.api.errors import EXIT_BUG, EXIT_DAMAGED
from node.api.feed import EVENTS_WAITING_MAX
from node.api.reading import LongReads
from tests.node.small_mesh import small_mesh, until

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]
# A client that does not read soon holds its stream up.
NARROW = (*CHANNEL_TLS_OPTIONS, ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16_384))


def sized(count: int) -> SubmitRequest:
    spec = TaskSpec(name="sized")
    for number in range(count):
        spec.subtasks.add(id=f"s{number}", skill="nobody_can")
    return SubmitRequest(task_id=uuid7(), spec=spec)


async def test_a_node_that_was_stopped_comes_back_as_itself_with_all_it_had(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with small_mesh(tmp_path) as mesh:
        before = await mesh.start("n1", worker_count=1)
        async with mesh.client("n1") as client:
            done = await client.submit([{"id": "a", "skill": "echo", "input": 7}])
            assert await client.result(done, 20) == 7
            waits = await client.submit([{"id": "a", "skill": "nobody_can"}])
        assert await mesh.stop("n1") == 0

        with caplog.at_level(logging.WARNING):
            after = await mesh.start("n1", worker_count=1, advertise="127.0.0.2:7")
        async with mesh.client("n1") as client:
            assert await client.result(done) == 7
            assert {task.name async for task in client.list()} == {""}
            assert (await client.get(waits)).subtask_count == 1
            again = await client.submit([{"id": "a", "skill": "echo", "input": 8}])
            assert await client.result(again, 20) == 8

    assert (after.node_id, after.mesh_id, after.address) == (
        before.node_id,
        before.mesh_id,
        before.address,
    )
    assert f"start it with --advertise {before.address}" in caplog.text


async def test_a_ledger_of_a_later_release_is_left_alone_in_one_line(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        node = await mesh.start("n1")
        path = node.replica.core.ledger_path
        await mesh.stop("n1")
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("UPDATE ledger SET schema_version = 99")
    db.close()

    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "node.cli.main", "node", "start", "--data", str(tmp_path / "n1"),
        "--listen", "127.0.0.1:0", "--no-profile", cwd=ROOT, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()

    assert process.returncode == EXIT_DAMAGED
    assert b"version 99 is needed" in said
    assert said.count(b"\n") == 1, said


class Broken:
    """An observer with a bug."""

    def entry_applied(self, applied: Applied) -> None:
        raise AssertionError("an invariant is broken")

    def ledger_replaced(self) -> None: ...


async def test_a_bug_stops_the_node_with_its_exit_code_and_loses_nothing(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        node = await mesh.start("n1")
        async with mesh.client("n1") as client:
            kept = await client.submit([{"id": "a", "skill": "nobody_can"}])

        node.replica.subscribe(Broken())
        async with mesh.client("n1") as client:
            lost = asyncio.ensure_future(client.create_token())
            assert await mesh.ends.pop("n1") == EXIT_BUG
            mesh.nodes.pop("n1")
            lost.cancel()
            await asyncio.gather(lost, return_exceptions=True)

        await mesh.start("n1")
        async with mesh.client("n1") as client:
            assert (await client.get(kept)).subtask_count == 1


async def test_who_watches_slowly_reads_on_from_the_ledger_without_gap_or_repeat(
    tmp_path: Path,
) -> None:
    async with small_mesh(tmp_path) as mesh:
        node = await mesh.start("n1")
        creds = mesh.credentials("n1").channel_credentials()
        async with (
            mesh.channel("n1", creds) as channel,
            grpc.aio.secure_channel(node.address, creds, options=NARROW) as narrow,
        ):
            tasks = TasksStub(channel)
            watch = TasksStub(narrow).Watch(WatchTaskRequest(after_revision=1), timeout=40)
            first = await tasks.Submit(sized(1), timeout=10)
            replies = [list((await watch.read()).events)]

            # Nothing is read while far more happens than may wait for one watcher.
            submits = [sized(500) for _ in range(4 * EVENTS_WAITING_MAX // 500)]
            for at in range(0, len(submits), 2):
                await tasks.SubmitMany(SubmitManyRequest(submits=submits[at : at + 2]), timeout=20)
            last = await tasks.Submit(sized(1), timeout=10)
            while replies[-1][-1].revision < last.revision:
                replies.append(list((await watch.read()).events))
            watch.cancel()

    # Only what is read again from the ledger comes with several revisions at once.
    assert any(events[0].revision < events[-1].revision for events in replies[1:])
    seen = [event for events in replies for event in events]
    submitted = [event.task_id for event in seen if event.kind == TaskEvent.SUBMITTED]
    assert submitted == [one.task_id for one in (first, *submits, last)]
    ready = [(e.task_id, e.subtask) for e in seen if e.kind == TaskEvent.READY]
    assert len(ready) == len(set(ready)) == 2 + 500 * len(submits)
    revisions = [event.revision for event in seen]
    assert revisions == sorted(revisions)


async def test_watching_from_what_is_no_longer_kept_is_out_of_range(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        node = await mesh.start("n1")
        async with mesh.client("n1") as client:
            for _ in range(5):
                await client.submit([{"id": "a", "skill": "nobody_can"}])
        # As if the events before had been forgotten, which takes thousands of entries.
        with sqlite3.connect(node.replica.core.ledger_path, isolation_level=None) as db:
            db.execute("UPDATE ledger SET oldest_revision = applied_index - 1")
        db.close()

        creds = mesh.credentials("n1").channel_credentials()
        async with mesh.channel("n1", creds) as channel:
            watch = TasksStub(channel).Watch(WatchTaskRequest(after_revision=2), timeout=5)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await watch.read()
    assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert "watch from there" in str(refused.value.details())


async def test_reading_a_task_of_ten_thousand_subtasks_leaves_the_loop_free(
    tmp_path: Path,
) -> None:
    async with small_mesh(tmp_path) as mesh:
        node = await mesh.start("n1")
        creds = mesh.credentials("n1").channel_credentials()
        async with mesh.channel("n1", creds) as channel:
            tasks = TasksStub(channel)
            large = sized(10_000)
            await tasks.Submit(large, timeout=30)

            request = GetTaskRequest(task_id=large.task_id, with_subtasks=True, with_outputs=True)
            turns, reply = await turns_while(tasks.Get(request, timeout=20))
            assert len(reply.task.subtasks) == 10_000
            assert reply.task.subtasks[9_999].waiting_reason
            digest_turns, digest = await turns_while(
                MeshStub(channel).Digest(DigestRequest(), timeout=20)
            )

        # Read on the loop, hardly any turn would fit in between.
        assert turns >= 10
        assert digest_turns >= 10
        assert digest.revision == node.replica.view().revision
        assert digest.chain == node.replica.view().digest
        assert digest.full == node.replica.ledger.full_digest()


async def turns_while(call: grpc.aio.UnaryUnaryCall) -> tuple[int, object]:
    """How often the loop came round while a call was under way, and its reply."""
    answer = asyncio.ensure_future(_reply(call))
    turns = 0
    while not answer.done():
        await asyncio.wait({answer}, timeout=0.002)
        turns += 1
    return turns, answer.result()


async def _reply(call: grpc.aio.UnaryUnaryCall) -> object:
    return await call


async def test_a_long_read_is_of_one_revision_whatever_is_applied_meanwhile(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a folder#1" / "ledger.db"
    path.parent.mkdir()
    ledger = Ledger.open(str(path))
    ledger.apply_noop(1, 1)
    reads = LongReads(lambda: path)
    begun, applied = threading.Event(), threading.Event()

    def question(reader: Reader) -> Sequence[int]:
        before = reader.revision()
        begun.set()
        applied.wait(10)
        return before, reader.revision(), reader.task(b"t") is None

    try:
        answer = asyncio.ensure_future(reads.ask(question))
        await until(begun.is_set)
        ledger.apply_noop(2, 1)
        assert not ledger.checkpoint(), "it does not wait for the reader either"
        applied.set()
        assert await answer == (1, 1, True)
        assert await reads.ask(Reader.revision) == 2

        path.rename(path.with_name("gone"))
        with pytest.raises(Unavailable, match="cannot be read"):
            await reads.ask(Reader.revision)
    finally:
        applied.set()
        reads.close()
        ledger.close()


async def test_a_long_read_gives_way_when_the_write_ahead_log_has_outgrown_its_bound(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(str(path))
    ledger.apply_noop(1, 1)
    reads = LongReads(lambda: path, wal_bytes_max=100)
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"

    try:
        with pytest.raises(Unavailable, match="interrupted"):
            await reads.ask(lambda reader: reader._db.execute(endless).fetchone())
        assert await reads.ask(Reader.revision) == 1
    finally:
        reads.close()
        ledger.close()

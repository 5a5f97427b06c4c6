"""Bad input against a mesh that runs: each gets a typed answer, loses nothing and stops no node.

Two nodes; everything is sent to the follower. Certificates of strangers and wrong or used tokens:
test_mesh_of_nodes.py; the worker alone: tests/workers/test_bad_agents.py.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from quorumesh.v1.tasks_pb2 import (
    GetTaskRequest,
    ListTasksRequest,
    SubmitManyRequest,
    SubmitRequest,
    TaskSpec,
)
from quorumesh.v1.tasks_pb2_grpc import TasksStub
from quorumesh.v1.values_pb2 import READY, Reason

from mesh import Refused, TaskFailed
from mesh.aio import AsyncClient
from mesh.errors import TokenExpired
from mesh.identity import new_key, new_request
from mesh.ids import id_bytes, uuid7
from mesh.join import join
from mesh.tokens import decode
from tests.node.small_mesh import SmallMesh, small_mesh, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

AGENTS = ("tests.workers.bad_agents",)
ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def two_nodes(root: Path) -> AsyncIterator[tuple[SmallMesh, AsyncClient]]:
    """Both still write and agree when the block ends: whatever was sent has stopped neither."""
    async with small_mesh(root) as mesh:
        first = await mesh.start("n1", worker_count=1, agents=AGENTS)
        follower = await mesh.grow("n2")
        async with mesh.client("n2") as client:
            yield mesh, client
            good = await client.submit([one("echo", "still here")])
            assert await client.result(good, 15) == "still here"
        await until(lambda: first.replica.view().revision == follower.replica.view().revision)
        assert first.replica.view().digest == follower.replica.view().digest
        assert not any(end.done() for end in mesh.ends.values())


def one(skill: str, value: object = None, **more: Any) -> dict[str, Any]:
    return {"id": "a", "skill": skill, "input": value, **more}


def spec(*ids: str, needs: dict[str, str] | None = None, data: bytes = b"1") -> TaskSpec:
    made = TaskSpec(name="raw")
    for name in ids:
        subtask = made.subtasks.add(id=name, skill="echo")
        subtask.input.data = data
        if needs and name in needs:
            subtask.needs.append(needs[name])
    return made


WRONG_TASKS = {
    "a cycle": (spec("a", "b", needs={"a": "b", "b": "a"}), "INVALID", "cycle"),
    "itself needed": (spec("a", needs={"a": "a"}), "INVALID", "a"),
    "an unknown need": (spec("a", needs={"a": "zz"}), "INVALID", "'zz', which does not exist"),
    "an id twice": (spec("a", "a"), "INVALID", "used twice"),
    "no subtask": (spec(), "INVALID", ""),
    "a bad id": (spec("a b"), "INVALID", "a b"),
    "10,001 subtasks": (spec(*map(str, range(10_001)), data=b""), "INVALID", "at most 10000"),
    "a value one byte too large": (spec("a", data=b"x" * 65_537), "VALUE_TOO_LARGE", "65537"),
    "a task above an entry": (
        spec(*map(str, range(15)), data=b"x" * 60_000),
        "VALUE_TOO_LARGE",
        "spawn the rest",
    ),
}


async def refusal(client: AsyncClient, wrong: TaskSpec) -> tuple[str, str]:
    """The reason and message of its refusal; empty when it was accepted."""
    try:
        await client.submit(wrong)
    except Refused as refused:
        return refused.reason, refused.message
    return "", ""


async def test_wrong_tasks_are_refused_each_with_its_reason(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (_, client):
        told = {name: await refusal(client, wrong) for name, (wrong, _, _) in WRONG_TASKS.items()}
        assert {name: reason for name, (reason, _) in told.items()} == {
            name: reason for name, (_, reason, _) in WRONG_TASKS.items()
        }
        for name, (_, _, part) in WRONG_TASKS.items():
            assert part in told[name][1], name
        assert [task async for task in client.list()] == []

        largest = spec("a", data=b'"' + b"x" * 65_534 + b'"')
        assert len(await client.result(await client.submit(largest), 15)) == 65_534


async def test_submits_sent_together_get_a_result_each(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (mesh, _):
        creds = mesh.credentials("n2").channel_credentials()
        async with mesh.channel("n2", creds) as channel:
            tasks = TasksStub(channel)
            good = SubmitRequest(task_id=uuid7(), spec=spec("a"))
            other = SubmitRequest(task_id=good.task_id, spec=spec("b"))
            cycle = SubmitRequest(task_id=uuid7(), spec=WRONG_TASKS["a cycle"][0])
            nameless = SubmitRequest(spec=spec("a"))
            last = SubmitRequest(task_id=uuid7(), spec=spec("a"))

            request = SubmitManyRequest(submits=[good, cycle, nameless, good, other, last])
            reply = await tasks.SubmitMany(request, timeout=10)

            accepted = Reason.REASON_UNSPECIFIED
            assert [result.reason for result in reply.results] == [
                accepted, Reason.INVALID, Reason.INVALID, accepted, Reason.ALREADY_EXISTS, accepted,
            ]  # fmt: skip
            listed = await tasks.List(ListTasksRequest(), timeout=5)
            assert {task.task_id for task in listed.tasks} == {good.task_id, last.task_id}

            for submits in ([], [SubmitRequest(spec=spec(*map(str, range(501))))] * 2):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await tasks.SubmitMany(SubmitManyRequest(submits=submits), timeout=10)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_skill_that_nobody_has_waits_with_the_reason_until_its_deadline(
    tmp_path: Path,
) -> None:
    async with two_nodes(tmp_path) as (_, client):
        task_id = await client.submit({"subtasks": [one("nobody_can")], "deadline_ms": 1_500})

        [waiting] = (await client.get(task_id)).subtasks
        assert waiting.state == READY
        assert waiting.waiting_reason == "no worker has the skill 'nobody_can'"

        with pytest.raises(TaskFailed) as failed:
            await client.result(task_id, 15)
        assert failed.value.code == "DEADLINE"


async def test_agents_that_misbehave_get_typed_failures_beside_good_work(tmp_path: Path) -> None:
    once = {"max_attempts": 1}
    cases = {
        "AGENT_ERROR": one("raises", 0, retry={"max_attempts": 2, "backoff_ms": 10}),
        "NO_USE": one("raises_final", 0),
        "BAD_OUTPUT": one("not_json"),
        "VALUE_TOO_LARGE": one("too_large"),
        "BAD_INPUT": one("typed", "not a number"),
        "TIMEOUT": one("hangs_async", timeout_ms=300, retry=once),
    }
    async with two_nodes(tmp_path) as (_, client):
        good = [await client.submit([one("typed", n)]) for n in range(20)]
        prints = await client.submit([one("prints")])
        bad = {code: await client.submit([subtask]) for code, subtask in cases.items()}

        for code, task_id in bad.items():
            with pytest.raises(TaskFailed) as failed:
                await client.result(task_id, 15)
            assert failed.value.code == code
            assert 0 < len(failed.value.message) <= 2_048 + 32
        assert [await client.result(task_id, 15) for task_id in good] == list(range(1, 21))
        assert await client.result(prints, 15) == "printed"


async def test_an_agent_that_ends_its_worker_or_never_returns_costs_other_work_nothing(
    tmp_path: Path,
) -> None:
    async with two_nodes(tmp_path) as (_, client):
        hangs = await client.submit([one("hangs_sync", timeout_ms=300, retry={"max_attempts": 1})])
        with pytest.raises(TaskFailed, match="TIMEOUT"):
            await client.result(hangs, 15)
        beside = await client.submit([one("sleep", {"ms": 300})])
        exits = await client.submit([one("exits", str(tmp_path / "marker"))])

        assert await client.result(exits, 20) == "second time"
        await client.result(beside, 20)
        [subtask] = (await client.get(exits)).subtasks
        assert subtask.attempt == 2


async def test_an_expired_token_is_refused_here_and_by_the_mesh(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (mesh, client):
        reply = await client.create_token(200)
        node = mesh.nodes["n2"]
        late_ms = node.replica.counted_now_ms() + 400
        await until(lambda: node.replica.counted_now_ms() > late_ms)

        with pytest.raises(TokenExpired):
            decode(reply.token, now_wall_ms=reply.expires_wall_ms + 1)
        # A host whose clock is behind finds out from the mesh.
        token = decode(reply.token, now_wall_ms=0)
        request = new_request(new_key())
        with pytest.raises(TokenExpired):
            await join(token, csr=request, name="late", advertise=node.address)
        assert len(await client.members()) == 2


async def test_odd_requests_are_refused_in_words(tmp_path: Path) -> None:
    async with two_nodes(tmp_path) as (mesh, client):
        with pytest.raises(Refused, match="NOT_FOUND"):
            await client.get("01900000-0000-7000-8000-000000000000")
        creds = mesh.credentials("n2").channel_credentials()
        async with mesh.channel("n2", creds) as channel:
            tasks = TasksStub(channel)
            for call, code in (
                (tasks.List(ListTasksRequest(page_size=1_001)), "INVALID_ARGUMENT"),
                (tasks.List(ListTasksRequest(page_token=b"?")), "INVALID_ARGUMENT"),
                (
                    tasks.Submit(SubmitRequest(task_id=b"x" * 65, spec=spec("a"))),
                    "INVALID_ARGUMENT",
                ),
                (
                    tasks.Get(GetTaskRequest(at_least_revision=1 << 40), timeout=0.5),
                    "UNAVAILABLE",
                ),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code().name == code


async def test_the_command_line_says_it_in_one_line(tmp_path: Path) -> None:
    files = {
        "malformed.yaml": ("subtasks: [{id: a, skill: echo\n name: {", 2, "line 2"),
        "unknown.yaml": ("subtasks: [{id: a, skil: echo}]", 2, "skil"),
        "cycle.yaml": ("subtasks: [{id: a, skill: echo, needs: [a]}]", 3, "INVALID"),
    }
    async with two_nodes(tmp_path) as (mesh, _):
        client = tmp_path / "n2" / "client"
        profile = tmp_path / "profile.json"
        profile.write_text(
            f'{{"addresses": ["{mesh.nodes["n2"].address}"], "ca": "{client}/ca.pem",'
            f' "certificate": "{client}/cert.pem", "key": "{client}/key.pem"}}'
        )
        for name, (text, code, part) in files.items():
            (tmp_path / name).write_text(text)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "node.cli.main", "--profile", str(profile), "submit",
                str(tmp_path / name), cwd=ROOT, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
            _, said = await process.communicate()
            assert process.returncode == code, said
            assert part in said.decode()
            assert said.count(b"\n") == 1, said


def test_ids_of_tasks_are_checked_before_they_are_sent() -> None:
    with pytest.raises(ValueError, match="not a"):
        id_bytes("not-an-id")

"""A worker process and its node: lost and found again, gone for good, and stopped."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import pytest
from quorumesh.v1.workers_pb2_grpc import add_WorkersServicer_to_server
from small_mesh import LEASE_MS, SmallReplica, now_ms, small_node

from node.api.sessions import Sessions
from node.api.workers import WorkersService
from node.supervisor import RotatingFile

pytestmark = pytest.mark.slow


@asynccontextmanager
async def serving(replica: SmallReplica, address: str) -> AsyncIterator[Sessions]:
    sessions = Sessions(
        replica, lease_ms=LEASE_MS, monotonic_ms=now_ms, on_progress=lambda event: None
    )
    replica.observers.append(sessions)
    server = grpc.aio.server()
    add_WorkersServicer_to_server(WorkersService(sessions, node_id="n1"), server)
    server.add_insecure_port(address)
    await server.start()
    running = asyncio.ensure_future(sessions.run())
    try:
        yield sessions
    finally:
        await server.stop(0)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        replica.observers.remove(sessions)


@asynccontextmanager
async def worker(address: str, *more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "mesh.worker", "--connect", address, *more
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def exit_code(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(20):
        return await process.wait()


async def test_a_worker_finds_its_node_again_under_the_same_session(tmp_path: Path) -> None:
    replica, address = SmallReplica(), f"unix:{tmp_path}/w.sock"
    async with worker(address):
        async with serving(replica, address):
            first = replica.submit("echo", 1)
            async with asyncio.timeout(20):
                await first.ended.wait()
        async with serving(replica, address):
            second = replica.submit("echo", 2)
            async with asyncio.timeout(20):
                await second.ended.wait()

    assert (first.output, second.output) == (1, 2)
    [session] = replica.sessions.values()
    assert session.epoch >= 2


async def test_a_worker_leaves_when_its_node_is_gone(tmp_path: Path) -> None:
    async with worker(f"unix:{tmp_path}/nobody.sock", "--gone-ms", "300") as process:
        assert await exit_code(process) == 69


async def test_a_worker_with_agents_that_do_not_load_says_so_and_leaves(tmp_path: Path) -> None:
    async with worker(f"unix:{tmp_path}/w.sock", "--agents", "no.such.module") as process:
        assert await exit_code(process) == 64


async def test_a_worker_asked_to_stop_finishes_what_it_holds(tmp_path: Path) -> None:
    replica, address = SmallReplica(), f"unix:{tmp_path}/w.sock"
    async with serving(replica, address) as sessions, worker(address) as process:
        work = replica.submit("sleep", {"ms": 700})
        async with asyncio.timeout(20):
            while not sessions.stats().held_count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        process.terminate()

        assert await exit_code(process) == 0
        assert work.state == "succeeded" and work.attempt == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PDEATHSIG is Linux's")
async def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'mesh.worker', '--connect',"
        f" 'unix:{tmp_path}/w.sock', '--gone-ms', '60000', '--parent-pid', str(os.getpid())],"
        " stderr=subprocess.PIPE)\n"
        "print(child.pid, flush=True)\n"
        "child.stderr.readline()\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    child_pid = int(await parent.stdout.readline())
    assert await parent.stdout.readline() == b"up\n"

    parent.kill()
    await parent.wait()

    async with asyncio.timeout(10):
        while is_running(child_pid):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_a_coroutine_that_blocks_the_loop_ends_the_worker(tmp_path: Path) -> None:
    replica, address = SmallReplica(), f"unix:{tmp_path}/w.sock"
    (tmp_path / "blocking.py").write_text(
        "import threading\nfrom mesh import Agent\nagent = Agent('blocking')\n"
        "@agent.skill('block')\nasync def block():\n    threading.Event().wait()\n"
    )
    os.environ["PYTHONPATH"] = str(tmp_path)
    try:
        async with (
            serving(replica, address),
            worker(address, "--agents", "blocking", "--stall-ms", "1500") as process,
        ):
            work = replica.submit("block")
            assert await exit_code(process) == 75
            async with asyncio.timeout(10):
                while work.lost_count == 0:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    finally:
        del os.environ["PYTHONPATH"]


async def test_a_killed_worker_is_started_again_and_its_work_done(tmp_path: Path) -> None:
    async with small_node(tmp_path) as node:
        work = node.replica.submit("sleep", {"ms": 600})
        await node.until(lambda: node.sessions.stats().held_count == 1)

        os.kill(node.supervisor.stats()[0].pid, 9)
        await node.ended(work)

        assert work.state == "succeeded" and work.lost_count == 1


def test_rotating_files_stay_within_their_bound(tmp_path: Path) -> None:
    output = RotatingFile(tmp_path / "log", bytes_max=100)
    for _ in range(50):
        output.write(b"x" * 33)
    output.write(b"y" * 1_000)
    output.close()

    assert (tmp_path / "log").stat().st_size <= 100
    assert (tmp_path / "log.1").stat().st_size <= 100
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1"}

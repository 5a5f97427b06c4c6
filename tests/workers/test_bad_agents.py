"""Whatever an agent does, its subtask gets a typed state, nothing is lost, and the node goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from small_mesh import SmallNode, small_node

from node.supervisor import LOG_BYTES_MAX

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture
async def node(tmp_path: Path) -> AsyncIterator[SmallNode]:
    async with small_node(tmp_path, agents=("bad_agents",)) as node:
        yield node


async def failure_code(node: SmallNode, skill: str, value: object = None) -> str:
    work = node.replica.submit(skill, value)
    await node.ended(work)
    assert work.state == "failed" and work.failure is not None
    assert len(work.failure.message) <= 2_048
    return work.failure.code


async def test_agents_that_fail_get_typed_failures(node: SmallNode) -> None:
    assert await failure_code(node, "raises") == "AGENT_ERROR"
    assert await failure_code(node, "raises_final") == "NO_USE"
    assert await failure_code(node, "sys_exits") == "AGENT_ERROR"
    assert await failure_code(node, "not_json") == "BAD_OUTPUT"
    assert await failure_code(node, "too_large") == "VALUE_TOO_LARGE"
    assert await failure_code(node, "typed", "not a number") == "BAD_INPUT"
    assert await failure_code(node, "spawns_badly") == "BAD_OUTPUT"

    [raised, final, *_] = node.replica.work.values()
    assert raised.failed_count == 3 and final.failed_count == 1
    assert node.supervisor.stats()[0].restart_count == 0


async def test_good_work_goes_on_beside_bad(node: SmallNode) -> None:
    good = [node.replica.submit("typed", n) for n in range(100)]
    hang = node.replica.submit("hangs_async", timeout_ms=300, attempts_max=1)

    await node.ended(*good, hang)

    assert [work.output for work in good] == [n + 1 for n in range(100)]
    assert hang.failure is not None and hang.failure.code == "TIMEOUT"
    assert all(work.attempt == 1 for work in good)


async def test_a_vote_travels_with_its_output(node: SmallNode) -> None:
    work = node.replica.submit("votes", "yes")
    await node.ended(work)

    assert work.completion is not None
    assert (work.completion.vote.label, work.completion.vote.weight) == ("yes", 2)
    assert work.output == {"answer": "yes"}


async def test_an_agent_that_exits_loses_its_claim_and_the_worker_starts_again(
    node: SmallNode, tmp_path: Path
) -> None:
    work = node.replica.submit("exits", str(tmp_path / "marker"))
    await node.ended(work)

    assert work.output == "second time"
    assert (work.lost_count, work.failed_count) == (1, 0)
    assert node.supervisor.stats()[0].restart_count == 1


async def test_a_cancelled_thread_is_told_so(node: SmallNode, tmp_path: Path) -> None:
    marker = tmp_path / "stopped"
    work = node.replica.submit("stops_when_cancelled", str(marker))
    await node.until(lambda: node.sessions.stats().held_count == 1)

    node.replica.cancel(work)

    await node.until(marker.exists)


async def test_a_stuck_thread_costs_the_worker_not_the_work(node: SmallNode) -> None:
    hang = node.replica.submit("hangs_sync", timeout_ms=200, attempts_max=1)
    await node.ended(hang)
    assert hang.failure is not None and hang.failure.code == "TIMEOUT"

    await node.until(lambda: node.supervisor.stats()[0].restart_count == 1)
    after = node.replica.submit("typed", 1)
    await node.ended(after)

    assert node.supervisor.stats()[0].exit_code == 75


async def test_printed_megabytes_block_nothing_and_stay_bounded(node: SmallNode) -> None:
    work = node.replica.submit("prints")
    await node.ended(work)

    assert work.output == "printed"
    sizes = [path.stat().st_size for path in node.folder.glob("worker-w0.log*")]
    assert len(sizes) == 2 and max(sizes) <= LOG_BYTES_MAX


async def test_progress_reaches_those_who_watch(node: SmallNode) -> None:
    work = node.replica.submit("progresses")
    await node.ended(work)

    [event] = node.progress
    assert (event.subtask, event.fraction, event.detail) == ("s1", 0.5, "half")


async def test_lost_outcomes_are_sent_again_and_change_nothing(node: SmallNode) -> None:
    await node.until(lambda: node.sessions.stats().worker_count == 1)
    node.replica.lose_next = 3
    works = [node.replica.submit("typed", n) for n in range(20)]

    await node.ended(*works)
    await node.until(lambda: node.sessions.stats().held_count == 0)

    assert all(work.attempt == 1 for work in works)


async def test_a_claim_outlives_its_lease_while_it_is_renewed(node: SmallNode) -> None:
    work = node.replica.submit("sleep", {"ms": 4_000})
    await node.ended(work)

    assert work.attempt == 1 and work.state == "succeeded"

"""The command line: what it prints, its one-line errors, its exit codes."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from quorumesh.v1 import mesh_pb2

from mesh.calls import dial_with
from mesh.client_errors import (
    DeadlineExceeded,
    MeshError,
    Refused,
    TaskCancelled,
    TaskFailed,
    Unreachable,
)
from mesh.errors import JoinFailed, ProfileMissing, TokenMalformed, TokenUsed
from mesh.specs import parse_spec
from node.cli import exits
from node.cli.dev import stamps
from node.cli.doctor import judge
from node.cli.main import cli
from node.cli.session import Session
from tests.client.fake import Node, State, start_node

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "tasks"
Run = Callable[..., "asyncio.Future[Result]"]


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture
async def node(state: State):
    made = await start_node(state)
    yield made
    await made.stop()


@pytest.fixture
def run(node: Node):
    def use(*arguments: str, text: str | None = None) -> Result:
        session = Session((node.address,), dial=dial_with(None))
        return CliRunner().invoke(cli, arguments, input=text, obj=session)

    async def on_a_thread(*arguments: str, text: str | None = None) -> Result:
        return await asyncio.to_thread(use, *arguments, text=text)

    return on_a_thread


def offline(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=text)


QUICK = '{"name": "quick", "subtasks": [{"id": "a", "skill": "echo"}]}'


async def test_submit_waits_and_prints_the_output_on_stdout(run) -> None:
    result = await run("submit", "-", text=QUICK)

    assert result.exit_code == exits.OK
    assert json.loads(result.stdout) == {"answer": 42}
    assert "task " in result.stderr


async def test_submit_detached_prints_the_id_and_result_fetches_it_by_its_last_digits(run) -> None:
    submitted = await run("submit", "-", "--detach", text=QUICK)
    task_id = submitted.stdout.strip()

    result = await run("result", task_id[-6:])

    assert len(task_id) == 36
    assert json.loads(result.stdout) == {"answer": 42}


async def test_json_of_submit_holds_state_and_output(run) -> None:
    result = await run("submit", "-", "--json", text=QUICK)

    shown = json.loads(result.stdout)
    assert (shown["state"], shown["output"]) == ("TASK_SUCCEEDED", {"answer": 42})
    assert shown["failure"] is None


async def test_a_failed_task_is_exit_1_and_says_where_to_look(run) -> None:
    result = await run("submit", "-", text=QUICK.replace("quick", "broken"))

    assert result.exit_code == exits.TASK_FAILED
    last = result.stderr.strip().splitlines()[-1]
    assert "failed: AGENT_ERROR: it broke; see why with: mesh task show" in last


async def test_a_refusal_is_exit_3_in_one_line(run) -> None:
    result = await run("submit", "-", text=QUICK.replace('"a"', '"?"'))

    assert result.exit_code == exits.REFUSED
    assert result.stderr == (
        "mesh: INVALID: the id is not allowed; correct the task and submit it again\n"
    )


async def test_a_deadline_is_exit_5(run) -> None:
    submitted = await run("submit", "-", "--detach", text=QUICK.replace("quick", "slow"))

    result = await run("result", submitted.stdout.strip(), "--timeout", "0.2")

    assert result.exit_code == exits.DEADLINE


async def test_submit_gives_up_following_at_its_deadline(run) -> None:
    result = await run("submit", "-", "--timeout", "0.3", text=QUICK.replace("quick", "slow"))

    assert result.exit_code == exits.DEADLINE
    assert "it may still be running" in result.stderr


async def test_cancel_then_result_is_exit_1(run) -> None:
    submitted = await run("submit", "-", "--detach", text=QUICK.replace("quick", "slow"))
    task_id = submitted.stdout.strip()

    cancelled = await run("cancel", task_id)
    result = await run("result", task_id)

    assert cancelled.stdout == f"cancelled {task_id}\n"
    assert result.exit_code == exits.TASK_FAILED


async def test_tasks_show_watch_list_and_draw(run) -> None:
    submitted = await run("submit", "-", "--detach", text=QUICK)
    task_id = submitted.stdout.strip()

    listed = await run("tasks")
    shown = await run("task", "show", task_id, "--story")
    watched = await run("watch", task_id, "--json")

    assert task_id in listed.stdout
    assert "a echo  ready" in shown.stdout
    assert "task succeeded" in shown.stdout
    kinds = [json.loads(line)["kind"] for line in watched.stdout.splitlines()]
    assert kinds == ["SUBMITTED", "SUBTASK_SUCCEEDED", "TASK_SUCCEEDED"]


async def test_status_members_locks_have_tables_and_json(run) -> None:
    for name, word in (("status", "can write"), ("members", "alive"), ("locks", "n0/w0")):
        table = await run(name)
        data = await run(name, "--json")

        assert table.exit_code == exits.OK
        assert word in table.stdout
        assert json.loads(data.stdout)


async def test_digests_are_shown_in_hexadecimal(run) -> None:
    result = await run("status", "--json")

    assert json.loads(result.stdout)["digest"] == "0102"


async def test_join_token_prints_nothing_but_the_token(run) -> None:
    result = await run("join-token", "--ttl", "60")

    assert result.stdout == "qm-token\n"


async def test_doctor_of_a_well_mesh_is_exit_0(run) -> None:
    result = await run("doctor", "--json")

    checks = {json.loads(line)["check"] for line in result.stdout.splitlines()}
    assert result.exit_code == exits.OK
    assert checks == {"reach", "quorum", "leader", "clock", "workers", "version", "digest"}


def test_doctor_names_a_lost_majority_and_missing_workers() -> None:
    members = [mesh_pb2.Member(node_id=f"n{at}", name=f"n{at}", voter=True) for at in range(3)]
    seen = {"n0": mesh_pb2.StatusReply(name="n0", writable=False)}

    bad = {finding.check: finding.text for finding in judge(members, seen) if not finding.ok}

    assert bad["quorum"] == "1 of 3 voters answer: no majority, so the mesh is read-only"
    assert bad["leader"] == "cannot write: n0"
    assert "workers" in bad


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submi"], "No such command 'submi'"),
        (["submit", "no-such-file.yaml"], "no-such-file.yaml"),
        (["--address", "nonsense", "status"], "give HOST:PORT, such as 127.0.0.1:7400"),
        (["node", "start", "--loop", "fast"], "'fast' is not one of"),
        (["node", "start", "--slots", "0"], "0 is not in the range"),
        (["doctor", "--data", "/nonexistent"], "holds no ledger"),
        (["dev", "--agents", "no_such_module_here"], "no module 'no_such_module_here' here"),
        (["dev", "--agents", "no_such.py"], "no file 'no_such.py' here"),
    ],
)
def test_wrong_usage_is_one_line_on_stderr_and_exit_2(arguments: list[str], said: str) -> None:
    result = offline(*arguments)

    assert result.exit_code == exits.BAD_INPUT
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [("subtasks: [", "-: line 1, column 12"), ("subtask: []", "did you mean 'subtasks'?")],
)
def test_a_bad_task_file_is_exit_2_before_anything_is_dialled(text: str, said: str) -> None:
    result = offline("--address", "127.0.0.1:1", "submit", "-", text=text)

    assert result.exit_code == exits.BAD_INPUT
    assert said.removeprefix("-: ") in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_task_id_that_is_none_is_exit_2(tmp_path: Path) -> None:
    session = Session(("127.0.0.1:1",), dial=dial_with(None))

    result = CliRunner().invoke(cli, ["result", "xyz"], obj=session)

    assert result.exit_code == exits.BAD_INPUT
    assert "'xyz' is not a task id; see the ids with: mesh tasks" in result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Refused("INVALID"), exits.REFUSED),
        (Unreachable("nobody"), exits.UNREACHABLE),
        (DeadlineExceeded("late"), exits.DEADLINE),
        (TaskFailed("t", "C", "m"), exits.TASK_FAILED),
        (TaskCancelled("t"), exits.TASK_FAILED),
        (ProfileMissing("none"), exits.BAD_INPUT),
        (TokenMalformed("cut"), exits.BAD_INPUT),
        (TokenUsed("used"), exits.REFUSED),
        (JoinFailed({"h:1": "refused"}), exits.UNREACHABLE),
    ],
)
def test_each_error_has_its_exit_code(error: MeshError, code: int) -> None:
    assert exits.exit_of(error) == code


def test_without_a_profile_the_next_step_is_told(tmp_path: Path) -> None:
    result = offline("--profile", str(tmp_path / "none.json"), "status")

    assert result.exit_code == exits.BAD_INPUT
    assert "mesh node start" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_address_where_nobody_listens_is_exit_4() -> None:
    session = Session(("127.0.0.1:1",), dial=dial_with(None), timeout_s=0.3)

    result = CliRunner().invoke(cli, ["status"], obj=session)

    assert result.exit_code == exits.UNREACHABLE
    assert "127.0.0.1:1: connection refused; check that a node runs there" in result.stderr


def test_every_command_has_help_with_an_example_and_exit_codes_are_told() -> None:
    def walk(group, path):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, [*path, name])
            else:
                yield [*path, name]

    paths = list(walk(cli, []))
    silent = [path for path in paths if "Example:" not in offline(*path, "--help").stdout]

    assert silent == []
    assert len(paths) == 13
    assert "130  interrupted" in offline("--help").stdout


def test_the_reloader_sees_a_changed_file(tmp_path: Path) -> None:
    file = tmp_path / "agents.py"
    file.write_text("a = 1")
    before = stamps([tmp_path])

    file.write_text("a = 2")
    os.utime(file, ns=(1, 1))

    assert stamps([tmp_path]) != before


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_the_example_tasks_are_well_formed(path: Path) -> None:
    assert parse_spec(path.read_text()).subtasks

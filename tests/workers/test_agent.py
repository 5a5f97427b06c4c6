"""Agents as their authors write them, and the reports that calls turn into."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from quorumesh.v1 import workers_pb2
from quorumesh.v1.values_pb2 import Failure, Value

from mesh import Agent, AgentError, Context, Final, NeedOutput, Spawn, Subtask, Vote
from mesh.skills.builtin import builtin
from mesh.skills.shell import OUTPUT_BYTES_MAX, shell
from mesh.worker_calls import VALUE_BYTES_MAX, arguments, completion_of, failure_of
from mesh.worker_loading import BadAgents, load, merge


@dataclass
class Question:
    text: str
    limit: int = 3


def grant(value: object = None, needs: dict[str, object] | None = None) -> workers_pb2.Grant:
    outputs = [
        workers_pb2.NeedOutput(id=key, output=Value(data=msgspec.json.encode(need)))
        for key, need in (needs or {}).items()
    ]
    return workers_pb2.Grant(
        subtask_ref=7,
        fence=9,
        task_id=bytes(16),
        subtask="a",
        skill="s",
        attempt=2,
        input=Value(data=msgspec.json.encode(value)),
        needs=outputs,
    )


async def call(agent: Agent, skill: str, message: workers_pb2.Grant) -> Any:
    context = Context(message)
    found = agent.skills[skill]
    completion = completion_of(
        message, context, await found.function(**arguments(found, message, context))
    )
    return msgspec.json.decode(completion.output.data)


def test_input_context_and_needs_are_told_apart() -> None:
    agent = Agent("a")

    @agent.skill("s")
    def answer(ctx: Context, question: Question, needs: dict[str, NeedOutput]) -> None: ...

    message = grant({"text": "why"}, {"x": [1]})
    context = Context(message)
    named = arguments(agent.skills["s"], message, context)

    assert named["question"] == Question("why", 3)
    assert named["ctx"] is context and (context.attempt, context.fence) == (2, 9)
    assert named["needs"]["x"].value == [1] and named["needs"]["x"].failure is None
    assert answer.__name__ == "answer"


def test_input_that_does_not_fit_is_final() -> None:
    agent = Agent("a")

    @agent.skill("s")
    def answer(question: Question) -> None: ...

    message = grant({"text": 5})
    with pytest.raises(Final) as caught:
        arguments(agent.skills["s"], message, Context(message))

    assert caught.value.code == "BAD_INPUT"


def test_a_second_input_and_a_second_skill_of_one_name_are_refused() -> None:
    agent = Agent("a")

    with pytest.raises(TypeError):
        agent.skill("two")(lambda first, second: None)
    agent.skill("one")(lambda first: None)
    with pytest.raises(ValueError):
        agent.skill("one")(lambda first: None)


def test_an_output_of_one_byte_too_many_is_refused() -> None:
    message = grant()
    largest = "x" * (VALUE_BYTES_MAX - 2)  # and its quotes

    assert len(completion_of(message, Context(message), largest).output.data) == VALUE_BYTES_MAX
    with pytest.raises(Final) as caught:
        completion_of(message, Context(message), largest + "x")
    assert caught.value.code == "VALUE_TOO_LARGE"


def test_a_failed_need_shows_its_failure() -> None:
    failure = Failure(code="LOST", message="gone")
    need = NeedOutput(workers_pb2.NeedOutput(id="n", failure=failure))

    assert need.failure is not None and need.failure.code == "LOST" and need.value is None


def test_votes_and_spawns_become_parts_of_the_completion() -> None:
    message = grant()
    voted = completion_of(message, Context(message), Vote(1, label="one", weight=3))
    spawn = Spawn(subtasks=[Subtask("a", "echo", {"x": 1}, where={"k": "v"})], join="a")
    spawned = completion_of(message, Context(message), spawn)

    assert (voted.vote.label, voted.vote.weight, voted.output.data) == ("one", 3, b"1")
    assert spawned.spawn.join == "a" and not spawned.HasField("output")
    assert spawned.spawn.subtasks[0].input.data == b'{"x":1}'


def test_failures_are_bounded_and_clean() -> None:
    report = failure_of(grant(), ValueError("\ud800" + "x" * 5_000))
    own = failure_of(grant(), AgentError("later", code="BUSY"))

    assert len(report.failure.message) == 2_048 and report.failure.code == "AGENT_ERROR"
    assert (own.failure.code, own.final) == ("BUSY", False)


async def test_a_context_tells_of_cancellation_in_both_worlds() -> None:
    context = Context(grant())
    waiting = asyncio.ensure_future(context.wait_cancelled())
    await asyncio.sleep(0)

    context.cancel()

    await waiting
    assert context.cancelled and context.pause(60)


def test_one_skill_in_two_agents_and_modules_without_agents_are_refused() -> None:
    one, two = Agent("one"), Agent("two")
    one.skill("s")(lambda: None)
    two.skill("s")(lambda: None)

    with pytest.raises(BadAgents):
        merge([one, two])
    for module in ("no.such.module", "json"):
        with pytest.raises(BadAgents):
            load([module], allow_shell=False)


def test_agents_are_found_in_files_and_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "two_agents.py"
    lines = ["from mesh import Agent", "one, two = Agent('one'), Agent('two')"]
    lines += ["one.skill('first')(lambda: 1)", "two.skill('second')(lambda: 2)"]
    file.write_text("\n".join(lines))

    assert {"first", "second"} <= load([str(file)], allow_shell=False).skills.keys()
    only = load(["two_agents:one"], allow_shell=False).skills
    assert "first" in only and "second" not in only
    sys.path.remove(str(tmp_path))


def test_shell_is_offered_only_where_it_is_allowed() -> None:
    assert "shell" not in load([], allow_shell=False).skills
    assert "shell" in load([], allow_shell=True).skills


async def test_shell_expands_nothing_and_bounds_output() -> None:
    echoed = await call(shell, "shell", grant({"argv": ["echo", "$HOME;ls"]}))
    endless = {"argv": ["head", "-c", "1000000", "/dev/zero"]}
    cut = await call(shell, "shell", grant(endless))

    assert echoed["stdout"] == "$HOME;ls\n" and echoed["code"] == 0
    assert cut["is_cut"]
    assert OUTPUT_BYTES_MAX // 2 < len(msgspec.json.encode(cut["stdout"])) <= OUTPUT_BYTES_MAX
    assert (await call(shell, "shell", grant({"argv": ["cat"], "stdin": "hi"})))["stdout"] == "hi"


async def test_shell_that_takes_too_long_is_killed() -> None:
    with pytest.raises(AgentError) as caught:
        await call(shell, "shell", grant({"argv": ["sleep", "60"], "timeout_ms": 50}))

    assert caught.value.code == "TIMEOUT"


@pytest.mark.parametrize(
    ("skill", "needs", "expected"),
    [
        ("combine.concat", {"a": "x", "b": "y"}, "x\ny"),
        ("combine.list", {"a": 1, "b": [2]}, [1, [2]]),
        ("combine.merge", {"a": {"k": 1, "l": 1}, "b": {"k": 2}}, {"k": 2, "l": 1}),
        ("combine.majority", {"a": 1, "b": {"x": 2}, "c": {"x": 2}}, {"x": 2}),
        ("combine.sum", {"a": 1, "b": 2}, 3),
        ("combine.mean", {"a": 1, "b": 2}, 1.5),
    ],
)
async def test_combining(skill: str, needs: dict[str, object], expected: object) -> None:
    assert await call(builtin, skill, grant(None, needs)) == expected

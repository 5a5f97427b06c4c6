"""What the README shows is tried as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import json_format
from quorumesh.v1 import tasks_pb2
from quorumesh.v1.values_pb2 import TASK_SUCCEEDED

from tests.e2e.mesh_process import ROOT, LocalMesh, NodeProcess

README = (ROOT / "README.md").read_text(encoding="utf-8")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


def block(language: str, holding: str) -> str:
    """The one code block of this language that holds this text."""
    found = [
        text
        for text in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
        if holding in text
    ]
    assert len(found) == 1, f"{len(found)} blocks of {language} hold {holding!r}"
    return str(found[0])


def run(node: NodeProcess, *command: str | Path) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=node.root,
        env={**os.environ, "QUORUMESH_PROFILE": str(node.profile)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_the_first_agent_the_client_and_grpc_work_as_shown(tmp_path: Path) -> None:
    agents = tmp_path / "my_agents.py"
    agents.write_text(block("python", 'Agent("writer")'), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(block("yaml", "shout"), encoding="utf-8")
    (tmp_path / "client.py").write_text(block("python", "Client()"), encoding="utf-8")
    with LocalMesh(tmp_path, slots=4, agents=[str(agents)]) as mesh:
        [node] = mesh.grow(1)

        submitted = run(node, "-m", "node.cli.main", "submit", "task.yaml", "--json")
        client = run(node, "client.py")
        example = run(node, ROOT / "examples" / "grpc_client.py", node.profile)
        requests = [json.loads(text) for text in re.findall(r"-d '(.*?)'", README, re.DOTALL)]
        submit = json_format.ParseDict(requests[0], tasks_pb2.SubmitRequest())
        node.tasks().Submit(submit, timeout=10)
        wait = json_format.ParseDict(requests[1], tasks_pb2.ResultRequest())
        reply = node.tasks().Result(wait, timeout=20)

    assert "HELLO MESH" in submitted
    assert client.startswith("HELLO\n")
    assert "hello, mesh" in example
    assert reply.task.state == TASK_SUCCEEDED
    assert reply.task.output.data == b'"hello"'


def test_every_script_and_file_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"\b((?:scripts|tests|examples|consensus|mesh|node)/[\w./]*\w)", README))

    assert len(named) > 8
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_command_that_the_readme_names_is_there() -> None:
    table = README[README.index("| command |") : README.index("Exit codes:")]
    named = [
        words.split()
        for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
        for words in re.findall(r"`([a-z -]+?)(?: [A-Z]+)?`", cell)
    ]

    assert len(named) > 10
    for words in named:
        done = subprocess.run(
            [sys.executable, "-m", "node.cli.main", *words, "--help"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, (words, done.stderr)

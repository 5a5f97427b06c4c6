"""Real processes: altered rows are found, the node ends, doctor names it, and it comes back as a new one."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mesh import Client
from node.api.errors import EXIT_DAMAGED
from tests.e2e.mesh_process import ROOT, LocalMesh, NodeProcess, wait_for

SCRUB_MS = 500
TASKS = 20

pytestmark = pytest.mark.slow


def submit(client: Client, count: int) -> list[str]:
    return [client.submit({"subtasks": [{"id": "a", "skill": "nobody"}]}) for _ in range(count)]


def alter_a_row(node: NodeProcess) -> None:
    """Change one task under the hood of a stopped node, so that SQLite finds nothing wrong."""
    state = node.data / "state"
    path = state / (state / "CURRENT").read_text("ascii").strip() / "ledger.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute("UPDATE task SET band = 7 WHERE seq = 3").rowcount == 1
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def exit_code(node: NodeProcess) -> int:
    """What the process ended with; waits for its end."""
    process = node.process
    assert process is not None
    code = wait_for(lambda: (process.poll(),) if process.poll() is not None else None, "its end")[0]
    node.kill()
    assert code is not None
    return code


def doctor(node: NodeProcess) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node.cli.main", "doctor", "--data", str(node.data)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def members(client: Client) -> dict[str, bool]:
    return {member.node_id: member.voter for member in client.members()}


def test_a_node_with_altered_rows_is_taken_out_named_and_replaced(tmp_path: Path) -> None:
    with LocalMesh(tmp_path, workers=0, options=["--scrub-ms", str(SCRUB_MS)]) as mesh:
        first, second, third = mesh.grow(3)
        old = third.status().node_id
        with first.client(second) as client:
            tasks = submit(client, TASKS)
        wait_for(lambda: third.status().task_count == TASKS, "the third has all tasks")
        third.stop()
        sound = doctor(third)
        alter_a_row(third)

        third.start()
        taken_out = exit_code(third)
        said = third.log_tail()
        third.start()
        refused = exit_code(third)
        found = doctor(third)

        assert (sound.returncode, taken_out, refused) == (0, EXIT_DAMAGED, EXIT_DAMAGED), said
        assert "3 of 3 voters agree" in sound.stdout
        assert "CRITICAL" in said and "mesh node start --rejoin --data" in said
        assert found.returncode == EXIT_DAMAGED
        bad = [line.split()[1] for line in found.stdout.splitlines() if line.startswith("BAD")]
        assert bad == ["mark", "digest", "verdict"]

        third.options = [*third.options, "--rejoin"]
        third.start()
        new = wait_for(lambda: third.status().node_id, "the third answers")
        with first.client(second) as client:
            wait_for(lambda: members(client).get(new) and old not in members(client), "new voter")
            submit(client, TASKS)
            assert set(members(client).values()) == {True} and len(members(client)) == 3
        wait_for(lambda: third.status().task_count == 2 * TASKS, "it has what was written since")
        wait_for(lambda: third.status().scrub.result == "equal", "its rows are compared again")

        # Told again although it is sound now, it refuses; without that, it is who it became.
        third.stop()
        third.start()
        assert exit_code(third) == 2 and "this folder is sound" in third.log_tail()
        third.options = third.options[:-1]
        third.start()
        assert wait_for(lambda: third.status().node_id, "the third answers") == new
        with third.client() as client:
            assert {task.task_id.hex() for task in client.list(limit=100)} >= {
                task.replace("-", "") for task in tasks
            }
        assert (third.data / "state.damaged-1" / "DIVERGED").exists()

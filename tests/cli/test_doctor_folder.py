"""`mesh doctor --data`: what a stopped node has on disk, looked at without touching it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from quorumesh.v1.ledger_pb2 import Command, Submit
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec

from consensus import examining
from node.cli import exits
from node.cli.main import cli
from node.comparing import judge
from tests.consensus.cluster import Cluster


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a node that worked for a while, let go of some entries and was stopped."""
    root = tmp_path_factory.mktemp("stopped")
    cluster = Cluster(root, compact_entries=20, keep_entries=5, segment_bytes_max=4_096)
    core = cluster.start("n1")
    cluster.wait_leader()
    for number in range(60):
        spec = TaskSpec(subtasks=[SubtaskSpec(id="a", skill="s"), SubtaskSpec(id="b", skill="s")])
        submit = Submit(task_id=number.to_bytes(16, "big"), spec=spec.SerializeToString())
        cluster.propose("n1", Command(submit=submit))
    cluster.world.run(lambda: core.compaction.done_count > 0)
    assert core.journal.base_index > 0
    core.close()
    home = root / "home"
    home.mkdir()
    (root / "n1").rename(home / "state")
    return home


@pytest.fixture
def home(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "home"))


def doctor(home: Path) -> tuple[Result, dict[str, dict[str, object]]]:
    result = CliRunner().invoke(cli, ["doctor", "--data", str(home), "--json"])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    return result, {line["check"]: line for line in lines}


def fingerprint(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's content and time of change, every folder's names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        digest = hashlib.sha256(data).hexdigest()
        found[str(path.relative_to(folder))] = (digest, path.stat().st_mtime_ns)
    return found


def test_a_sound_folder_passes_every_check_and_is_not_touched(home: Path) -> None:
    before = fingerprint(home)

    result, found = doctor(home)

    assert result.exit_code == exits.OK, result.output
    assert [name for name, one in found.items() if one["ok"]] == [
        "mark",
        "journal",
        "vote",
        "current",
        "file",
        "ledger",
        "invariants",
        "position",
        "verdict",
    ]
    assert found["digest"]["ok"] is None  # no certificate there: nobody can be asked
    assert fingerprint(home) == before


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def _first_journal(home: Path) -> Path:
    return min((home / "state" / "journal").iterdir())


def _ledger(home: Path) -> Path:
    return home / "state" / "ledger-0" / "ledger.db"


def _alter(home: Path, statement: str) -> None:
    with sqlite3.connect(_ledger(home)) as db:
        assert db.execute(statement).rowcount == 1
    db.close()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "marked": (lambda home: (home / "state" / "DIVERGED").write_text("why\n"), "mark"),
    "journal bit": (lambda home: _flip(_first_journal(home), 100), "journal"),
    "journal gone": (lambda home: shutil.rmtree(home / "state" / "journal"), "journal"),
    "vote bit": (lambda home: _flip(home / "state" / "vote", 6), "vote"),
    "vote gone": (lambda home: (home / "state" / "vote").unlink(), "vote"),
    "current gone": (lambda home: (home / "state" / "CURRENT").unlink(), "current"),
    "ledger gone": (lambda home: _ledger(home).unlink(), "current"),
    "no database": (lambda home: _ledger(home).write_bytes(b"not a database" * 999), "file"),
    "cut short": (lambda home: os.truncate(_ledger(home), 8_192), "file"),
    "a count": (lambda home: _alter(home, "UPDATE ledger SET ready_count = 1"), "invariants"),
    "older": (lambda home: _alter(home, "UPDATE ledger SET applied_index = 1"), "position"),
    "newer": (lambda home: _alter(home, "UPDATE ledger SET applied_index = 9999"), "position"),
    "state gone": (lambda home: shutil.rmtree(home / "state"), "mark"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_wrong_is_named_with_what_to_do_and_exit_66(home: Path, name: str) -> None:
    damage, check = DAMAGE[name]
    (home / "node.json").write_text("{}")
    damage(home)
    before = fingerprint(home)

    result, found = doctor(home)

    assert result.exit_code == exits.DAMAGED
    assert found[check]["ok"] is False, found
    assert f"mesh node start --rejoin --data {home}" in str(found["verdict"]["text"])
    assert fingerprint(home) == before


def test_people_see_one_line_a_check(home: Path) -> None:
    _flip(home / "state" / "vote", 6)

    result = CliRunner().invoke(cli, ["doctor", "--data", str(home)])

    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines if line.split()[1] == "vote"] == ["BAD"]
    assert [line.split()[0] for line in lines if line.split()[1] == "journal"] == ["ok"]
    assert [line.split()[0] for line in lines if line.split()[1] == "digest"] == ["--"]


def test_a_folder_whose_node_runs_is_left_alone(home: Path) -> None:
    lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)

    result = CliRunner().invoke(cli, ["doctor", "--data", str(home)])

    os.close(lock)
    assert result.exit_code == exits.BAD_INPUT and "a node runs" in result.stderr


def test_a_ledger_of_another_release_is_no_damage(home: Path) -> None:
    _alter(home, "UPDATE ledger SET schema_version = 99")

    result, found = doctor(home)

    assert result.exit_code == exits.OK and found["ledger"]["ok"] is None
    assert "upgrade" in str(found["ledger"]["text"])


@pytest.mark.parametrize(
    ("equal", "other", "voters", "ok"),
    [
        ({"n1", "n2", "n3"}, set(), 3, True),
        ({"n1", "n2"}, set(), 3, True),
        ({"n1", "n2"}, {"n3"}, 3, True),
        ({"n1"}, {"n2", "n3"}, 3, False),
        ({"n1"}, {"n2"}, 3, None),
        ({"n1"}, set(), 3, None),
        ({"n1"}, set(), 1, True),
        ({"n1"}, {"n2"}, 2, None),
        (set(), {"n2", "n3"}, 3, False),
        (set(), set(), 0, None),
    ],
)
def test_only_a_majority_of_voters_makes_a_ledger_wrong(
    equal: set[str], other: set[str], voters: int, ok: bool | None
) -> None:
    assert judge(equal, other, voters).ok is ok


def run_doctor(home: Path, *arguments: str, file_bytes_max: int = -1) -> subprocess.Popen[str]:
    """The command in a process of its own, where no file may grow beyond the given size."""
    code = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({file_bytes_max}, {file_bytes_max}))\n"
        "from node.cli.main import main\n"
        "main()\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "doctor", "--data", str(home), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("is_told", [True, False])
def test_the_copy_lies_beside_the_data_or_where_it_is_told_to(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    # Whoever reads a vote that is a pipe waits: the copy's folder can be looked at meanwhile.
    (home / "state" / "vote").unlink()
    os.mkfifo(home / "state" / "vote")
    place = work if is_told else tmp_path
    process = run_doctor(home, *(["--work", str(work)] if is_told else []))
    try:
        wait_for(lambda: list(place.glob("quorumesh-doctor-*")), process)

        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()

    assert (process.returncode, said.strip()) == (exits.INTERRUPTED, "mesh: interrupted")
    assert list(work.iterdir()) == []
    assert sorted(tmp_path.iterdir()) == [home, work]


def wait_for(is_so: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not is_so():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
            raise AssertionError(process.communicate())


def test_a_place_without_room_is_told_before_anything_is_copied(home: Path) -> None:
    os.truncate(_ledger(home), 8 << 40)  # it has holes: the disk that it lies on is smaller

    result, found = doctor(home)

    assert result.exit_code == exits.BAD_INPUT and not found
    assert "no room in" in result.stderr and "8,388,616 MiB" in result.stderr
    assert "--work DIR" in result.stderr


@pytest.mark.parametrize("more_bytes", [-4_096, 0])
def test_want_of_room_for_the_copy_is_never_taken_for_damage(home: Path, more_bytes: int) -> None:
    size = _ledger(home).stat().st_size
    process = run_doctor(home, file_bytes_max=size + more_bytes)

    _, said = process.communicate(timeout=60)

    assert process.returncode in (exits.BAD_INPUT, exits.OK), said
    assert ("no room in" in said) == (process.returncode == exits.BAD_INPUT)
    assert process.returncode == exits.BAD_INPUT or more_bytes == 0


@pytest.mark.parametrize(
    "code", [sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN]
)
def test_a_place_that_fails_the_copy_is_never_taken_for_damage(code: int) -> None:
    def fails() -> str:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = (
            code | 19 << 8
        )  # an extended code, as for what lies beside the file
        raise examining._judged(error, "the ledger is damaged")

    with pytest.raises(examining.CannotWork):
        examining._checked("ledger", fails)


def test_help_says_how_a_damaged_node_comes_back() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--help"])

    assert "mesh node start --rejoin --data" in result.stdout
    assert "--work" in result.stdout

"""Writes and syncs below the folder fail when told to, and only those."""

from __future__ import annotations

import errno
from pathlib import Path

from tests.faultlib.child import Child, run
from tests.faultlib.control import Faults

TRY_ALL = """
    import os, sys
    folder = sys.argv[1]
    fd = os.open(folder + "/a", os.O_RDWR | os.O_CREAT)
    for name, act in [
        ("write", lambda: os.write(fd, b"x")),
        ("pwrite", lambda: os.pwrite(fd, b"x", 5)),
        ("writev", lambda: os.writev(fd, [b"x", b"y"])),
        ("pwritev", lambda: os.pwritev(fd, [b"x"], 0)),
        ("ftruncate", lambda: os.ftruncate(fd, 1)),
        ("truncate", lambda: os.truncate(folder + "/a", 1)),
        ("fallocate", lambda: os.posix_fallocate(fd, 0, 4096)),
        ("fsync", lambda: os.fsync(fd)),
        ("fdatasync", lambda: os.fdatasync(fd)),
    ]:
        try:
            act()
            print(name, 0)
        except OSError as error:
            print(name, error.errno)
"""
WRITES = ("write", "pwrite", "writev", "pwritev", "ftruncate", "truncate", "fallocate")
SYNCS = ("fsync", "fdatasync")


def outcomes(output: str) -> dict[str, int]:
    return {name: int(code) for name, code in (line.split() for line in output.splitlines())}


def test_without_faults_every_call_succeeds(faults: Faults) -> None:
    assert outcomes(run(faults, TRY_ALL)) == dict.fromkeys((*WRITES, *SYNCS), 0)


def test_a_write_error_fails_every_kind_of_write_and_no_sync(faults: Faults) -> None:
    faults.write_errno = errno.EIO

    found = outcomes(run(faults, TRY_ALL))

    assert found == dict.fromkeys(WRITES, errno.EIO) | dict.fromkeys(SYNCS, 0)
    assert faults.refused_count == len(WRITES)


def test_a_sync_error_fails_every_kind_of_sync_and_no_write(faults: Faults) -> None:
    faults.sync_errno = errno.EIO

    found = outcomes(run(faults, TRY_ALL))

    assert found == dict.fromkeys(WRITES, 0) | dict.fromkeys(SYNCS, errno.EIO)


def test_files_beside_the_folder_are_left_alone(faults: Faults, tmp_path: Path) -> None:
    faults.write_errno = faults.sync_errno = errno.EIO
    beside = tmp_path / "data-of-another"
    beside.mkdir()

    found = outcomes(run(faults, TRY_ALL.replace("sys.argv[1]", "sys.argv[2]"), beside))

    assert set(found.values()) == {0}
    assert faults.call_count == 0


def test_a_full_disk_takes_what_there_is_room_for_and_then_nothing(faults: Faults) -> None:
    faults.room_bytes = 10
    program = """
        import os, sys
        fd = os.open(sys.argv[1] + "/a", os.O_RDWR | os.O_CREAT)
        print(os.write(fd, b"123456"), os.write(fd, b"7890ab"))
        print(os.pwrite(fd, b"over", 2))
        try:
            os.write(fd, b"c")
        except OSError as error:
            print(error.errno)
    """

    output = run(faults, program)

    assert output.split() == ["6", "4", "4", str(errno.ENOSPC)]
    assert (faults.folder / "a").read_bytes() == b"12over7890"


def test_a_fault_is_switched_on_and_off_under_a_running_process(faults: Faults) -> None:
    child = Child(
        faults,
        """
        import os, sys
        fd = os.open(sys.argv[1] + "/a", os.O_RDWR | os.O_CREAT)
        for _ in range(3):
            try:
                print(os.write(fd, b"x"), flush=True)
            except OSError as error:
                print(-error.errno, flush=True)
            sys.stdin.readline()
        """,
    )

    assert child.line() == "1"
    faults.write_errno = errno.EIO
    child.tell()
    assert child.line() == str(-errno.EIO)
    faults.heal()
    child.tell()
    assert child.line() == "1"
    child.tell()
    assert child.end() == (0, "")


def test_sqlite_meets_the_same_faults(faults: Faults) -> None:
    child = Child(
        faults,
        """
        import sqlite3, sys
        db = sqlite3.connect(sys.argv[1] + "/a.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (x)")
        for _ in range(2):
            print("ready", flush=True)
            sys.stdin.readline()
            try:
                db.execute("INSERT INTO t VALUES (zeroblob(100000))")
                print("written", flush=True)
            except sqlite3.OperationalError as error:
                print(error, flush=True)
        """,
    )

    assert child.line() == "ready"
    faults.room_bytes = 5_000
    child.tell()
    assert child.line() == "database or disk is full"
    faults.room_bytes = None
    assert child.line() == "ready"
    child.tell()
    assert child.line() == "written"
    assert child.end()[0] == 0


def test_a_subprocess_of_the_process_starts_and_ends_as_ever(faults: Faults) -> None:
    program = """
        import os, subprocess, sys
        fd = os.open(sys.argv[1] + "/a", os.O_RDWR | os.O_CREAT)
        print(subprocess.run(["echo", "hello"], capture_output=True, text=True).stdout.strip())
        os.write(fd, b"x")
    """

    calls_before = faults.call_count
    assert run(faults, program) == "hello"

    assert faults.call_count - calls_before == 2, "made and written to: still known after a child"

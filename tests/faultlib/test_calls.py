"""A process ends at exactly the mutating call that it is told to end at."""

from __future__ import annotations

import pytest

from tests.faultlib.child import Child, run
from tests.faultlib.control import CRASH_CODE, CrashWhen, Faults

# Its mutating calls, in order: 1 mkdir, 2 create, 3 write, 4 sync, 5 rename, 6 sync of the folder,
# 7 remove, 8 rmdir.
PROGRAM = """
    import os, sys
    folder = sys.argv[1]
    os.mkdir(folder + "/f")
    fd = os.open(folder + "/f/a.tmp", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"abcdef")
    os.fsync(fd)
    os.rename(folder + "/f/a.tmp", folder + "/a")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(handle)
    os.unlink(folder + "/a")
    os.rmdir(folder + "/f")
"""
CALLS = 8


def what_is_left(faults: Faults) -> dict[str, bytes | None]:
    paths = sorted(faults.folder.rglob("*"))
    return {
        str(path.relative_to(faults.folder)): None if path.is_dir() else path.read_bytes()
        for path in paths
    }


def test_every_mutating_call_is_counted_once(faults: Faults) -> None:
    run(faults, PROGRAM)

    assert faults.call_count == CALLS


@pytest.mark.parametrize(
    ("call", "when", "left"),
    [
        (1, "before", {}),
        (1, "after", {"f": None}),
        (2, "before", {"f": None}),
        (2, "after", {"f": None, "f/a.tmp": b""}),
        (3, "before", {"f": None, "f/a.tmp": b""}),
        (3, "partial", {"f": None, "f/a.tmp": b"abc"}),
        (3, "after", {"f": None, "f/a.tmp": b"abcdef"}),
        (5, "before", {"f": None, "f/a.tmp": b"abcdef"}),
        (5, "after", {"a": b"abcdef", "f": None}),
        (7, "after", {"f": None}),
        (8, "after", {}),
    ],
)
def test_the_process_ends_at_this_call(
    faults: Faults, call: int, when: CrashWhen, left: dict[str, bytes | None]
) -> None:
    faults.crash_at(call, when)

    code, _ = Child(faults, PROGRAM).end()

    assert (code, faults.call_count) == (CRASH_CODE, call)
    assert what_is_left(faults) == left


def test_calls_of_several_threads_are_counted_one_by_one(faults: Faults) -> None:
    program = """
        import os, sys, threading
        def work(name):
            fd = os.open(sys.argv[1] + "/" + name, os.O_RDWR | os.O_CREAT)
            for _ in range(200):
                os.write(fd, b"0123456789")
        threads = [threading.Thread(target=work, args=(str(at),)) for at in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    """

    run(faults, program)

    assert faults.call_count == 4 * 201


def test_tree_removal_by_descriptors_is_seen(faults: Faults) -> None:
    program = """
        import os, shutil, sys
        os.makedirs(sys.argv[1] + "/f/g")
        os.open(sys.argv[1] + "/f/g/a", os.O_RDWR | os.O_CREAT)
        shutil.rmtree(sys.argv[1] + "/f")
    """

    run(faults, program)

    assert faults.call_count == 6
    assert what_is_left(faults) == {}

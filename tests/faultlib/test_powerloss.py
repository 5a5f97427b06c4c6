"""What a power loss leaves: all that was synced, of the rest anything, and nothing else."""

from __future__ import annotations

import random
import shutil
import sqlite3
import textwrap
from contextlib import closing

import pytest

from tests.faultlib import powerloss
from tests.faultlib.child import Child, run
from tests.faultlib.control import CRASH_CODE, Faults, Lies
from tests.faultlib.oplog import LogIncomplete
from tests.faultlib.powerloss import Names

LOSSES = 60
PRELUDE = textwrap.dedent("""
    import os, sqlite3, sys
    folder = sys.argv[1]
    def made(name, data=b""):
        fd = os.open(folder + "/" + name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.write(fd, data)
        return fd
    def sync_folder(name=""):
        handle = os.open(folder + "/" + name, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(handle)
        os.close(handle)
""")


def outcomes(
    faults: Faults, program: str, *, names: Names = Names.ORDERED
) -> set[tuple[tuple[str, bytes | None], ...]]:
    """Every folder that power losses after this program left, each from the very same log."""
    assert faults.log is not None
    shutil.rmtree(faults.folder)
    faults.folder.mkdir()
    powerloss.begin(faults.folder, faults.log)
    run(faults, PRELUDE + textwrap.dedent(program))
    return {
        tuple(
            powerloss.what_may_be_left(
                faults.folder, faults.log, random.Random(seed), names=names
            ).items()
        )
        for seed in range(LOSSES)
    }


def test_what_was_synced_with_its_folder_is_always_there(faults: Faults) -> None:
    found = outcomes(faults, "os.fsync(made('a', b'one')); sync_folder()")

    assert found == {(("a", b"one"),)}


def test_a_file_whose_folder_was_not_synced_may_be_gone(faults: Faults) -> None:
    found = outcomes(faults, "os.fsync(made('a', b'one'))")

    assert found == {(), (("a", b"one"),)}


def test_unsynced_bytes_may_be_there_or_not_and_synced_ones_are(faults: Faults) -> None:
    program = "fd = made('a', b'one'); os.fsync(fd); sync_folder(); os.write(fd, b'two')"

    found = outcomes(faults, program)

    assert {(("a", b"one"),), (("a", b"onetwo"),)} <= found
    assert all(dict(left)["a"].startswith(b"one") for left in found)  # type: ignore[union-attr]


def test_a_torn_write_leaves_whole_sectors_and_at_most_one_of_garbage(faults: Faults) -> None:
    program = "fd = made('a'); sync_folder(); os.write(fd, b'x' * 512 * 8)"

    found = outcomes(faults, program)

    garbage = 0
    for left in found:
        data = dict(left)["a"] or b""
        sectors = {data[at : at + 512] for at in range(0, len(data), 512)}
        odd = sectors - {b"x" * 512, bytes(512)}
        garbage = max(garbage, len(odd))
        assert len(odd) <= 1
    assert garbage == 1
    assert len(found) > 5, "torn in more than one way"


def test_a_replaced_file_is_the_old_or_the_new_never_a_mixture(faults: Faults) -> None:
    program = """
    os.fsync(made('a', b'old')); sync_folder()
    os.fsync(made('a.tmp', b'new')); os.rename(folder + '/a.tmp', folder + '/a')
    """

    found = outcomes(faults, program)

    assert {dict(left)["a"] for left in found} == {b"old", b"new"}


def test_a_rename_before_the_sync_of_its_data_may_leave_an_empty_file(faults: Faults) -> None:
    program = """
    made('a.tmp', b'new'); os.rename(folder + '/a.tmp', folder + '/a'); sync_folder()
    """

    assert (("a", b""),) in outcomes(faults, program)


def test_a_removed_file_comes_back_until_its_folder_is_synced(faults: Faults) -> None:
    program = "os.fsync(made('a', b'one')); sync_folder(); os.unlink(folder + '/a')"

    assert outcomes(faults, program) == {(), (("a", b"one"),)}
    assert outcomes(faults, program + "; sync_folder()") == {()}


def test_names_come_back_in_order_or_if_told_so_in_any(faults: Faults) -> None:
    program = "[os.fsync(made(name)) for name in 'abc']"

    ordered = {"".join(dict(left)) for left in outcomes(faults, program)}
    anyhow = {"".join(dict(left)) for left in outcomes(faults, program, names=Names.ANY)}

    assert ordered == {"", "a", "ab", "abc"}
    assert {"b", "c", "ac"} <= anyhow


def test_a_folder_lost_takes_what_is_in_it_along(faults: Faults) -> None:
    program = "os.mkdir(folder + '/f'); os.fsync(made('f/a', b'one')); sync_folder('f')"

    anyhow = outcomes(faults, program, names=Names.ANY)

    assert anyhow == {(), (("f", None), ("f/a", b"one"))}


def test_what_a_failed_sync_should_have_kept_is_lost_even_if_a_later_one_succeeds(
    faults: Faults,
) -> None:
    program = """
    import ctypes, mmap
    fd = made('a'); sync_folder()
    with open(os.environ['FAULTLIB_CONTROL'], 'r+b') as file:
        control = mmap.mmap(file.fileno(), 0)
    errors = ctypes.c_int64.from_buffer(control, 16)
    os.write(fd, b'lost'); errors.value = 5
    try:
        os.fsync(fd)
    except OSError:
        errors.value = 0
    os.write(fd, b'kept'); os.fsync(fd)
    """

    found = {dict(left)["a"] for left in outcomes(faults, program)}

    assert bytes(4) + b"kept" in found
    assert all(data is not None and data.endswith(b"kept") for data in found)


def test_a_disk_that_lies_about_syncs_loses_what_was_synced(faults: Faults) -> None:
    program = "os.fsync(made('a', b'one')); sync_folder()"

    faults.lies = Lies.FILES
    assert {(("a", b"one"),), (("a", b""),)} <= outcomes(faults, program)
    faults.lies = Lies.FOLDERS
    assert outcomes(faults, program) == {(), (("a", b"one"),)}


def test_a_commit_that_sqlite_called_durable_survives_and_the_database_is_sound(
    faults: Faults,
) -> None:
    program = """
    db = sqlite3.connect(folder + '/a.db', isolation_level=None)
    db.execute('PRAGMA journal_mode=WAL'); db.execute('PRAGMA wal_autocheckpoint=0')
    db.execute('PRAGMA synchronous=FULL')
    db.execute('CREATE TABLE t (x INTEGER PRIMARY KEY, y)')
    for row in range(40):
        db.execute('PRAGMA synchronous=' + ('NORMAL' if row >= 30 else 'FULL'))
        db.execute('INSERT INTO t VALUES (?, zeroblob(700))', (row,))
        if row in (12, 24):
            db.execute('PRAGMA wal_checkpoint(RESTART)')
    sync_folder()
    os._exit(0)
    """

    counts = set()
    for left in outcomes(faults, program):
        folder = faults.folder.with_name("look")
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.unlink()
        for name, data in left:
            (folder / name).write_bytes(data or b"")
        with closing(sqlite3.connect(folder / "a.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            counts.add(db.execute("SELECT count(*), max(x) + 1 FROM t").fetchone())

    assert all(count == top and 30 <= count <= 40 for count, top in counts)
    assert len(counts) > 2, "of the unsynced commits some survived, and some did not"


def test_several_processes_and_threads_share_one_log(faults: Faults) -> None:
    assert faults.log is not None
    powerloss.begin(faults.folder, faults.log)
    program = """
        import os, sys, threading
        def work(name):
            fd = os.open(sys.argv[1] + "/" + name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            for at in range(100):
                os.write(fd, f"{name}.{at} ".encode())
                if at % 10 == 0:
                    os.fdatasync(fd)
        if os.fork() == 0:
            sys.argv[1] += "/."
        threads = [threading.Thread(target=work, args=(str(at),)) for at in range(3)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        shared = os.open(sys.argv[1] + "/shared", os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.write(shared, b"x")
    """
    children = [Child(faults, program) for _ in range(2)]
    assert [child.end()[0] for child in children] == [0, 0]

    loss = powerloss.lose_power(faults.folder, faults.log, random.Random(1))

    assert loss.changes > 0


@pytest.mark.parametrize("call", range(1, 9))
def test_after_a_crash_in_any_call_the_log_tells_the_whole_story(faults: Faults, call: int) -> None:
    assert faults.log is not None
    powerloss.begin(faults.folder, faults.log)
    faults.crash_at(call, ("before", "partial", "after")[call % 3])
    program = """
    for name in 'ab':
        os.fsync(made(name, b'one')); os.rename(folder + '/' + name, folder + '/c')
    """

    code, _ = Child(faults, PRELUDE + textwrap.dedent(program)).end()

    assert code == CRASH_CODE
    powerloss.lose_power(faults.folder, faults.log, random.Random(call))


def test_a_folder_changed_behind_the_logs_back_is_refused(faults: Faults) -> None:
    assert faults.log is not None
    powerloss.begin(faults.folder, faults.log)
    run(faults, PRELUDE + "made('a', b'one'); made('b', b'two')")
    (faults.folder / "a").write_bytes(b"another")

    with pytest.raises(LogIncomplete, match="a"):
        powerloss.lose_power(faults.folder, faults.log, random.Random(1))

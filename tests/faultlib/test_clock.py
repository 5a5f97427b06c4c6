"""Every clock that a node reads jumps and drifts; monotonic time never goes back."""

from __future__ import annotations

import time

import pytest

from tests.faultlib.child import Child, run
from tests.faultlib.control import Faults

HOUR_S = 3_600
FAST_PPM = 200_000
# Between "ready" and the answer the test waits until this much true time has gone by.
GONE_NS = 400_000_000
SLACK = 0.05

CLOCKS = {
    "python": "import time\nnow = time.monotonic",
    "uvloop": "import uvloop\nloop = uvloop.new_event_loop()\n"
    "def now():\n    loop.call_soon(loop.stop); loop.run_forever(); return loop.time()",
    "sqlite wall": "import sqlite3\ndb = sqlite3.connect(':memory:')\n"
    "def now():\n"
    "    return (db.execute(\"SELECT julianday('now')\").fetchone()[0] - 2440587.5) * 86400",
    "wall": "import time\nnow = time.time",
    "coarse": "import time\ndef now():\n    return time.clock_gettime(6)",
}
TWO_LOOKS = """
import sys
{clock}
first = now()
print("ready", flush=True)
sys.stdin.readline()
print(now() - first, flush=True)
"""


def spend(since_ns: int, gone_ns: int) -> int:
    """Wait until so much true time has gone by; how much it was."""
    while (gone := time.monotonic_ns() - since_ns) < gone_ns:
        pass
    return gone


@pytest.mark.parametrize("ppm", [FAST_PPM, -FAST_PPM, 0])
@pytest.mark.parametrize("clock", sorted(CLOCKS))
def test_the_clock_drifts(faults: Faults, clock: str, ppm: int) -> None:
    faults.drift(ppm)
    child = Child(faults, TWO_LOOKS.format(clock=CLOCKS[clock]))
    asked_ns = time.monotonic_ns()
    assert child.line() == "ready"
    ready_ns = time.monotonic_ns()
    spend(ready_ns, GONE_NS)

    child.tell()
    seen_s = float(child.line())

    least_s = GONE_NS / 1e9 * (1 + ppm / 1e6)
    most_s = (time.monotonic_ns() - asked_ns) / 1e9 * (1 + ppm / 1e6)
    assert least_s - SLACK <= seen_s <= most_s + SLACK
    child.end()


@pytest.mark.parametrize("hours", [1, -1])
def test_wall_time_jumps_and_monotonic_time_does_not(faults: Faults, hours: int) -> None:
    child = Child(
        faults,
        """
        import sys, time
        wall, monotonic = time.time(), time.monotonic()
        print("ready", flush=True)
        sys.stdin.readline()
        print(time.time() - wall, time.monotonic() - monotonic, flush=True)
        """,
    )
    began_ns = time.monotonic_ns()
    assert child.line() == "ready"

    faults.jump_wall(hours=hours)
    child.tell()
    wall_s, monotonic_s = map(float, child.line().split())

    gone_s = (time.monotonic_ns() - began_ns) / 1e9
    assert hours * HOUR_S <= wall_s <= hours * HOUR_S + gone_s + SLACK
    assert 0 <= monotonic_s <= gone_s + SLACK


def test_monotonic_time_never_goes_back_while_the_rate_changes(faults: Faults) -> None:
    faults.drift(FAST_PPM)
    child = Child(
        faults,
        """
        import sys, threading, time
        done, backs = threading.Event(), []
        def look():
            last = time.monotonic_ns()
            while not done.is_set():
                now = time.monotonic_ns()
                if now < last:
                    backs.append(last - now)
                last = now
        threads = [threading.Thread(target=look) for _ in range(3)]
        [thread.start() for thread in threads]
        print("ready", flush=True)
        sys.stdin.readline()
        done.set()
        [thread.join() for thread in threads]
        print(len(backs), flush=True)
        """,
    )
    assert child.line() == "ready"

    for turn in range(200):
        faults.drift((-FAST_PPM, FAST_PPM, 0)[turn % 3])
        spend(time.monotonic_ns(), 500_000)
    child.tell()

    assert child.line() == "0"


@pytest.mark.parametrize("ppm", [FAST_PPM, -FAST_PPM])
def test_a_wait_ends_when_the_drifting_clock_says_so(faults: Faults, ppm: int) -> None:
    faults.drift(ppm)
    spend(time.monotonic_ns(), GONE_NS)  # enough to be well apart from true time
    program = """
        import threading, time
        for wait in [threading.Lock(), threading.Condition()]:
            if isinstance(wait, threading.Condition):
                wait.acquire()
                act = lambda: wait.wait(0.2)
            else:
                wait.acquire()
                act = lambda: wait.acquire(timeout=0.2)
            began = time.monotonic()
            act()
            print(time.monotonic() - began)
    """

    waited_s = [float(line) for line in run(faults, program).split()]

    assert all(0.2 * 0.8 - SLACK < waited < 0.2 * 1.2 + SLACK for waited in waited_s)


def test_grpc_deadlines_pass_on_the_drifting_clock_and_do_not_hang(faults: Faults) -> None:
    faults.drift(-FAST_PPM)
    faults.jump_wall(hours=1)
    program = """
        import grpc, time
        channel = grpc.insecure_channel("127.0.0.1:1")
        began = time.monotonic()
        try:
            channel.unary_unary("/a/b")(b"", timeout=0.5, wait_for_ready=True)
        except grpc.RpcError as error:
            print(error.code().name, time.monotonic() - began)
    """

    code, waited_s = run(faults, program).split()

    assert code == "DEADLINE_EXCEEDED"
    assert 0.3 < float(waited_s) < 1.0


def test_after_healing_clocks_run_at_the_true_rate(faults: Faults) -> None:
    faults.drift(FAST_PPM)
    faults.jump_wall(hours=1)
    faults.heal()

    before_s = time.time()
    shown_s = float(run(faults, "import time; print(time.time())"))

    assert before_s - SLACK <= shown_s <= time.time() + SLACK

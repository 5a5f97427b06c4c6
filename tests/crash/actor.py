"""The process that crashes: forks a child for each run, which plays one activity under the library.

It reads one run per line (JSON) from its input and answers each with the child's exit code. A fork
of a warm process is much cheaper than a start.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TypedDict

from tests.crash.activities import BY_NAME, Promises, Stage
from tests.faultlib.control import CrashWhen, Lies, count_from_here

RUN_S_MAX = 60
FAILED = 3


class Run(TypedDict):
    """What is asked for: which activity, on which folder, and where it ends (call 0: nowhere)."""

    activity: str
    root: str
    promises: str
    call: int
    when: CrashWhen
    lies: int
    incarnation: int


def play(run: Run) -> None:
    """Play one activity; the process ends in the middle of it when told so."""
    activity = BY_NAME[run["activity"]]
    promises = Promises(Path(run["promises"]))
    stage = Stage(Path(run["root"]), promises, incarnation=run["incarnation"], seed=1)
    if activity.nodes:
        stage.start(*activity.nodes)
    ticket = count_from_here(run["call"], run["when"], lies=Lies(run["lies"]))
    stage.promises.tell(kind="began", ticket=ticket)
    activity.act(stage)


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm(RUN_S_MAX)
            code = 0
            try:
                play(json.loads(line))
            except BaseException:
                traceback.print_exc()
                code = FAILED
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()

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

from tests.crash.activities import BY_NAME, Promises, Stage
from tests.faultlib.control import CrashWhen, count_from_here

RUN_S_MAX = 60
FAILED = 3


def play(name: str, root: Path, promises: Path, call: int, when: CrashWhen) -> None:
    """Play one activity; the process ends in the middle of it when told so."""
    activity = BY_NAME[name]
    stage = Stage(root, Promises(promises), incarnation=1_000, seed=1)
    if activity.nodes:
        stage.start(*activity.nodes)
    ticket = count_from_here(call, when)
    stage.promises.tell(kind="began", ticket=ticket)
    activity.act(stage)


def main() -> None:
    for line in sys.stdin:
        run = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(RUN_S_MAX)
            code = 0
            try:
                play(
                    run["activity"],
                    Path(run["root"]),
                    Path(run["promises"]),
                    run["call"],
                    run["when"],
                )
            except BaseException:
                traceback.print_exc()
                code = FAILED
            os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()

"""The demo's command line. Exit codes: 0 every promise held, 1 one did not, 130 interrupted."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from examples.demo import show
from examples.demo.flow import COMPOUND, Run, ask_compound, run_batch, start_mesh
from examples.demo.nodes import DemoFailed, Mesh
from mesh import MeshError

RUN_S_MAX = 120  # a demo that hangs is a failed demo
TEMP_CHARS_MAX = 40

_interrupts: list[int] = []  # signals that asked it to end


def main() -> int:
    """Run the demo. Leaves no process and no folder behind."""
    given = _parser().parse_args()
    console = show.console_for(no_color=given.no_color)
    show.welcome(console)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(RUN_S_MAX)
    folder = _folder()
    run: Run | None = None
    try:
        with Mesh(folder) as mesh:
            run = Run(console, mesh)
            failed = _run(run, given)
    except KeyboardInterrupt:
        console.print("\nInterrupted: all nodes are stopped.")
        return 130
    except (DemoFailed, MeshError) as error:
        console.print(f"\n[bold red]The demo failed:[/] {type(error).__name__}")
        console.print(str(error), markup=False)
        failed = True
    finally:
        signal.alarm(0)
        shutil.rmtree(folder, ignore_errors=True)
    if given.json and run is not None:
        _write_summary(Path(given.json), run, failed)
    return 1 if failed else 0


def _run(run: Run, given: argparse.Namespace) -> bool:
    """All steps. True: some promise did not hold."""
    start_mesh(run)
    _go_on()
    ask_compound(run, given.ask or COMPOUND)
    _go_on()
    if not given.ask:
        run_batch(run)
    if given.keep:
        signal.alarm(0)
        show.kept(run.console, run.mesh)
        _wait_for_ctrl_c()
    run.stop()
    return not all(bar.holds for bar in run.bars)


def _folder() -> Path:
    """A private folder whose path is short enough for the Unix sockets in it."""
    deep = len(tempfile.gettempdir()) > TEMP_CHARS_MAX
    return Path(tempfile.mkdtemp(prefix="quorumesh-demo-", dir="/tmp" if deep else None))


def _wait_for_ctrl_c() -> None:
    try:
        while not _interrupts:
            signal.pause()
    except KeyboardInterrupt:
        pass  # the way to end it: go on to the orderly stop


def _write_summary(path: Path, run: Run, failed: bool) -> None:
    promises = {bar.name: {"holds": bar.holds, "found": bar.found} for bar in run.bars}
    summary = {
        "ok": not failed,
        "python": platform.python_version(),
        "total_s": round(time.monotonic() - run.began_s, 2),
        "promises": promises,
        **run.summary,
    }
    path.write_text(json.dumps(summary, indent=2) + "\n", "utf-8")


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _go_on() -> None:
    """An interrupt that came while an object was being finalised was printed and forgotten there."""
    if _interrupts:
        raise KeyboardInterrupt


def _too_long(number: int, frame: FrameType | None) -> None:
    raise DemoFailed(f"it has not ended within {RUN_S_MAX} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Three nodes answer real questions; the leader is killed; nothing is lost.",
    )
    parser.add_argument("--keep", action="store_true", help="leave the mesh up until Ctrl-C")
    parser.add_argument("--ask", metavar="TEXT", help="ask this one question, and kill nothing")
    parser.add_argument("--no-color", action="store_true", help="plain text")
    parser.add_argument("--json", metavar="FILE", help="write a summary for programs")
    return parser


if __name__ == "__main__":
    sys.exit(main())

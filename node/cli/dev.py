"""`mesh dev`: one node in the foreground, whose agents are loaded anew when their files change."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click

from mesh.identity import write_atomic
from mesh.profile import profile_path
from node.cli import exits
from node.cli.nodes import split_modules
from node.cli.session import Failure
from node.config import SLOTS_MAX

LOOK_S = 0.5
STOP_S_MAX = 15.0
FILES_MAX = 2_000
_STAMP = Mapping[str, int]


@click.command()
@click.option(
    "--agents", multiple=True, metavar="MODULE,…", help="Modules or .py files that hold agents."
)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=None,
              help="Keep the state here. Default: a folder that goes away at the end.")  # fmt: skip
@click.option("--listen", default="127.0.0.1:7400", show_default=True, metavar="HOST:PORT")
@click.option("--slots", type=click.IntRange(1, SLOTS_MAX), default=16, show_default=True)
@click.option("--allow-shell", is_flag=True, help="Let tasks run programs here (skill 'shell').")
def dev(
    agents: tuple[str, ...], data: Path | None, listen: str, slots: int, allow_shell: bool
) -> int:
    """Run one node here, and load agents anew when their files change. Ctrl-C stops it all.

    \b
    Example:  mesh dev --agents my_agents
    """
    modules = split_modules(agents)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    roots = [_source_of(module) for module in modules]
    folder = data.expanduser() if data else Path(tempfile.mkdtemp(prefix="mesh-dev-"))
    command = [sys.executable, "-m", "node.cli.main", "node", "start"]
    command += ["--data", str(folder), "--listen", listen, "--slots", str(slots)]
    command += ["--agents", ",".join(modules)] if modules else []
    command += ["--allow-shell"] if allow_shell else []
    profile = profile_path()
    before = profile.read_bytes() if profile.is_file() else None
    try:
        return _run(command, roots)
    finally:
        if data is None:
            shutil.rmtree(folder, ignore_errors=True)
            _restore(profile, before)


COMMANDS = (dev,)


def _restore(profile: Path, before: bytes | None) -> None:
    """A profile must not name certificates that have gone: put back what was there before."""
    if before is not None:
        write_atomic(profile, before)
    else:
        profile.unlink(missing_ok=True)


def _run(command: Sequence[str], roots: Sequence[Path]) -> int:
    """Keep the node up, and start it anew on its folder whenever a file of the agents changes."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGHUP)
    }
    child = _start(command)
    seen = stamps(roots)
    try:
        while not stop.wait(LOOK_S):
            if child.poll() is not None:
                return child.returncode or exits.OK
            if (now := stamps(roots)) != seen:
                changed = sorted(set(now.items()) ^ set(seen.items()))[0][0]
                click.echo(f"mesh dev: {changed} changed, loading agents anew", err=True)
                seen = now
                _stop(child)
                child = _start(command)
        return exits.OK
    except KeyboardInterrupt:
        click.echo("mesh dev: stopping", err=True)
        return exits.INTERRUPTED
    finally:
        _stop(child)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    # A session of its own: Ctrl-C comes to us, and we stop the node in order.
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, start_new_session=True)


def _stop(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def stamps(roots: Sequence[Path]) -> _STAMP:
    """When each Python file under the roots was last changed, in ns."""
    found: dict[str, int] = {}
    for file in _files(roots):
        if len(found) >= FILES_MAX:
            break
        try:
            found[str(file)] = file.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # an editor is just replacing it
    return found


def _files(roots: Sequence[Path]) -> Iterator[Path]:
    for root in roots:
        if root.is_dir():
            yield from sorted(root.rglob("*.py"))
        else:
            yield root


def _source_of(module: str) -> Path:
    """The file or folder of a module's top package."""
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise Failure(f"no file {module!r} here")
        return Path(module)
    module = module.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        spec = None
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise Failure(f"no module {module!r} here: start in the folder that holds it")
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(str(spec.origin))

"""Commands that run nodes and let others join: node start, join-token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from node.cli.plain import dump, plain
from node.cli.session import Failure, Session, connected, json_option, pass_session
from node.config import LISTEN_DEFAULT, SLOTS_MAX, WORKERS_MAX, ConfigError, Loop, NodeConfig

DATA_DEFAULT = Path("~/.quorumesh/node")
TTL_S_MAX = 3_600
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_FOLDER = click.Path(path_type=Path, file_okay=False)
_OPTIONS = (
    click.option("--data", "data_dir", type=_FOLDER, default=DATA_DEFAULT, show_default=True,
                 help="Folder for the node's state; made when new."),
    click.option("--listen", default=LISTEN_DEFAULT, show_default=True, metavar="HOST:PORT",
                 help="Where to listen; port 0 takes a free one."),
    click.option("--advertise", default="", metavar="HOST:PORT",
                 help="What others dial. Default: where it listens, or this host's address."),
    click.option("--join", "join_token", default="", metavar="TOKEN",
                 help="Join the mesh that gave this token."),
    click.option("--rejoin", is_flag=True,
                 help="Come back as a new node in place of this damaged one."),
    click.option("--name", default="", help="For people. Default: the host's name."),
    click.option("--agents", multiple=True, metavar="MODULE,…",
                 help="Modules or .py files that hold agents."),
    click.option("--workers", "worker_count", type=click.IntRange(0, WORKERS_MAX), default=1,
                 show_default=True, help="Worker processes."),
    click.option("--slots", type=click.IntRange(1, SLOTS_MAX), default=16, show_default=True,
                 help="Subtasks at once in each worker."),
    click.option("--allow-shell", is_flag=True, help="Let tasks run programs (skill 'shell')."),
    click.option("--loop", type=click.Choice([loop.value for loop in Loop]), default="auto",
                 show_default=True, help="The event loop."),
    click.option("--log-level", type=click.Choice(LOG_LEVELS, case_sensitive=False),
                 default="INFO", show_default=True),
    click.option("--log-json", is_flag=True, help="Log one JSON object a line."),
    click.option("--no-profile", is_flag=True,
                 help="Leave the profile of this host as it is: commands need --profile then."),
    click.option("--compact-entries", type=int, hidden=True),
    click.option("--compact-wal-bytes", type=int, hidden=True),
    click.option("--keep-entries", type=int, hidden=True),
    click.option("--scrub-ms", type=int, hidden=True),
    click.option("--segment-bytes", "segment_bytes_max", type=int, hidden=True),
)  # fmt: skip


@click.group()
def node() -> None:
    """Run a node on this host."""


def _start(no_profile: bool, **given: Any) -> int:
    """Start a node in the foreground. On an empty folder it begins a mesh, or joins one.

    \b
    Example:  mesh node start                                   on the first host
              mesh node start --join TOKEN --agents my_agents   on the next
    """
    from node.runtime import run_node  # here, so that the other commands start quickly

    settings = {key: value for key, value in given.items() if value is not None}
    settings["data_dir"] = given["data_dir"].expanduser()
    settings["agents"] = split_modules(given["agents"])
    settings["loop"] = Loop(given["loop"])
    settings["log_level"] = given["log_level"].upper()
    try:
        config = NodeConfig(**settings, writes_profile=not no_profile)
    except ConfigError as error:
        raise Failure(str(error)) from None
    return int(run_node(config))


def _with_options() -> click.Command:
    command = _start
    for option in reversed(_OPTIONS):
        command = option(command)
    return click.command("start")(command)


node.add_command(_with_options())


@click.command("join-token")
@click.option("--ttl", "ttl_s", type=click.IntRange(1, TTL_S_MAX), default=TTL_S_MAX,
              show_default=True, help="Seconds that it stays good.")  # fmt: skip
@json_option
@pass_session
def join_token(session: Session, ttl_s: int, as_json: bool) -> None:
    """Make a one-use token with which one more node may join.

    \b
    Example:  mesh node start --join $(mesh join-token)
    """
    with connected(session) as client:
        reply = client.create_token(ttl_s * 1_000)
    click.echo(dump(plain(reply)) if as_json else reply.token)


COMMANDS = (node, join_token)


def split_modules(given: tuple[str, ...]) -> tuple[str, ...]:
    """Modules given with commas, in several options, or both."""
    return tuple(part.strip() for text in given for part in text.split(",") if part.strip())

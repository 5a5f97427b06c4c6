"""What every command shares: how to reach the mesh, where to write, how to fail in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from mesh.aio import TIMEOUT_S
from mesh.calls import Dial
from mesh.client import Client
from mesh.client_errors import MeshError
from mesh.ids import id_bytes, id_text
from mesh.specs import BadSpec
from node.cli import exits

RECENT_TASKS_MAX = 1_000
SHORT_ID_CHARS_MIN = 4
WIDTH_IN_PIPES = 200  # so that ids stay whole


@dataclass(frozen=True, slots=True)
class Session:
    """The global options of one call of `mesh`."""

    addresses: tuple[str, ...] = ()
    profile: Path | None = None
    dial: Dial | None = None  # how to open a channel instead of by the profile's certificates

    timeout_s: float = TIMEOUT_S

    def client(self) -> Client:
        # What the C library would print on stderr, our one line says as well.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        return Client(
            self.addresses or None,
            profile=self.profile,
            dial=self.dial,
            timeout_s=self.timeout_s,
        )


class Failure(click.ClickException):
    """Ends the command with one line on stderr and an exit code."""

    def __init__(self, message: str, exit_code: int = exits.BAD_INPUT) -> None:
        super().__init__(" ".join(message.split()))
        self.code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"mesh: {self.message}", err=True)


class MeshGroup(click.Group):
    """A group whose errors are one line each, with the exit codes of `exits`."""

    def main(self, *args: Any, **options: Any) -> Any:
        options["standalone_mode"] = False
        try:
            code = super().main(*args, **options)
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "mesh"
            Failure(f"{error.format_message()} (see: {path} --help)").show()
            code = exits.BAD_INPUT
        except click.ClickException as error:
            Failure(error.format_message()).show()
            code = error.code if isinstance(error, Failure) else exits.BAD_INPUT
        except (click.Abort, KeyboardInterrupt):
            click.echo("mesh: interrupted", err=True)
            code = exits.INTERRUPTED
        except BrokenPipeError:
            sys.stdout = None  # the reader left; nobody to tell
            code = exits.OK
        sys.exit(code if isinstance(code, int) else exits.OK)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except MeshError as error:
            advice = exits.advice_on(error)
            text = f"{error}; {advice}" if advice else str(error)
            raise Failure(text, exits.exit_of(error)) from None
        except BadSpec as error:
            raise Failure(str(error)) from None


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
pass_session = click.make_pass_decorator(Session)


def console() -> Console:
    """Where tables and trees go: stdout, without colours when it is no terminal."""
    width = None if sys.stdout.isatty() else WIDTH_IN_PIPES
    return Console(width=width, soft_wrap=width is not None, highlight=False)


def stderr_console() -> Console:
    return Console(stderr=True, highlight=False)


@contextmanager
def connected(session: Session) -> Iterator[Client]:
    """A client of the mesh that the global options name."""
    with session.client() as client:
        yield client


def task_id_of(client: Client, text: str) -> str:
    """Accept a whole id, or the first or last digits of one recent task's."""
    digits = text.replace("-", "").lower()
    if len(digits) == 32:
        try:
            return id_text(id_bytes(digits))
        except ValueError as error:
            raise Failure(str(error)) from None
    if len(digits) < SHORT_ID_CHARS_MIN or digits.strip("0123456789abcdef"):
        raise Failure(f"{text!r} is not a task id; see the ids with: mesh tasks")
    recent = [task.task_id.hex() for task in client.list(limit=RECENT_TASKS_MAX)]
    found = [one for one in recent if one.endswith(digits) or one.startswith(digits)]
    if len(found) != 1:
        many = f"names {len(found)} recent tasks" if found else "is no recent task's id"
        raise Failure(f"{text!r} {many}; see the ids with: mesh tasks")
    return id_text(bytes.fromhex(found[0]))

"""Commands about tasks: submit, tasks, task show, watch, result, cancel."""

from __future__ import annotations

from typing import IO

import click
from quorumesh.v1 import tasks_pb2, values_pb2
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mesh.client import Client
from mesh.client_errors import DeadlineExceeded, TaskCancelled, TaskFailed
from mesh.ids import id_text
from mesh.specs import FILE_BYTES_MAX, data_of, parse_spec
from node.cli import draw
from node.cli.plain import dump, plain, plain_value
from node.cli.session import (
    Failure,
    Session,
    connected,
    console,
    json_option,
    pass_session,
    stderr_console,
    task_id_of,
)

Event = tasks_pb2.TaskEvent
_SUBTASK_ENDED = (Event.SUBTASK_SUCCEEDED, Event.SUBTASK_FAILED, Event.SUBTASK_CANCELLED)
STATES = ("running", "succeeded", "failed", "cancelled")


@click.command()
@click.argument("file", type=click.File("rb"))
@click.option("--detach", is_flag=True, help="Print the task's id and do not wait for it.")
@click.option("--id", "task_id", help="A UUIDv7 of your own: sending it twice is one task.")
@click.option("--timeout", "timeout_s", type=float, default=3_600.0, show_default=True,
              help="Seconds to wait for the result.")  # fmt: skip
@json_option
@pass_session
def submit(
    session: Session, file: IO[bytes], detach: bool, task_id: str | None, timeout_s: float,
    as_json: bool,
) -> None:  # fmt: skip
    """Submit a task from a YAML or JSON FILE ('-' is stdin), and wait for its result.

    \b
    Example:  mesh submit examples/tasks/echo.yaml
              cat task.json | mesh submit - --detach
    """
    spec = parse_spec(_read(file), source=getattr(file, "name", "stdin"))
    with connected(session) as client:
        try:
            name = client.submit(spec, task_id=task_id)
        except ValueError as error:
            raise Failure(str(error)) from None
        if detach:
            click.echo(dump({"task_id": name}) if as_json else name)
            return
        if not as_json:
            _follow(client, name, spec.name or "task", timeout_s)
        _print_ended(client.ended(name, timeout_s), as_json)


@click.command()
@click.option("--state", type=click.Choice(STATES), help="Only tasks in this state.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@json_option
@pass_session
def tasks(session: Session, state: str | None, limit: int, as_json: bool) -> None:
    """List tasks, newest first.

    \b
    Example:  mesh tasks --state running
    """
    with connected(session) as client:
        rows = client.list(state=state or "", limit=limit)
        if as_json:
            for row in rows:
                click.echo(dump(plain(row)))
        else:
            console().print(draw.task_table(list(rows)))


@click.group()
def task() -> None:
    """Look at one task."""


@task.command()
@click.argument("task_id", metavar="ID")
@click.option("--outputs", is_flag=True, help="Show what each subtask gave.")
@click.option("--story", is_flag=True, help="Show everything that happened to it, in order.")
@json_option
@pass_session
def show(session: Session, task_id: str, outputs: bool, story: bool, as_json: bool) -> None:
    """Draw a task as a tree: each subtask's state, who did it, its fence, why it waits.

    \b
    Example:  mesh task show 9f3a --story       (the last digits of an id will do)
    """
    with connected(session) as client:
        name = task_id_of(client, task_id)
        info = client.get(name, outputs=outputs or as_json)
        events = list(client.story(name)) if story else []
    if as_json:
        data = plain(info)
        if story:
            data["story"] = [plain(event) for event in events]
        click.echo(dump(data))
        return
    console().print(draw.task_tree(info, outputs=outputs))
    for event in events:
        console().print(draw.event_line(event))


@click.command()
@click.argument("task_id", metavar="[ID]", required=False)
@click.option("--after", "after_revision", type=click.IntRange(0), default=0,
              help="Begin after this revision of the ledger.")  # fmt: skip
@json_option
@pass_session
def watch(session: Session, task_id: str | None, after_revision: int, as_json: bool) -> None:
    """Print what happens to a task until it has ended, or to all tasks until Ctrl-C.

    \b
    Example:  mesh watch 9f3a
              mesh watch --json | jq .kind
    """
    with connected(session) as client:
        name = task_id_of(client, task_id) if task_id else None
        for event in client.watch(name, after_revision=after_revision):
            if as_json:
                click.echo(dump(plain(event)))
            else:
                console().print(draw.event_line(event, with_task=name is None))


@click.command()
@click.argument("task_id", metavar="ID")
@click.option("--timeout", "timeout_s", type=float, default=3_600.0, show_default=True,
              help="Seconds to wait.")  # fmt: skip
@json_option
@pass_session
def result(session: Session, task_id: str, timeout_s: float, as_json: bool) -> None:
    """Wait until a task has ended, and print its output.

    \b
    Example:  mesh result 9f3a --timeout 60
    """
    with connected(session) as client:
        name = task_id_of(client, task_id)
        _print_ended(client.ended(name, timeout_s), as_json)


@click.command()
@click.argument("task_id", metavar="ID")
@json_option
@pass_session
def cancel(session: Session, task_id: str, as_json: bool) -> None:
    """Cancel a task: what runs is stopped, what waits is dropped.

    \b
    Example:  mesh cancel 9f3a
    """
    with connected(session) as client:
        name = task_id_of(client, task_id)
        client.cancel(name)
    click.echo(dump({"task_id": name, "cancelled": True}) if as_json else f"cancelled {name}")


COMMANDS = (submit, tasks, task, watch, result, cancel)


def _read(file: IO[bytes]) -> str:
    name = getattr(file, "name", "stdin")
    data = file.read(FILE_BYTES_MAX + 1)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure(f"{name}: not UTF-8 text (byte {error.start})") from None


def _follow(client: Client, task_id: str, title: str, timeout_s: float) -> None:
    """Draw a bar on stderr until the task has ended. Raises DeadlineExceeded."""
    screen = stderr_console()
    screen.print(f"task {task_id}", style="dim")
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("{task.fields[now]}", style="dim"),
    )  # fmt: skip
    with Progress(*columns, console=screen, transient=True) as progress:
        total = client.get(task_id, subtasks=False).subtask_count
        bar = progress.add_task(title, total=total, now="")
        for event in client.watch(task_id, timeout_s=timeout_s):
            if event.kind == Event.SPAWNED:
                total = client.get(task_id, subtasks=False).subtask_count
                progress.update(bar, total=total)
            progress.update(
                bar,
                advance=int(event.kind in _SUBTASK_ENDED),
                now=draw.event_text(event) if event.subtask else "",
            )


def _print_ended(info: tasks_pb2.TaskInfo, as_json: bool) -> None:
    """Print the output of a task that has ended; raise when it has none."""
    name = id_text(info.task_id)
    if as_json:
        click.echo(dump(plain(info)))
    match info.state:
        case values_pb2.TASK_SUCCEEDED:
            if not as_json:
                _print_value(info.output)
        case values_pb2.TASK_FAILED:
            raise TaskFailed(name, info.failure.code, info.failure.message)
        case values_pb2.TASK_CANCELLED:
            raise TaskCancelled(name)
        case _:
            raise DeadlineExceeded(f"task {name} has not ended")


def _print_value(value: values_pb2.Value) -> None:
    try:
        data = data_of(value)
    except ValueError:
        data = value.data
    if isinstance(data, bytes):
        click.echo(data, nl=False)
    elif isinstance(data, str):
        click.echo(data)
    else:
        click.echo(draw.pretty(plain_value(value)))

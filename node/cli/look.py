"""Commands that look at the mesh: status, members, locks."""

from __future__ import annotations

import click

from node.cli import draw
from node.cli.plain import dump, plain
from node.cli.session import Session, connected, console, json_option, pass_session


@click.command()
@json_option
@pass_session
def status(session: Session, as_json: bool) -> None:
    """Show how a node sees the mesh: leader, members, workers, revision.

    \b
    Example:  mesh --address 10.0.0.2:7400 status
    """
    with connected(session) as client:
        reply = client.status()
    if as_json:
        click.echo(dump(plain(reply)))
        return
    for part in draw.status_tables(reply):
        console().print(part)


@click.command()
@json_option
@pass_session
def members(session: Session, as_json: bool) -> None:
    """List the nodes of the mesh.

    \b
    Example:  mesh members --json
    """
    with connected(session) as client:
        rows = client.members()
    if as_json:
        click.echo(dump([plain(row) for row in rows]))
    else:
        console().print(draw.member_table(rows))


@click.command()
@json_option
@pass_session
def locks(session: Session, as_json: bool) -> None:
    """List every claim that is held now: what, by whom, its fence, its lease.

    \b
    Example:  mesh locks
    """
    with connected(session) as client:
        rows = list(client.locks())
    if as_json:
        click.echo(dump([plain(row) for row in rows]))
    else:
        console().print(draw.lock_table(rows))


COMMANDS = (status, members, locks)

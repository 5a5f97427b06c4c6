"""The command `mesh`: the group that holds the families of commands."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli import dev, doctor, exits, look, nodes, tasks
from node.cli.session import MeshGroup, Session

HELP = f"""Run agents on several hosts, and give them tasks, through any node.

\b
Start:     mesh node start             (prints the line to paste on the next host)
Use:       mesh submit task.yaml       mesh tasks       mesh status
Try alone: mesh dev --agents my_agents

{exits.EXITS_HELP}
"""


@click.group(cls=MeshGroup, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--address", "addresses", multiple=True, metavar="HOST:PORT",
    help="A node to talk to; may be repeated. Default: those of the profile.",
)  # fmt: skip
@click.option(
    "--profile", type=click.Path(path_type=Path),
    help="Where the certificates and addresses are. Default: those of this host's node.",
)  # fmt: skip
@click.version_option(package_name="quorumesh", prog_name="mesh")
@click.pass_context
def cli(context: click.Context, addresses: tuple[str, ...], profile: Path | None) -> None:
    for address in addresses:
        if not address.rpartition(":")[2].isdigit():
            raise click.UsageError(f"--address {address}: give HOST:PORT, such as 127.0.0.1:7400")
    if not isinstance(context.obj, Session):
        context.obj = Session(addresses, profile)


for family in (nodes, tasks, look, doctor, dev):
    for command in family.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """The entry point of the console script."""
    cli(prog_name="mesh")


if __name__ == "__main__":
    main()

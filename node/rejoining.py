"""A damaged node comes back as a new one: `mesh node start --rejoin`.

It never comes back under its old identity: what it had voted for or acknowledged may be lost, and
it could vote twice. The mesh admits a new node in its place, on the word of the old certificate,
and takes the old one's vote through the log.

<data>/rejoining/        the new node's papers until they are all there; node.json comes last
<data>/state.damaged-1   the old state; and likewise its papers: moved aside, never removed
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from consensus.examining import Check, examine
from mesh.credentials import NodeCredentials
from mesh.errors import MeshError
from mesh.identity import (
    new_request,
)
from mesh.join import rejoin
from node.comparing import compare
from node.config import ConfigError, NodeConfig, listen_as, split_address
from node.folder import (
    MEMBERS_FILE,
    NODE_FILE,
    BootError,
    Identity,
    answering_dials,
    read_identity,
    read_members,
    sync_folder,
    write_identity,
)
from node.papers import admitted, kept_key, save_papers

REJOINING = "rejoining"
PAPERS = ("node", "client")


async def come_back_as_new(config: NodeConfig) -> None:
    """Give this folder a new identity, admitted in place of its own. It must be held.

    May be cut short at any point: the next start with --rejoin goes on as the same new node. Raises
    ConfigError when nothing is wrong with the folder, BootError, or a MeshError of joining.
    """
    data = config.data_dir
    if not (data / NODE_FILE).exists():
        raise ConfigError(f"--rejoin: no node has been in {data}; use --join TOKEN")
    old = read_identity(data / NODE_FILE)
    try:
        credentials = NodeCredentials.load(data / "node")
    except MeshError as error:
        raise BootError(
            f"this node's papers cannot be used ({error}): join anew, from an empty --data folder"
        ) from error
    await _refuse_sound(data, old, credentials)
    others = {**old.members, **read_members(data)}
    others.pop(old.node_id, None)
    if not others:
        raise BootError(f"no other node is known to {data}: join anew, from an empty --data folder")
    await _ask(config, old, credentials, tuple(others.values()))
    finish(data)


async def _refuse_sound(data: Path, old: Identity, credentials: NodeCredentials) -> None:
    """A sound node that came back as another one would cost the mesh a vote for nothing."""
    with tempfile.TemporaryDirectory(prefix="rejoin-", dir=data) as aside:
        try:
            examined = examine(data / "state", Path(aside))
            checks: list[Check] = list(examined.checks)
            if examined.is_sound and examined.copy is not None:
                peers = {**old.members, **examined.copy.members}
                peers.pop(old.node_id, None)
                checks += [check async for check in compare(examined.copy, peers, credentials)]
        except OSError as error:
            why = error.strerror or error
            raise BootError(f"{data} cannot be looked at: {why}") from error
    if all(check.ok is not False for check in checks):
        raise ConfigError(f"--rejoin: this folder is sound; start it without: {data}")


async def _ask(
    config: NodeConfig, old: Identity, credentials: NodeCredentials, addresses: tuple[str, ...]
) -> None:
    folder = config.data_dir / REJOINING
    key = kept_key(folder)
    async with answering_dials(listen_as(config.listen, old.address)) as port:
        address = _address(config, old, port)
        reply = await rejoin(
            credentials, addresses, csr=new_request(key), name=old.name, advertise=address
        )
    save_papers(folder, reply, key)
    new = admitted(reply, name=old.name, address=address, replaces=old.node_id)
    write_identity(folder / NODE_FILE, new)


def _address(config: NodeConfig, old: Identity, port: int) -> str:
    _, known_port = split_address(old.address, "advertise")
    if not config.advertise and port == known_port:
        return old.address
    return config.advertised(port)


def finish(data: Path) -> bool:
    """Put a new identity in force that the mesh has admitted. False: there is none."""
    folder = data / REJOINING
    if not (folder / NODE_FILE).exists():
        return False
    _move_aside(data / "state")
    (data / MEMBERS_FILE).unlink(missing_ok=True)
    for name in PAPERS:
        if (folder / name).exists():
            _move_aside(data / name)
            (folder / name).rename(data / name)
    (folder / NODE_FILE).replace(data / NODE_FILE)
    sync_folder(data)
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _move_aside(path: Path) -> None:
    if not path.exists():
        return
    number = 1
    while (aside := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    path.rename(aside)
    sync_folder(path.parent)

"""The files of a node's data folder, and how it is held. It decides nothing about them.

<data>/lock              held while a node runs here
<data>/node.json         who this node is; written last, so a folder that has it has all
<data>/members.json     the members that this node last knew; once there, so is the state
<data>/node/             its certificate and key, and the CA's
<data>/client/           the certificate that people on this host use
<data>/state/            the replicated state: journal, vote, ledger
<data>/worker.sock       where this host's workers connect
<data>/logs/             what workers print
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mesh.identity import write_atomic
from node.config import ConfigError, split_address

NODE_FILE = "node.json"
MEMBERS_FILE = "members.json"
NODE_BYTES_MAX = 1 << 20
FORMAT = 1


class BootError(Exception):
    """The node cannot start with this folder. One line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is, as its folder says."""

    mesh_id: str
    node_id: str
    name: str
    address: str  # what others dial, as the ledger knows it
    founded: bool  # it made the mesh
    voters: dict[str, str] = field(default_factory=dict)  # told at joining: id to address
    members: dict[str, str] = field(default_factory=dict)  # likewise


@contextlib.contextmanager
def holding(data_dir: Path) -> Iterator[None]:
    """Hold the folder; two nodes on one folder would vote twice. Raises BootError."""
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootError(f"{data_dir} cannot be used: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BootError(
                f"another node runs on {data_dir}; stop it, or start with another --data"
            ) from error
        yield
    finally:
        os.close(fd)


def read_identity(node_file: Path) -> Identity:
    """Who the node of a folder is. Raises BootError."""
    remedy = "restore it from a copy, or start with an empty --data folder and join again"
    try:
        data = node_file.read_bytes()[: NODE_BYTES_MAX + 1]
        content = json.loads(data)
        if content.pop("format") != FORMAT:
            raise BootError(f"{node_file} was written by another version of this program")
        identity = Identity(**content)
        _check_texts(identity)
        return identity
    except OSError as error:
        raise BootError(f"{node_file} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BootError(f"{node_file} is damaged: {remedy}") from error


def _check_texts(identity: Identity) -> None:
    """Raises TypeError for what `write_identity` does not write."""
    texts = [identity.mesh_id, identity.node_id, identity.name, identity.address]
    for told in (identity.voters, identity.members):
        texts += [*told.keys(), *told.values()]
    if not all(isinstance(text, str) for text in texts) or type(identity.founded) is not bool:
        raise TypeError("an identity is made of texts")


def write_identity(node_file: Path, identity: Identity) -> None:
    """Durable when it returns; a folder that has it has all."""
    content = {name: getattr(identity, name) for name in Identity.__slots__}
    text = json.dumps({"format": FORMAT, **content}, indent=2)
    write_atomic(node_file, text.encode() + b"\n")


def read_members(data_dir: Path) -> dict[str, str]:
    """The members that the node of this folder last knew, id to address; empty if that is not known."""
    try:
        content = json.loads((data_dir / MEMBERS_FILE).read_bytes()[: NODE_BYTES_MAX + 1])
        return {str(node_id): str(address) for node_id, address in content["members"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def write_members(data_dir: Path, members: Mapping[str, str]) -> None:
    """Note whom this node knows, for the day that its ledger cannot be read. Raises OSError."""
    text = json.dumps({"format": FORMAT, "members": dict(members)}, indent=2)
    write_atomic(data_dir / MEMBERS_FILE, text.encode() + b"\n")


def sync_folder(folder: Path) -> None:
    """Make the names in it durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.asynccontextmanager
async def answering_dials(listen: str) -> AsyncIterator[int]:
    """Listen inside the block without saying anything; gives the port.

    The node that admits us dials back to see if it can. Raises ConfigError.
    """
    host, port = split_address(listen, "listen")

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    try:
        server = await asyncio.start_server(hang_up, host, port)
    except OSError as error:
        raise ConfigError(f"--listen {listen}: {error.strerror or error}") from error
    async with server:
        yield int(server.sockets[0].getsockname()[1])

"""A node's data folder: made on the first start, checked on every later one.

<data>/lock              held while a node runs here
<data>/node.json         who this node is; written last, so a folder that has it has all
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
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mesh.credentials import ClientCredentials, NodeCredentials
from mesh.errors import MeshError
from mesh.identity import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    Principal,
    key_pem,
    new_key,
    new_request,
    node_id_of,
    read_key,
    read_pem,
    write_atomic,
)
from mesh.join import join
from mesh.profile import Profile, save_profile
from mesh.sealed import unseal
from mesh.tokens import decode
from node.config import ConfigError, NodeConfig, join_address, split_address
from node.joining import CLIENT_NAME_CHARS_MAX

NODE_FILE = "node.json"
NODE_BYTES_MAX = 1 << 20
FORMAT = 1

log = logging.getLogger("node.boot")


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


@dataclass(frozen=True, slots=True)
class Booted:
    """What a start found or made."""

    identity: Identity
    credentials: NodeCredentials
    authority: Authority
    listen: str  # with the port that is to be used
    is_first_start: bool


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


async def boot(config: NodeConfig, *, wall_ms: int) -> Booted:
    """Found a mesh, join one, or come back as who this folder says. The folder must be held.

    Raises BootError, ConfigError, or a MeshError of joining.
    """
    node_file = config.data_dir / NODE_FILE
    if node_file.exists():
        booted = _come_back(config, node_file)
        if config.join_token:
            log.info("already joined: the token is ignored", extra=_who(booted.identity))
    else:
        if (config.data_dir / "state").exists():
            raise BootError(f"{node_file} is missing beside a node's state: restore it from a copy")
        if config.join_token:
            booted = await _join(config, wall_ms)
        else:
            booted = _found(config)
        _write_identity(node_file, booted.identity)
    if config.writes_profile:
        _point_profile(config.data_dir, booted.identity)
    return booted


def _found(config: NodeConfig) -> Booted:
    port = _free_port(config.listen)
    address = config.advertised(port)
    mesh_id = f"m{secrets.token_hex(8)}"
    authority = Authority.create(mesh_id)
    authority.save(config.data_dir / "node")
    key = new_key()
    node_id = node_id_of(key.public_key())
    host, _ = split_address(address, "advertise")
    certificate = authority.issue(key.public_key(), Principal("node", node_id), hosts=[host])
    credentials = NodeCredentials(authority.certificate_pem, certificate, key_pem(key))
    credentials.save(config.data_dir / "node")
    client_key = new_key()
    client = Principal("client", config.display_name[:CLIENT_NAME_CHARS_MAX])
    client_certificate = authority.issue(client_key.public_key(), client)
    ClientCredentials(authority.certificate_pem, client_certificate, key_pem(client_key)).save(
        config.data_dir / "client"
    )
    identity = Identity(mesh_id, node_id, config.display_name, address, founded=True)
    return Booted(identity, credentials, authority, _with_port(config.listen, port), True)


async def _join(config: NodeConfig, wall_ms: int) -> Booted:
    token = decode(config.join_token, now_wall_ms=wall_ms)
    folder = config.data_dir / "node"
    # The key is kept before it is used: a start that was cut short asks for the same node again.
    if (folder / KEY_FILE).exists():
        key = read_key(read_pem(folder / KEY_FILE), str(folder / KEY_FILE))
    else:
        key = new_key()
        write_atomic(folder / KEY_FILE, key_pem(key))
    async with _answering_dials(config.listen) as port:
        address = config.advertised(port)
        reply = await join(token, csr=new_request(key), name=config.display_name, advertise=address)
    authority = Authority.from_parts(reply.ca_certificate, unseal(reply.sealed_ca_key, key))
    authority.save(folder)
    credentials = NodeCredentials(reply.ca_certificate, reply.certificate, key_pem(key))
    credentials.save(folder)
    ClientCredentials(reply.ca_certificate, reply.client_certificate, key_pem(key)).save(
        config.data_dir / "client"
    )
    identity = Identity(
        mesh_id=reply.mesh_id,
        node_id=reply.node_id,
        name=config.display_name,
        address=address,
        founded=False,
        voters={member.node_id: member.address for member in reply.members if member.voter},
        members={member.node_id: member.address for member in reply.members},
    )
    return Booted(identity, credentials, authority, _with_port(config.listen, port), True)


def _come_back(config: NodeConfig, node_file: Path) -> Booted:
    identity = read_identity(node_file)
    try:
        credentials = NodeCredentials.load(config.data_dir / "node")
        authority = Authority.load(config.data_dir / "node")
    except MeshError as error:
        raise BootError(f"this node's papers cannot be used: {error}") from error
    if credentials.node_id != identity.node_id:
        raise BootError(f"{node_file} and the certificate beside it name different nodes")
    host, port = split_address(config.listen, "listen")
    _, known_port = split_address(identity.address, "advertise")
    listen = config.listen if port else join_address(host, known_port)
    asked = config.advertised(port or known_port)
    if asked != identity.address:
        log.warning(
            "the mesh goes on dialling this node at %s, not at %s: start it with --advertise %s, or "
            "let it join anew from an empty --data folder",
            identity.address,
            asked,
            identity.address,
        )
    return Booted(identity, credentials, authority, listen, False)


def read_identity(node_file: Path) -> Identity:
    """Who the node of a folder is. Raises BootError."""
    remedy = "restore it from a copy, or start with an empty --data folder and join again"
    try:
        data = node_file.read_bytes()[: NODE_BYTES_MAX + 1]
        content = json.loads(data)
        if content.pop("format") != FORMAT:
            raise BootError(f"{node_file} was written by another version of this program")
        return Identity(**content)
    except OSError as error:
        raise BootError(f"{node_file} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BootError(f"{node_file} is damaged: {remedy}") from error


def _write_identity(node_file: Path, identity: Identity) -> None:
    content = {name: getattr(identity, name) for name in Identity.__slots__}
    text = json.dumps({"format": FORMAT, **content}, indent=2)
    write_atomic(node_file, text.encode() + b"\n")


def _point_profile(data_dir: Path, identity: Identity) -> None:
    client = data_dir / "client"
    others = [at for at in identity.members.values() if at != identity.address]
    profile = Profile(
        addresses=(identity.address, *others),
        ca=client / "ca.pem",
        certificate=client / CERTIFICATE_FILE,
        key=client / KEY_FILE,
    )
    try:
        save_profile(profile)
    except MeshError as error:
        log.warning("no profile written; commands need --profile", extra={"why": str(error)})


@contextlib.asynccontextmanager
async def _answering_dials(listen: str) -> AsyncIterator[int]:
    """Listen without saying anything: the node that admits us dials back to see if it can."""
    host, port = split_address(listen, "listen")

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    try:
        server = await asyncio.start_server(hang_up, host, port)
    except OSError as error:
        raise ConfigError(f"--listen {listen}: {error.strerror or error}") from error
    async with server:
        yield int(server.sockets[0].getsockname()[1])


def _free_port(listen: str) -> int:
    """The port to listen on; a free one where 0 was asked for."""
    host, port = split_address(listen, "listen")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--listen {listen}: {error.strerror or error}") from error
        return int(probe.getsockname()[1])


def _with_port(listen: str, port: int) -> str:
    return join_address(split_address(listen, "listen")[0], port)


def _who(identity: Identity) -> dict[str, str]:
    return {"node": identity.node_id, "mesh": identity.mesh_id}

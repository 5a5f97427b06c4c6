"""Who a node is: made on its first start, read from its folder on every later one.

The files are those of `folder.py`; how a damaged node becomes another one is in `rejoining.py`.
"""

from __future__ import annotations

import logging
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from consensus.errors import Damaged
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
)
from mesh.join import join
from mesh.profile import Profile, save_profile
from mesh.tokens import decode
from node import rejoining
from node.config import ConfigError, NodeConfig, join_address, listen_as, split_address
from node.folder import (
    MEMBERS_FILE,
    NODE_FILE,
    BootError,
    Identity,
    answering_dials,
    read_identity,
    write_identity,
)
from node.joining import CLIENT_NAME_CHARS_MAX
from node.papers import admitted, kept_key, save_papers

log = logging.getLogger("node.boot")


@dataclass(frozen=True, slots=True)
class Booted:
    """What a start found or made."""

    identity: Identity
    credentials: NodeCredentials
    authority: Authority
    listen: str  # with the port that is to be used
    is_first_start: bool


async def boot(config: NodeConfig, *, wall_ms: int) -> Booted:
    """Found a mesh, join one, or come back as who this folder says. The folder must be held.

    Raises BootError, ConfigError, Damaged, or a MeshError of joining.
    """
    node_file = config.data_dir / NODE_FILE
    if not rejoining.finish(config.data_dir) and config.rejoin:
        await rejoining.come_back_as_new(config)
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
        write_identity(node_file, booted.identity)
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
    key = kept_key(config.data_dir)
    async with answering_dials(config.listen) as port:
        address = config.advertised(port)
        reply = await join(token, csr=new_request(key), name=config.display_name, advertise=address)
    authority, credentials = save_papers(config.data_dir, reply, key)
    identity = admitted(reply, name=config.display_name, address=address)
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
    if (config.data_dir / MEMBERS_FILE).exists() and not (config.data_dir / "state").exists():
        raise Damaged(f"{config.data_dir / 'state'} is gone: the state is lost")
    listen = listen_as(config.listen, identity.address)
    asked = config.advertised(split_address(listen, "listen")[1])
    if asked != identity.address:
        log.warning(
            "the mesh goes on dialling this node at %s, not at %s: start it with --advertise %s, or "
            "let it join anew from an empty --data folder",
            identity.address,
            asked,
            identity.address,
        )
    return Booted(identity, credentials, authority, listen, False)


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

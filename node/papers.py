"""A node's papers as a mesh gives them: for one that joins, and for one that comes back as another."""

from __future__ import annotations

from pathlib import Path

from quorumesh.v1.mesh_pb2 import JoinReply

from mesh.credentials import ClientCredentials, NodeCredentials
from mesh.identity import (
    KEY_FILE,
    Authority,
    PrivateKey,
    key_pem,
    new_key,
    read_key,
    read_pem,
    write_atomic,
)
from mesh.sealed import unseal
from node.folder import Identity


def kept_key(folder: Path) -> PrivateKey:
    """The key of the node to be; made and kept before it is used.

    So a start that was cut short asks for the same node again.
    """
    path = folder / "node" / KEY_FILE
    if path.exists():
        return read_key(read_pem(path), str(path))
    key = new_key()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, key_pem(key))
    return key


def save_papers(
    folder: Path, reply: JoinReply, key: PrivateKey
) -> tuple[Authority, NodeCredentials]:
    """Write what an admitted node is given into node/ and client/ below the folder."""
    authority = Authority.from_parts(reply.ca_certificate, unseal(reply.sealed_ca_key, key))
    authority.save(folder / "node")
    credentials = NodeCredentials(reply.ca_certificate, reply.certificate, key_pem(key))
    credentials.save(folder / "node")
    client = ClientCredentials(reply.ca_certificate, reply.client_certificate, key_pem(key))
    client.save(folder / "client")
    return authority, credentials


def admitted(reply: JoinReply, *, name: str, address: str, replaces: str = "") -> Identity:
    """Who the node is from now on; it does not ask the one that it replaces."""
    members = [member for member in reply.members if member.node_id != replaces]
    return Identity(
        mesh_id=reply.mesh_id,
        node_id=reply.node_id,
        name=name,
        address=address,
        founded=False,
        voters={member.node_id: member.address for member in members if member.voter},
        members={member.node_id: member.address for member in members},
    )

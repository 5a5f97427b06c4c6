"""The mesh's side of joining: tokens are made and nodes admitted here, on any voter.

What decides is the ledger: a token is good once, whichever nodes it is shown to.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quorumesh.v1.ledger_pb2 import AddToken, Admit, Command
from quorumesh.v1.mesh_pb2 import (
    CreateTokenReply,
    CreateTokenRequest,
    JoinReply,
    JoinRequest,
    Member,
)

from consensus.ledger import APPLY_VERSION
from mesh.errors import IdentityError
from mesh.identity import Authority, Principal, node_id_of, requested_key
from mesh.sealed import seal
from mesh.tokens import TTL_MS_MAX, Token, encode, is_address, new_token, secret_digest
from node.api.errors import Refusal
from node.api.guard import caller
from node.api.proposing import Context, Proposer
from node.config import NAME_CHARS_MAX, ConfigError, split_address

DIAL_BACK_MS = 2_000
CLIENT_NAME_CHARS_MAX = 48


@dataclass(frozen=True, slots=True)
class Joining:
    """Makes tokens and admits nodes for one mesh. `members` gives those that the ledger knows."""

    mesh_id: str
    address: str
    authority: Authority
    proposer: Proposer
    members: Callable[[], Sequence[Member]]
    wall_ms: Callable[[], int]

    async def create_token(
        self, request: CreateTokenRequest, context: Context | None
    ) -> CreateTokenReply:
        """A one-use token, usable on any node once this returns."""
        ttl_ms = request.ttl_ms or TTL_MS_MAX
        if ttl_ms > TTL_MS_MAX:
            raise Refusal("INVALID", f"ttl_ms {ttl_ms}: at most {TTL_MS_MAX:,} (1 h)")
        others = [member.address for member in self.members() if member.address != self.address]
        token = new_token(
            self.authority,
            [self.address, *(other for other in others if is_address(other))],
            ttl_ms=ttl_ms,
            now_wall_ms=self.wall_ms(),
        )
        command = AddToken(
            token_id=token.token_id,
            secret_digest=token.secret_digest,
            ttl_ms=ttl_ms,
            principal=caller.get(),
        )
        await self.proposer.propose_one(Command(add_token=command), context)
        return _token_reply(token)

    async def join(self, request: JoinRequest, context: Context) -> JoinReply:
        """Admit the caller as a node. The same request again gives the same node its papers again.

        With `replaces` the caller is a member whose state is damaged, and comes back as another one.
        """
        _check_caller(request)
        try:
            key = requested_key(request.csr)
        except IdentityError as error:
            raise Refusal("INVALID", str(error)) from error
        if len(request.name) > NAME_CHARS_MAX:
            raise Refusal("INVALID", f"name: at most {NAME_CHARS_MAX} characters")
        node_id = node_id_of(key)
        client = _client_of(request.name or node_id)
        await dial_back(request.address)
        admit = Admit(
            token_id=request.token_id,
            secret_digest=secret_digest(request.secret) if request.token_id else b"",
            node_id=node_id,
            name=request.name,
            address=request.address,
            apply_version_max=APPLY_VERSION,
            replaces=request.replaces,
        )
        await self.proposer.propose_one(Command(admit=admit), context)
        host, _ = split_address(request.address, "advertise")
        return JoinReply(
            mesh_id=self.mesh_id,
            node_id=node_id,
            certificate=self.authority.issue(key, Principal("node", node_id), hosts=[host]),
            ca_certificate=self.authority.certificate_pem,
            sealed_ca_key=seal(self.authority.key_der, key),
            members=self.members(),
            client_certificate=self.authority.issue(key, client),
        )


def _check_caller(request: JoinRequest) -> None:
    """Only a node itself may say that another comes in its place; only a token's host its token."""
    who = caller.get()
    if request.replaces:
        if who != f"node:{request.replaces}":
            raise Refusal("PERMISSION_DENIED", "a node can only be replaced by itself")
        if request.token_id or request.secret:
            raise Refusal("INVALID", "a node comes by a token or in place of another one")
    elif who != f"join:{request.token_id.hex()}":
        raise Refusal("PERMISSION_DENIED", "the certificate belongs to another token")


def _client_of(name: str) -> Principal:
    """Whom the people of the new host are to the mesh. Asked before anything is written."""
    try:
        return Principal.parse(f"client:{name[:CLIENT_NAME_CHARS_MAX]}")
    except IdentityError as error:
        raise Refusal(
            "INVALID", f"name {name!r}: letters, digits, '.', '_', '@' and '-' only"
        ) from error


async def dial_back(address: str) -> None:
    """Refuse an address that this node cannot reach: peers could not either."""
    if not is_address(address):
        raise Refusal("INVALID", f"{address!r} is not HOST:PORT; start with --advertise HOST:PORT")
    try:
        host, port = split_address(address, "advertise")
    except ConfigError as error:
        raise Refusal("INVALID", str(error)) from error
    try:
        async with asyncio.timeout(DIAL_BACK_MS / 1_000):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError, UnicodeError) as error:  # the last: no name of a host
        why = str(error) or f"no answer within {DIAL_BACK_MS / 1_000:g} s"
        raise Refusal(
            "INVALID",
            f"this node cannot reach {address} ({why}); start the joining node with --advertise "
            "HOST:PORT that its peers can dial",
        ) from error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _token_reply(token: Token) -> CreateTokenReply:
    return CreateTokenReply(token=encode(token), expires_wall_ms=token.expires_wall_ms)

"""How a host becomes a node, with a token or in place of a damaged one: the client's side of joining."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import grpc
from cryptography.hazmat.primitives import serialization
from quorumesh.v1.mesh_pb2 import JoinReply, JoinRequest
from quorumesh.v1.mesh_pb2_grpc import MeshStub

from mesh.client_errors import DeadlineExceeded, MeshError, Refused, Unreachable, error_of
from mesh.credentials import CHANNEL_TLS_OPTIONS, NodeCredentials
from mesh.errors import (
    IdentityError,
    JoinFailed,
    JoinRefused,
    TokenExpired,
    TokenUnknown,
    TokenUsed,
)
from mesh.identity import UNREADABLE, fingerprint, principal_in, read_certificate, requested_key
from mesh.tokens import Token

ATTEMPT_MS = 10_000  # for one address
TOTAL_MS = 45_000
RETRY_MS = 500
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.use_local_subchannel_pool", 1),
)


async def join(
    token: Token,
    *,
    csr: bytes,
    name: str,
    advertise: str,
    attempt_ms: int = ATTEMPT_MS,
    total_ms: int = TOTAL_MS,
) -> JoinReply:
    """Ask the mesh, through any address of the token, to admit this host as a node.

    Tries the addresses in turn; as long as one answers that it cannot write now (an election is
    on), tries again. The same request may be sent again after an unknown outcome. Raises
    JoinFailed (nothing reached), TokenUsed, TokenExpired, TokenUnknown or JoinRefused.
    """
    requested_key(csr)  # a bug here would cost the token
    request = JoinRequest(
        token_id=token.token_id, secret=token.secret, csr=csr, name=name, address=advertise
    )
    credentials = grpc.ssl_channel_credentials(token.ca_pem, token.key_pem, token.certificate_pem)

    def check(reply: JoinReply, address: str) -> None:
        _check_reply(token.ca_fingerprint, csr, reply, address)

    return await _ask_any(
        token.addresses,
        lambda address: _ask(credentials, address, request, attempt_ms),
        check,
        total_ms=total_ms,
    )


async def rejoin(
    credentials: NodeCredentials,
    addresses: Sequence[str],
    *,
    csr: bytes,
    name: str,
    advertise: str,
    total_ms: int = TOTAL_MS,
) -> JoinReply:
    """Ask the mesh to admit a new node in place of the one whose certificate this is.

    The old one loses its vote and its place for good. The same request may be sent again. Raises
    JoinFailed (nothing reached) or JoinRefused.
    """
    request = JoinRequest(csr=csr, name=name, address=advertise, replaces=credentials.node_id)
    authority = read_certificate(credentials.ca_pem, "the CA certificate here")
    known = fingerprint(authority.public_bytes(serialization.Encoding.DER))

    def check(reply: JoinReply, address: str) -> None:
        _check_reply(known, csr, reply, address)

    return await _ask_any(
        addresses,
        lambda address: _ask(credentials.channel_credentials(), address, request, ATTEMPT_MS),
        check,
        total_ms=total_ms,
    )


async def _ask_any(
    addresses: Sequence[str],
    ask: Callable[[str], Awaitable[JoinReply]],
    check: Callable[[JoinReply, str], None],
    *,
    total_ms: int,
) -> JoinReply:
    attempts: dict[str, str] = {}  # at most one per address
    try:
        async with asyncio.timeout(total_ms / 1000):
            while True:
                waiting_helps = False
                for address in addresses:
                    try:
                        reply = await ask(address)
                    except Unreachable as error:
                        attempts[address] = str(error)
                        # Only a node that answered says after how long another try makes sense.
                        waiting_helps = waiting_helps or error.retry_ms is not None
                    except DeadlineExceeded as error:
                        attempts[address] = str(error)
                    except Refused as error:
                        raise _refusal(error) from error
                    else:
                        check(reply, address)
                        return reply
                if not waiting_helps:
                    raise JoinFailed(attempts)
                await asyncio.sleep(RETRY_MS / 1000)
    except TimeoutError:
        late = {one: f"no answer within {total_ms} ms in all" for one in addresses}
        raise JoinFailed({**late, **attempts}) from None


async def _ask(
    credentials: grpc.ChannelCredentials, address: str, request: JoinRequest, attempt_ms: int
) -> JoinReply:
    options = (*_OPTIONS, *CHANNEL_TLS_OPTIONS)
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        try:
            return await MeshStub(channel).Join(request, timeout=attempt_ms / 1000)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceeded(f"no answer within {attempt_ms} ms") from error
            raise error_of(error) from error


def _refusal(error: Refused) -> MeshError:
    match error.reason:
        case "TOKEN_USED":
            return TokenUsed(
                "another host has joined with this token; make a new one with mesh join-token"
            )
        case "TOKEN_EXPIRED":
            return TokenExpired("the token has expired; make a new one with mesh join-token")
        case "TOKEN_UNKNOWN":
            return TokenUnknown(
                "the mesh does not know this token; make a new one with mesh join-token"
            )
        case _:
            return JoinRefused(error.reason, error.message)


def _check_reply(ca_fingerprint: bytes, csr: bytes, reply: JoinReply, address: str) -> None:
    """Take only certificates of the mesh that was meant, for the key that was sent."""
    try:
        authority = read_certificate(reply.ca_certificate, "the CA certificate in the reply")
        der = authority.public_bytes(serialization.Encoding.DER)
        if fingerprint(der) != ca_fingerprint:
            raise IdentityError("the CA certificate in the reply is not the token's")
        pairs = ((reply.certificate, "node"), (reply.client_certificate, "client"))
        for pem, kind in pairs:
            if kind == "client" and not pem:
                continue
            certificate = read_certificate(pem, f"the {kind} certificate in the reply")
            certificate.verify_directly_issued_by(authority)
            if certificate.public_key() != requested_key(csr):
                raise IdentityError(f"the {kind} certificate in the reply is for another key")
            principal = principal_in(certificate)
            if principal.kind != kind or (kind == "node" and principal.name != reply.node_id):
                raise IdentityError(f"the {kind} certificate in the reply is {principal}'s")
    except (IdentityError, *UNREADABLE) as error:
        raise JoinFailed({address: f"its answer cannot be trusted: {error}"}) from error

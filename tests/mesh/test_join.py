"""Joining, the client's side: against a server that answers as a node may."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from quorumesh.v1.mesh_pb2 import JoinReply, JoinRequest
from quorumesh.v1.mesh_pb2_grpc import MeshServicer, add_MeshServicer_to_server

from mesh.credentials import NodeCredentials, principal_of
from mesh.errors import JoinFailed, JoinRefused, TokenExpired, TokenUnknown, TokenUsed
from mesh.identity import (
    Authority,
    Principal,
    key_pem,
    new_key,
    new_request,
    node_id_of,
    requested_key,
)
from mesh.join import join
from mesh.sealed import seal, unseal
from mesh.tokens import Token, new_token

# Nothing listens on port 1 of loopback.
CLOSED = "127.0.0.1:1"


def refused(code: int, reason: str, *, retry_ms: int = 0) -> status_pb2.Status:
    details = [any_pb2.Any()]
    details[0].Pack(error_details_pb2.ErrorInfo(reason=reason, domain="quorumesh"))
    if retry_ms:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(retry_ms)
        details.append(any_pb2.Any())
        details[1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(code=code, message=f"told: {reason}", details=details)


@dataclass
class Door(MeshServicer):  # type: ignore[misc]
    """The Join of a node: each answer in turn, the last one for ever."""

    authority: Authority
    answers: list[Any] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)

    async def Join(self, request: JoinRequest, context: Any) -> JoinReply:
        self.callers.append(str(principal_of(context.auth_context())))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, status_pb2.Status):
            await context.abort_with_status(rpc_status.to_status(answer))
        reply: JoinReply = answer(self.authority, request)
        return reply


def admit(authority: Authority, request: JoinRequest) -> JoinReply:
    key = requested_key(request.csr)
    node_id = node_id_of(key)
    return JoinReply(
        mesh_id="m",
        node_id=node_id,
        certificate=authority.issue(key, Principal("node", node_id)),
        ca_certificate=authority.certificate_pem,
        sealed_ca_key=seal(authority.key_der, key),
        client_certificate=authority.issue(key, Principal("client", request.name)),
    )


def admit_another_key(authority: Authority, request: JoinRequest) -> JoinReply:
    return admit(authority, JoinRequest(csr=new_request(new_key()), name=request.name))


def admit_by_another_mesh(authority: Authority, request: JoinRequest) -> JoinReply:
    return admit(Authority.create("other"), request)


def admit_as_client(authority: Authority, request: JoinRequest) -> JoinReply:
    reply = admit(authority, request)
    reply.certificate = reply.client_certificate
    return reply


@asynccontextmanager
async def serving(door: Door, authority: Authority) -> AsyncIterator[str]:
    key = new_key()
    certificate = authority.issue(key.public_key(), Principal("node", "n1"))
    credentials = NodeCredentials(authority.certificate_pem, certificate, key_pem(key))
    server = grpc.aio.server()
    add_MeshServicer_to_server(door, server)
    port = server.add_secure_port("127.0.0.1:0", credentials.server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


def token_of(authority: Authority, *addresses: str) -> Token:
    now_wall_ms = int(time.time() * 1_000)
    return new_token(authority, addresses, ttl_ms=60_000, now_wall_ms=now_wall_ms)


async def ask(answers: list[Any]) -> JoinReply:
    """Join through a closed address first, then a door that gives these answers."""
    authority = Authority.create("m")
    door = Door(authority, answers)
    async with serving(door, authority) as address:
        token = token_of(authority, CLOSED, address)
        return await join(token, csr=new_request(new_key()), name="host", advertise="h:1")


async def test_a_host_joins_through_the_second_address_and_gets_the_ca_key() -> None:
    authority, key = Authority.create("m"), new_key()
    door = Door(authority, [admit])
    async with serving(door, authority) as address:
        token = token_of(authority, CLOSED, address)

        reply = await join(token, csr=new_request(key), name="host", advertise="h:1")

    held = Authority.from_parts(reply.ca_certificate, unseal(reply.sealed_ca_key, key))
    assert held.fingerprint == authority.fingerprint
    assert door.callers == [f"join:{token.token_id.hex()}"]


async def test_every_address_that_fails_is_named_with_its_error() -> None:
    token = token_of(Authority.create("m"), CLOSED, "localhost:2")

    with pytest.raises(JoinFailed) as caught:
        await join(token, csr=new_request(new_key()), name="host", advertise="h:1")

    assert set(caught.value.attempts) == {CLOSED, "localhost:2"}
    assert CLOSED in str(caught.value) and "localhost:2" in str(caught.value)


async def test_an_address_of_another_mesh_gets_nothing() -> None:
    other = Authority.create("other")
    door = Door(other, [admit])
    async with serving(door, other) as address:
        token = token_of(Authority.create("m"), address)

        with pytest.raises(JoinFailed, match=address):
            await join(token, csr=new_request(new_key()), name="host", advertise="h:1")

    assert door.callers == []


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("TOKEN_USED", TokenUsed),
        ("TOKEN_EXPIRED", TokenExpired),
        ("TOKEN_UNKNOWN", TokenUnknown),
        ("VOTERS_FULL", JoinRefused),
    ],
)
async def test_refusals_are_typed(reason: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await ask([refused(code_pb2.FAILED_PRECONDITION, reason)])


async def test_an_election_is_waited_for() -> None:
    unavailable = refused(code_pb2.UNAVAILABLE, "UNAVAILABLE", retry_ms=100)

    reply = await ask([unavailable, admit])

    assert reply.mesh_id == "m"


@pytest.mark.parametrize("answer", [admit_another_key, admit_by_another_mesh, admit_as_client])
async def test_a_reply_that_does_not_fit_the_token_is_not_trusted(answer: Any) -> None:
    with pytest.raises(JoinFailed, match="cannot be trusted"):
        await ask([answer])

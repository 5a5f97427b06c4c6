"""Who may call what, by certificate; and the one place where services' errors become statuses.

Every call comes through here. A service behind it can rely on its caller's role.
"""

from __future__ import annotations

import inspect
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc

from consensus.errors import ConsensusError, Damaged
from consensus.scrub import is_damage
from node.api.errors import Refusal, abort

LOCAL = "local"  # on the Unix socket: processes of this node's own user
NODE, CLIENT, JOIN, NOBODY = "node", "client", "join", ""

_PEOPLE = frozenset({NODE, CLIENT})
_ROLES: dict[str, frozenset[str]] = {
    "/quorumesh.v1.Tasks/": _PEOPLE,
    "/quorumesh.v1.Locks/": _PEOPLE,
    "/quorumesh.v1.Mesh/": _PEOPLE,
    "/quorumesh.v1.Mesh/Join": frozenset({JOIN, NODE}),
    "/quorumesh.v1.Mesh/Entries": frozenset({NODE}),
    "/quorumesh.v1.Peer/": frozenset({NODE}),
    "/quorumesh.v1.Workers/": frozenset({LOCAL}),
    "/grpc.health.v1.Health/": frozenset({NODE, CLIENT, JOIN, LOCAL}),
    "/grpc.reflection.v1alpha.ServerReflection/": frozenset({NODE, CLIENT, JOIN}),
}
_NEVER: frozenset[str] = frozenset()
# What a removed node may still ask for, since each decides for itself: the link takes it only to
# tell it; a node that came back as another one gets the new one's papers again.
_ALSO_REMOVED = frozenset({"/quorumesh.v1.Peer/Link", "/quorumesh.v1.Mesh/Join"})

# The classes take parameters in their stubs only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Admit: TypeAlias = Callable[[Context], Awaitable[None]]  # ends the call of who may not make it
log = logging.getLogger("node.guard")
caller: ContextVar[str] = ContextVar("caller", default="")  # the principal of the call being served


def principal_of(context: Context) -> str:
    """Who calls: `node:…`, `client:…`, `join:…`, `local:worker`, or empty for nobody."""
    names = list((context.auth_context() or {}).get("x509_common_name") or ())
    if names:
        return names[0].decode("utf-8", "replace")
    return "local:worker" if context.peer().startswith("unix:") else NOBODY


def roles_for(method: str) -> frozenset[str]:
    """The roles that may call a method; none for a method that is not known."""
    service = method[: method.rfind("/") + 1]
    return _ROLES.get(method) or _ROLES.get(service) or _NEVER


class Guard(grpc.aio.ServerInterceptor):
    """Refuses callers whose certificate does not carry the role, with PERMISSION_DENIED.

    Those of nodes that were removed from the mesh too, though their certificates are still good:
    `has_left` is asked with the id of a node, at the beginning of each call.
    """

    def __init__(self, has_left: Callable[[str], bool]) -> None:
        self._has_left = has_left

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)

        async def admit(context: Context) -> None:
            await _admit(method, context, self._has_left)

        return _guarded(handler, admit)


async def _admit(method: str, context: Context, has_left: Callable[[str], bool]) -> None:
    principal = principal_of(context)
    role, _, name = principal.partition(":")
    if role == NODE and method not in _ALSO_REMOVED and has_left(name):
        await abort(context, Refusal("PERMISSION_DENIED", f"{name} was removed from the mesh"))
    if role not in roles_for(method):
        log.warning("call refused", extra={"method": method, "principal": principal or "none"})
        who = principal or "a caller without a certificate of this mesh"
        await abort(context, Refusal("PERMISSION_DENIED", f"{who} may not call {method}"))
    caller.set(principal)


def _guarded(handler: Handler, admit: Admit) -> Handler:
    codecs = {
        "request_deserializer": handler.request_deserializer,
        "response_serializer": _serializer(handler.response_serializer),
    }
    if handler.unary_unary is not None:
        unary = _answering(handler.unary_unary, admit)
        return grpc.unary_unary_rpc_method_handler(unary, **codecs)
    if handler.stream_unary is not None:
        unary = _answering(handler.stream_unary, admit)
        return grpc.stream_unary_rpc_method_handler(unary, **codecs)
    if handler.unary_stream is not None:
        stream = _streaming(handler.unary_stream, admit)
        return grpc.unary_stream_rpc_method_handler(stream, **codecs)
    assert handler.stream_stream is not None
    stream = _streaming(handler.stream_stream, admit)
    return grpc.stream_stream_rpc_method_handler(stream, **codecs)


def _serializer(serialize: Callable[[Any], bytes] | None) -> Callable[[Any], bytes]:
    # A service may have made the bytes of a large reply already, off the loop.
    def bytes_of(reply: Any) -> bytes:
        return reply if isinstance(reply, bytes) or serialize is None else serialize(reply)

    return bytes_of


def _answering(behavior: Callable[..., Awaitable[Any]], admit: Admit) -> Callable[..., Any]:
    async def answer(request: Any, context: Context) -> Any:
        try:
            await admit(context)
            reply = behavior(request, context)
            return await reply if inspect.isawaitable(reply) else reply
        except (Refusal, ConsensusError) as error:
            await abort(context, error)
        except sqlite3.DatabaseError as error:
            # Rows that cannot be read are never answered with others, nor taken for a bug.
            if not is_damage(error):
                raise
            await abort(context, Damaged(f"the ledger of this node is damaged: {error}"))

    return answer


def _streaming(behavior: Callable[..., Any], admit: Admit) -> Callable[..., Any]:
    # A coroutine that writes, whatever shape the behavior has: so the check can come first and
    # generators are closed before the call ends.
    async def stream(requests: Any, context: Context) -> None:
        try:
            await admit(context)
            if inspect.isasyncgenfunction(behavior):
                await _write_all(behavior(requests, context), context)
            else:
                await behavior(requests, context)
        except (Refusal, ConsensusError) as error:
            await abort(context, error)
        except sqlite3.DatabaseError as error:
            # Rows that cannot be read are never answered with others, nor taken for a bug.
            if not is_damage(error):
                raise
            await abort(context, Damaged(f"the ledger of this node is damaged: {error}"))

    return stream


async def _write_all(replies: AsyncIterator[Any], context: Context) -> None:
    try:
        async for reply in replies:
            await context.write(reply)
    finally:
        close = getattr(replies, "aclose", None)
        if close is not None:
            await close()

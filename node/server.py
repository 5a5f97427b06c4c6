"""The gRPC server of a node: one port with mutual TLS for peers and clients, one Unix socket for
the workers of this host. Knows which services there are, not what they do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection
from quorumesh.v1 import (
    locks_pb2,
    locks_pb2_grpc,
    mesh_pb2,
    mesh_pb2_grpc,
    peer_pb2_grpc,
    tasks_pb2,
    tasks_pb2_grpc,
    workers_pb2,
    workers_pb2_grpc,
)

from mesh.credentials import NodeCredentials
from mesh.link import SERVER_OPTIONS
from node.api.guard import Guard
from node.config import ConfigError

REQUEST_BYTES_MAX = 8 << 20
REPLY_BYTES_MAX = 64 << 20
STREAMS_MAX = 4_096  # on one connection
SOCKET_CHARS_MAX = 100  # the kernel takes 107
GRACE_S = 1.0

_SERVICES = ("Tasks", "Locks", "Mesh")
_OPTIONS: tuple[tuple[str, int], ...] = (
    *(option for option in SERVER_OPTIONS if "message_length" not in option[0]),
    ("grpc.max_receive_message_length", REQUEST_BYTES_MAX),
    ("grpc.max_send_message_length", REPLY_BYTES_MAX),
    ("grpc.max_concurrent_streams", STREAMS_MAX),
    # Two nodes on one port would take turns in answering.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Servicers:
    """What is served, and who looks at the callers first."""

    guard: Guard
    tasks: tasks_pb2_grpc.TasksServicer
    locks: locks_pb2_grpc.LocksServicer
    mesh: mesh_pb2_grpc.MeshServicer
    peer: peer_pb2_grpc.PeerServicer
    workers: workers_pb2_grpc.WorkersServicer


class Health:
    """The standard health service: serving while this node can write, per service and as a whole."""

    def __init__(self) -> None:
        self.servicer = health_aio.HealthServicer()

    async def tell(self, *, is_writable: bool) -> None:
        """Reads go on without a leader, so only the whole is told as not serving then."""
        response = health_pb2.HealthCheckResponse
        whole = response.SERVING if is_writable else response.NOT_SERVING
        await self.servicer.set("", whole)
        for name in _SERVICES:
            await self.servicer.set(f"quorumesh.v1.{name}", response.SERVING)

    async def leave(self) -> None:
        await self.servicer.enter_graceful_shutdown()


@contextlib.contextmanager
def socket_path(data_dir: Path) -> Iterator[Path]:
    """Where this host's workers connect: in the folder, or in a private one when that is too deep."""
    usual = data_dir.absolute() / "worker.sock"
    if len(os.fsencode(usual)) <= SOCKET_CHARS_MAX:
        usual.unlink(missing_ok=True)
        yield usual
        usual.unlink(missing_ok=True)
        return
    private = Path(tempfile.mkdtemp(prefix="quorumesh-"))  # mode 0700
    try:
        yield private / "worker.sock"
    finally:
        shutil.rmtree(private, ignore_errors=True)


@contextlib.asynccontextmanager
async def serving(
    servicers: Servicers, health: Health, credentials: NodeCredentials, listen: str, socket: Path
) -> AsyncIterator[None]:
    """Serve inside the block. Raises ConfigError when the address cannot be had."""
    server = grpc.aio.server(interceptors=(servicers.guard,), options=_OPTIONS)
    tasks_pb2_grpc.add_TasksServicer_to_server(servicers.tasks, server)
    locks_pb2_grpc.add_LocksServicer_to_server(servicers.locks, server)
    mesh_pb2_grpc.add_MeshServicer_to_server(servicers.mesh, server)
    peer_pb2_grpc.add_PeerServicer_to_server(servicers.peer, server)
    workers_pb2_grpc.add_WorkersServicer_to_server(servicers.workers, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    reflection.enable_server_reflection(_service_names(), server)
    try:
        server.add_secure_port(listen, credentials.server_credentials())
        server.add_insecure_port(f"unix:{socket}")
        await server.start()
    except RuntimeError as error:
        raise ConfigError(f"--listen {listen}: the address cannot be had ({error})") from error
    os.chmod(socket, 0o600)
    try:
        yield
    finally:
        await health.leave()
        await server.stop(GRACE_S)


def _service_names() -> tuple[str, ...]:
    described: tuple[tuple[Any, str], ...] = (
        (tasks_pb2, "Tasks"),
        (locks_pb2, "Locks"),
        (mesh_pb2, "Mesh"),
        (workers_pb2, "Workers"),
    )
    ours = (module.DESCRIPTOR.services_by_name[name].full_name for module, name in described)
    return (*ours, "grpc.health.v1.Health", reflection.SERVICE_NAME)

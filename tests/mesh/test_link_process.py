"""A peer in a process of its own: stopped, woken, killed."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest

from mesh.identity import Authority, Principal
from mesh.link import GrpcLink
from tests.mesh.test_link import Owner, credentials_of, running, until

CHILD = """
import asyncio, sys
from pathlib import Path
import grpc
from mesh.credentials import NodeCredentials
from mesh.link import SERVER_OPTIONS, GrpcLink
from quorumesh.v1.peer_pb2_grpc import add_PeerServicer_to_server

async def main():
    credentials = NodeCredentials.load(Path(sys.argv[1]))
    link = GrpcLink("b", credentials)
    link.set_peers({"a": "127.0.0.1:1"})
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_PeerServicer_to_server(link.servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials.server_credentials())
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.wait_for(link.run(), 60)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_a_stopped_peer_is_noticed_within_three_seconds_and_comes_back(
    tmp_path: Path,
) -> None:
    authority = Authority.create("m")
    credentials_of(authority, Principal("node", "b")).save(tmp_path)
    link = GrpcLink("a", credentials_of(authority, Principal("node", "a")))
    link.bind(Owner())
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        address = (await child.stdout.readline()).decode().strip()
        async with running(link):
            link.set_peers({"b": address})
            await until(lambda: link.is_up("b"))

            child.send_signal(signal.SIGSTOP)
            stopped_at = time.monotonic()
            await until(lambda: not link.is_up("b"))
            noticed_s = time.monotonic() - stopped_at
            child.send_signal(signal.SIGCONT)
            await until(lambda: link.is_up("b"))
            child.kill()
            await until(lambda: not link.is_up("b"))
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()

    assert noticed_s < 4.0  # 3 s, and what a busy machine adds

"""Node processes of the demo: each its own process, folder and port on loopback.

Every process is ended by the id under which it was started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from quorumesh.v1.mesh_pb2 import StatusReply

from mesh import Client, MeshError

ROOT = Path(__file__).resolve().parents[2]
AGENTS = "examples.support_desk.agents"
SLOTS = 8
READY_S_MAX = 30.0
STOP_S_MAX = 8.0
POLL_S = 0.05
LOG_LINES = 12

_T = TypeVar("_T")


class DemoFailed(Exception):
    """The demo cannot go on. Its text says what was waited for, and where to look."""


@dataclass(slots=True)
class Node:
    """One node process."""

    name: str
    port: int
    folder: Path
    profile: Path
    process: subprocess.Popen[bytes] | None = None
    log: IO[bytes] | None = None
    node_id: str = ""
    _client: Client | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def command(self, join_token: str = "") -> list[str]:
        """The command line as a person would type it after `mesh`."""
        words = ["node", "start", "--data", str(self.folder), "--name", self.name]
        words += ["--listen", self.address, "--advertise", self.address]
        words += ["--agents", AGENTS, "--workers", "1", "--slots", str(SLOTS)]
        return words + (["--join", join_token] if join_token else [])

    def start(self, join_token: str = "") -> None:
        """Start the process; its output goes to a file beside its folder."""
        self.log = self.folder.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "node.cli.main", *self.command(join_token)],
            cwd=ROOT,
            env=environment(self.profile),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which then ends its nodes in order
        )

    def kill(self) -> None:
        """`kill -9` of the node process. Its workers die with it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.close_client()

    def ask_to_stop(self) -> None:
        """SIGTERM: it lets its workers finish, and leaves."""
        self.close_client()
        if self.is_running and self.process is not None:
            self.process.terminate()

    def end(self, deadline_s: float) -> bool:
        """Wait until it has stopped; kill it at the deadline. True: it stopped by itself."""
        if self.process is None:
            return True
        clean = True
        try:
            self.process.wait(max(0.1, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            clean = False
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # itself and its workers
            self.process.wait()
        if self.log is not None:
            self.log.close()
        return clean

    def status(self) -> StatusReply | None:
        """How this node sees the mesh; None while it does not answer."""
        if not self.is_running or not self.profile.exists():
            return None
        try:
            if self._client is None:
                self._client = Client([self.address], profile=self.profile, timeout_s=1.0)
            return self._client.status()
        except (MeshError, OSError, ValueError):
            return None

    def client(self) -> Client:
        """A client that speaks to this node first."""
        return Client([self.address], profile=self.profile)

    def close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def last_lines(self) -> str:
        """The end of its log, for a message about what went wrong."""
        path = self.folder.with_suffix(".log")
        lines = path.read_text("utf-8", "replace").splitlines() if path.exists() else []
        return "\n".join(lines[-LOG_LINES:])


def environment(profile: Path) -> dict[str, str]:
    """What a node or a `mesh` command of the demo runs with: nothing of this user's own meshes."""
    paths = [str(ROOT), str(ROOT / "proto"), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "QUORUMESH_PROFILE": str(profile),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]
    finally:
        for one in held:
            one.close()


def wait_for(what: str, look: Callable[[], _T | None], nodes: list[Node], s_max: float) -> _T:
    """Look until there is something; DemoFailed when a node has died or the time is over."""
    deadline = time.monotonic() + s_max
    while time.monotonic() < deadline:
        found = look()
        if found is not None:
            return found
        for node in nodes:
            if not node.is_running:
                raise DemoFailed(
                    f"{node.name} has ended while waiting for {what}:\n{node.last_lines()}"
                )
        time.sleep(POLL_S)
    logs = "\n".join(f"--- {node.name}\n{node.last_lines()}" for node in nodes)
    raise DemoFailed(f"not within {s_max:g} s: {what}\n{logs}")


class Mesh:
    """The demo's nodes. Use it in a `with` block: whatever happens, nothing is left running."""

    def __init__(
        self, folder: Path, names: tuple[str, ...] = ("node-1", "node-2", "node-3")
    ) -> None:
        ports = free_ports(len(names))
        self.nodes = [
            Node(name, port, folder / name, folder / f"{name}.profile.json")
            for name, port in zip(names, ports, strict=True)
        ]

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave nodes behind
        self.stop()

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.is_running]

    def stop(self) -> bool:
        """Stop all nodes that run. True: each of them stopped by itself when asked to."""
        for node in self.nodes:
            node.ask_to_stop()
        deadline_s = time.monotonic() + STOP_S_MAX
        return all([node.end(deadline_s) for node in self.nodes if node.process is not None])

    def names(self) -> dict[str, str]:
        """Node id to name."""
        return {node.node_id: node.name for node in self.nodes if node.node_id}

    def learn_ids(self, status: StatusReply) -> None:
        """Take up the ids that the mesh gave to the nodes, by their names."""
        for member in status.members:
            for node in self.nodes:
                if node.name == member.name:
                    node.node_id = member.node_id

    def leader(self, *, besides: str = "") -> tuple[Node, StatusReply] | None:
        """The node that leads and can write, as it says itself."""
        for node in self.running:
            status = node.status()
            if status and status.role == "leader" and status.writable and status.node_id != besides:
                self.learn_ids(status)
                return node, status
        return None

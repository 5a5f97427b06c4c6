"""Real nodes, each a process of its own on loopback. Ends only what it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import grpc
from quorumesh.v1 import mesh_pb2, mesh_pb2_grpc, tasks_pb2_grpc

from consensus.ledger import invariants
from mesh import Client
from mesh.client_errors import MeshError
from mesh.profile import load_profile

ROOT = Path(__file__).resolve().parents[2]
READY_S = 40.0  # generous: eight processes may share two slow cores
STOP_S = 15.0
POLL_S = 0.03
CHANNEL_OPTIONS = [
    ("grpc.ssl_target_name_override", "quorumesh"),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
    ("grpc.use_local_subchannel_pool", 1),
]
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")

_Found = TypeVar("_Found")


class NotInTime(AssertionError):
    """A condition that a test waited for did not come true."""


def wait_for(
    condition: Callable[[], _Found | None], what: str, *, within_s: float = READY_S
) -> _Found:
    """Return the first true value of `condition`; NotInTime when there is none in time.

    A node that cannot be reached counts as not yet.
    """
    pause = threading.Event()
    last: BaseException | None = None
    until_s = time.monotonic() + within_s
    is_last = False
    while not is_last:
        is_last = time.monotonic() >= until_s
        try:
            found = condition()
        except (MeshError, grpc.RpcError) as error:
            last, found = error, None
        if found:
            return found
        pause.wait(POLL_S)
    raise NotInTime(f"{what}: not within {within_s:g} s" + (f" ({last})" if last else ""))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Site:
    """Where a node runs: what it listens on, what its command line begins with, its variables."""

    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one
    launcher: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class NodeProcess:
    """One node: its folder, its port, and its process while it runs."""

    name: str
    root: Path
    slots: int
    agents: Sequence[str]
    workers: int
    environment: Mapping[str, str]
    options: Sequence[str] = ()
    site: Site = field(default_factory=Site)
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    channel: grpc.Channel | None = None

    def __post_init__(self) -> None:
        self.port = self.port or self.site.port or free_port()

    @property
    def address(self) -> str:
        return f"{self.site.host}:{self.port}"

    @property
    def data(self) -> Path:
        return self.root / self.name

    @property
    def profile(self) -> Path:
        return self.root / f"profile-{self.name}"

    @property
    def log(self) -> Path:
        return self.root / f"{self.name}.log"

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} does not run"
        return self.process.pid

    def start(self, token: str | None = None, *, flags: Sequence[str] = ()) -> None:
        """Start the process; it is not waited for. `flags` hold for this start only."""
        assert self.process is None, f"{self.name} already runs"
        command = [*self.site.launcher, sys.executable, "-m", "node.cli.main", "node", "start"]
        command += ["--data", str(self.data), "--name", self.name]
        command += ["--listen", self.address, "--advertise", self.address]
        command += ["--workers", str(self.workers), "--slots", str(self.slots)]
        for module in self.agents:
            command += ["--agents", module]
        if token is not None:
            command += ["--join", token]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *self.options, *flags],
                cwd=ROOT,
                env={
                    **os.environ,
                    "PYTHONFAULTHANDLER": "1",
                    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]),
                    **self.environment,
                    **self.site.environment,
                    "QUORUMESH_PROFILE": str(self.profile),
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def kill(self) -> None:
        """`kill -9`, and wait until the process is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask it to stop, as Ctrl-C does; `kill -9` when it does not."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def status(self, timeout_s: float = 3.0) -> mesh_pb2.StatusReply:
        """How this very node sees the mesh; raises grpc.RpcError when it does not answer."""
        reply: mesh_pb2.StatusReply = mesh_pb2_grpc.MeshStub(self.dial()).Status(
            mesh_pb2.StatusRequest(), timeout=timeout_s
        )
        return reply

    def digest(self, revision: int = 0) -> mesh_pb2.DigestReply:
        reply: mesh_pb2.DigestReply = mesh_pb2_grpc.MeshStub(self.dial()).Digest(
            mesh_pb2.DigestRequest(at_least_revision=revision), timeout=30
        )
        return reply

    def tasks(self) -> tasks_pb2_grpc.TasksStub:
        """The plain stub of this very node: no fail-over, no resending."""
        return tasks_pb2_grpc.TasksStub(self.dial())

    def client(self, *others: NodeProcess, timeout_s: float = 15.0) -> Client:
        """A client that starts with this node."""
        addresses = [self.address, *(other.address for other in others)]
        return Client(addresses, profile=self.profile, timeout_s=timeout_s)

    def dial(self) -> grpc.Channel:
        if self.channel is None:
            credentials = load_profile(self.profile).channel_credentials()
            self.channel = grpc.secure_channel(self.address, credentials, options=CHANNEL_OPTIONS)
        return self.channel

    def worker_pids(self) -> list[int]:
        """Its children, as the system lists them now."""
        path = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        with contextlib.suppress(OSError):
            return [int(pid) for pid in path.read_text(encoding="ascii").split()]
        return []

    def cpu_s(self) -> float:
        """Processor time used so far by the node and its workers."""
        return sum(_cpu_s(pid) for pid in [self.pid, *self.worker_pids()])

    def violations(self) -> list[str]:
        """What in its ledger breaks an invariant. Only while the node does not run."""
        assert self.has_ended()
        name = (self.data / "state" / "CURRENT").read_text(encoding="ascii").strip()
        path = self.data / "state" / name / "ledger.db"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            return list(invariants.violations(connection))

    def log_tail(self, characters: int = 4_000) -> str:
        if not self.log.exists():
            return ""
        return self.log.read_text(encoding="utf-8", errors="replace")[-characters:]

    def _end(self, how: signal.Signals) -> None:
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self.process is None:
            return
        if self.process.poll() is None:
            os.kill(self.process.pid, how)
            if how != signal.SIGKILL:
                os.kill(self.process.pid, signal.SIGCONT)  # in case a test had paused it
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_S)
        self.process = None


class LocalMesh:
    """Nodes on this host. Leaving the block ends them all, whatever happened in it."""

    def __init__(
        self,
        root: Path,
        *,
        slots: int = 8,
        agents: Sequence[str] = (),
        workers: int = 1,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        site: Callable[[str], Site] = lambda _: Site(),
    ) -> None:
        self.root = root
        self.nodes: list[NodeProcess] = []
        self._slots = slots
        self._agents = tuple(agents)
        self._workers = workers
        self._environment = dict(environment or {})
        self._options = tuple(options)
        self._site = site

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            node.kill()
        if error is not None:
            for node in self.nodes:
                print(f"--- the end of {node.name}'s log\n{node.log_tail()}")

    def grow(self, count: int) -> list[NodeProcess]:
        """Found the mesh with the first node, or join more through the first that runs."""
        for _ in range(count):
            self.add()
        return self.nodes

    def add(
        self,
        *,
        through: NodeProcess | None = None,
        workers: int | None = None,
        votes: bool = True,
    ) -> NodeProcess:
        """Start one more node and wait until all see as many voters as there should be."""
        node = NodeProcess(
            name=(name := f"node-{len(self.nodes) + 1}"),
            root=self.root,
            slots=self._slots,
            agents=self._agents,
            workers=self._workers if workers is None else workers,
            environment=self._environment,
            options=self._options,
            site=self._site(name),
        )
        running = self.running()
        token = None
        if running:
            seed = through or running[0]
            with seed.client() as client:
                token = client.create_token().token
        node.start(token)
        self.nodes.append(node)
        voters = len(running) + votes
        for each in self.running():
            self.wait_ready(each, voters=voters)
        return node

    def kill_all(self) -> None:
        """`kill -9` of all nodes, none of them outliving another by more than a moment."""
        for node in self.running():
            os.kill(node.pid, signal.SIGKILL)
        for node in self.nodes:
            node.kill()

    def running(self) -> list[NodeProcess]:
        return [node for node in self.nodes if not node.has_ended()]

    def wait_ready(self, node: NodeProcess, *, voters: int = 0) -> mesh_pb2.StatusReply:
        """Wait until the node can write, knows enough voters, and its workers are open."""

        def ready() -> mesh_pb2.StatusReply | None:
            if node.has_ended():
                code = node.process.returncode if node.process else None
                raise AssertionError(f"{node.name} ended, code {code}:\n{node.log_tail()}")
            status = node.status()
            own = [w for w in status.workers if w.node_id == status.node_id and w.open]
            known = sum(member.voter for member in status.members)
            fine = status.writable and known >= voters and len(own) >= node.workers
            return status if fine else None

        return wait_for(ready, f"{node.name} is ready")

    def leader(self) -> NodeProcess:
        """The node that leads, once it and one other agree on it."""

        def found() -> NodeProcess | None:
            states = {}
            for node in self.running():
                with contextlib.suppress(grpc.RpcError):
                    states[node.name] = (node, node.status())
            votes = [status.leader_id for _, status in states.values() if status.leader_id]
            for node, status in states.values():
                if status.role == "leader" and votes.count(status.node_id) * 2 > len(states):
                    return node
            return None

        return wait_for(found, "there is a leader")

    def followers(self) -> list[NodeProcess]:
        leader = self.leader()
        return [node for node in self.running() if node is not leader]

    def equal_digests(self, *, within_s: float = READY_S) -> bytes:
        """Wait until all running nodes have the same full digest at the same revision."""

        def equal() -> bytes | None:
            top = max(node.status().revision for node in self.running())
            replies = [node.digest(top) for node in self.running()]
            if len({(reply.revision, reply.full, reply.chain) for reply in replies}) == 1:
                return replies[0].full
            return None

        return wait_for(equal, "the digests are equal", within_s=within_s)


def _cpu_s(pid: int) -> float:
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        fields = text.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
    return 0.0

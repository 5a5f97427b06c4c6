"""Builds the parts of a node and joins them. Nothing else does.

A part that breaks an invariant ends the node with EXIT_BUG; a disk that refuses only makes it stop
writing. The first signal stops it in order, the second at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import random
import secrets
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass

from quorumesh.v1.ledger_pb2 import Bootstrap
from quorumesh.v1.mesh_pb2 import CreateTokenRequest

from consensus.core import Ports, ReplicaConfig
from consensus.errors import ConsensusError, Damaged, StorageFailed
from consensus.ledger import APPLY_VERSION, LEASE_MS, CannotApply
from consensus.replica import Replica
from mesh.client_errors import MeshError, Refused, Unreachable
from mesh.errors import JoinFailed, TokenExpired, TokenMalformed
from mesh.link import GrpcLink
from node.api.errors import (
    EXIT_BUG,
    EXIT_DAMAGED,
    EXIT_REFUSED,
    EXIT_UNAVAILABLE,
    EXIT_USAGE,
    Refusal,
)
from node.api.feed import Feed
from node.api.guard import Guard
from node.api.locks import LocksService
from node.api.mesh import About, MeshService, Roster
from node.api.proposing import Proposer
from node.api.reading import LongReads
from node.api.sessions import Sessions
from node.api.tasks import TasksService
from node.api.workers import WorkersService
from node.boot import Booted, boot
from node.config import ConfigError, NodeConfig
from node.folder import BootError, holding, write_members
from node.joining import Joining
from node.logs import set_up_logs
from node.notices import Notices
from node.server import Health, Servicers, serving, socket_path
from node.supervisor import Supervisor, WorkerSpec
from node.system import BACKGROUND_THREADS, SystemClock, ThreadBackground, loop_factory, run_on

FOLLOW_MS = 200
SETTLE_MS_MAX = 1_000
SETTLE_LOOK_MS = 20
RETRY_MS = 500
EXIT_KILLED = 130

log = logging.getLogger("node.runtime")


@dataclass(frozen=True, slots=True)
class Running:
    """A node that serves. `stop` asks it to end in order."""

    mesh_id: str
    node_id: str
    address: str
    loop: str
    replica: Replica
    link: GrpcLink
    stop: Callable[[], None]


Ready = Callable[[Running], None]


def run_node(config: NodeConfig) -> int:
    """Run a node until it is told to stop. Returns the exit code of the process."""
    set_up_logs(config.log_level, as_json=config.log_json)
    # Workers are started by exec, never by a fork that goes on in Python: nothing to be handled.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        loop_name, factory = loop_factory(config.loop)
        return run_on(factory, serve(config, loop_name=loop_name))
    except (ConfigError, TokenMalformed, TokenExpired) as error:
        return _say(str(error), EXIT_USAGE)
    except CannotApply as error:
        return _say(
            f"the ledger here is of another release: {error}; upgrade quorumesh", EXIT_DAMAGED
        )
    except Damaged as error:
        return _say(f"{error}; {_how_to_rejoin(config)}", EXIT_DAMAGED)
    except BootError as error:
        return _say(str(error), EXIT_DAMAGED)
    except (JoinFailed, Unreachable, StorageFailed) as error:
        return _say(str(error), EXIT_UNAVAILABLE)
    except (Refused, MeshError) as error:
        return _say(str(error), EXIT_REFUSED)
    finally:
        _let_go_of_output()


async def serve(
    config: NodeConfig,
    ready: Ready | None = None,
    *,
    loop_name: str = "asyncio",
    handles_signals: bool = True,
) -> int:
    """Run a node on this loop until its `stop` or a signal. Returns the exit code.

    Raises ConfigError, BootError, Damaged or a MeshError when it cannot start.
    """
    with holding(config.data_dir):
        booted = await boot(config, wall_ms=SystemClock().wall_ms())
        node = _Node(config, booted, loop_name)
        if handles_signals:
            node.stop_on_signals()
        try:
            await node.run(ready)
        except ExceptionGroup as failed:
            known, _ = failed.split((ConfigError, Damaged, StorageFailed, CannotApply))
            if known is not None:
                raise _first(known) from failed
            # The last place where anything may be caught: a bug ends the node, loudly.
            log.critical("a part of the node failed; stopping", exc_info=failed)
            return EXIT_BUG
        return 0


class _Node:
    """The parts of one node, joined."""

    def __init__(self, config: NodeConfig, booted: Booted, loop_name: str) -> None:
        self._config = config
        self._booted = booted
        identity = self._identity = booted.identity
        self._stopping = asyncio.Event()
        self._noted: dict[str, str] = {}  # the members, as the folder has them
        self._clock = SystemClock()
        self._background = ThreadBackground("background", threads=BACKGROUND_THREADS)
        # A thread of its own, so that what is acknowledged waits for no copy and no checkpoint.
        self._syncs = ThreadBackground("syncs", threads=1)
        rng = random.Random(secrets.randbits(64))
        self.link = GrpcLink(
            identity.node_id, booted.credentials, address=identity.address, rng=rng
        )
        ports = Ports(
            link=self.link,
            clock=self._clock,
            background=self._background,
            rng=rng,
            incarnation=secrets.randbits(64) | 1,
            syncs=self._syncs,
        )
        self.replica = Replica(_replica_config(config, booted), ports)
        self.feed, self.health = Feed(), Health()
        self.reads = LongReads(lambda: self.replica.core.ledger_path)
        self.sessions = Sessions(
            self.replica,
            lease_ms=LEASE_MS,
            monotonic_ms=self._clock.monotonic_ms,
            on_progress=self.feed.soft,
        )
        self.replica.subscribe(self.feed)
        self.replica.subscribe(self.sessions)
        self.proposer = Proposer(self.replica, is_up=self.link.is_up)
        self.roster = Roster(self.replica, self.link.is_up)
        self.joining = Joining(
            mesh_id=identity.mesh_id,
            address=identity.address,
            authority=booted.authority,
            proposer=self.proposer,
            members=self.roster.members,
            wall_ms=self._clock.wall_ms,
        )
        version = importlib.metadata.version("quorumesh")
        self.about = About(identity.mesh_id, identity.name, loop_name, version)

    async def run(self, ready: Ready | None) -> None:
        """Serve until stopped. Whatever a part raises comes out of here, in a group."""
        self._follow_members_once()
        with socket_path(self._config.data_dir) as socket:
            supervisor = self._supervisor(str(socket))
            try:
                async with asyncio.TaskGroup() as group:
                    parts = [
                        group.create_task(part)
                        for part in (
                            self.replica.run(),
                            self.link.run(),
                            self.sessions.run(),
                            self._follow_members(),
                        )
                    ]
                    async with serving(
                        self._servicers(),
                        self.health,
                        self._booted.credentials,
                        self._booted.listen,
                        socket,
                    ):
                        parts.append(group.create_task(supervisor.run()))
                        self._tell_started(ready)
                        if self._identity.founded and self._booted.is_first_start:
                            parts.append(group.create_task(self._print_join_line()))
                        await self._stopping.wait()
                        await supervisor.stop()
                    await self._settle()
                    for part in reversed(parts):
                        part.cancel()
            finally:
                self.reads.close()
                self._background.close()
                self._syncs.close()
        _print("stopped")

    def stop(self) -> None:
        """End in order: workers, sessions, links, ledger. Again: nothing more happens."""
        self._stopping.set()

    def stop_on_signals(self) -> None:
        """The first signal asks, the second does not."""
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if self._stopping.is_set():
                os._exit(EXIT_KILLED)
            _print("stopping (once more: at once)")
            self.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)

    def _servicers(self) -> Servicers:
        return Servicers(
            guard=Guard(self._has_left),
            tasks=TasksService(self.replica, self.proposer, self.feed, self.reads),
            locks=LocksService(self.replica),
            mesh=MeshService(
                self.replica,
                self.roster,
                self.proposer,
                self.joining,
                self.about,
                reads=self.reads,
            ),
            peer=self.link.servicer,
            workers=WorkersService(self.sessions, node_id=self._identity.node_id),
        )

    def _has_left(self, node_id: str) -> bool:
        """A removed node itself still answers those who know it, and says what it is."""
        core = self.replica.core
        return node_id != self._identity.node_id and core.membership.has_left(node_id)

    def _supervisor(self, socket: str) -> Supervisor:
        config = self._config
        specs = [
            WorkerSpec(
                name=f"w{number}",
                connect=f"unix:{socket}",
                agents=config.agents,
                slots=config.slots,
                allow_shell=config.allow_shell,
                log_level=config.log_level,
            )
            for number in range(config.worker_count)
        ]
        return Supervisor(specs, log_folder=config.data_dir / "logs")

    def _tell_started(self, ready: Ready | None) -> None:
        identity = self._identity
        _print(f"node {identity.node_id} ({identity.name}) listening on {identity.address}")
        _print(f"{self._how_started()} mesh {identity.mesh_id}")
        if ready is not None:
            ready(
                Running(
                    mesh_id=identity.mesh_id,
                    node_id=identity.node_id,
                    address=identity.address,
                    loop=self.about.loop,
                    replica=self.replica,
                    link=self.link,
                    stop=self.stop,
                )
            )

    def _how_started(self) -> str:
        if not self._booted.is_first_start:
            return "back in"
        return "founded" if self._identity.founded else "joined"

    async def _print_join_line(self) -> None:
        """One line to paste on the next host."""
        while True:
            try:
                reply = await self.joining.create_token(CreateTokenRequest(), None)
            except (Refusal, ConsensusError) as error:
                log.warning("no join token yet", extra={"why": str(error)})
                await asyncio.sleep(RETRY_MS / 1_000)
                continue
            _print("on the next host, within 1 h (later: mesh join-token):")
            _print(f"  mesh node start --join {reply.token}")
            return

    async def _follow_members(self) -> None:
        """Let the link and health follow the ledger, and say what changed."""
        notices = Notices()
        told: bool | None = None
        while True:
            self._follow_members_once()
            view = self.replica.view()
            for notice in notices.changes(view, self.roster.members(), self.proposer.minority()):
                if notice.is_plain:
                    _print(notice.text)
                else:
                    log.log(logging.WARNING if notice.is_bad else logging.INFO, notice.text)
            if view.writable != told:
                told = view.writable
                await self.health.tell(is_writable=told)
            await asyncio.sleep(FOLLOW_MS / 1_000)

    def _follow_members_once(self) -> None:
        core, told = self.replica.core, self._identity.members
        known: dict[str, str] = {}
        with core.guard:
            members = core.ledger.members()
            # What was told at joining is good until the ledger knows better.
            self.link.set_peers({**({} if members else told), **core.peers()})
            # Not when the disk refused that: what was told may be of long ago.
            known = members or told
        if known and known != self._noted:
            self._noted = known
            try:
                write_members(self._config.data_dir, known)
            except OSError as error:
                log.warning("the members were not noted beside the state: %s", error)

    async def _settle(self) -> None:
        """Give what workers said last the time to reach the log."""
        for _ in range(SETTLE_MS_MAX // SETTLE_LOOK_MS):
            if not self._is_unsettled():
                return
            await asyncio.sleep(SETTLE_LOOK_MS / 1_000)

    def _is_unsettled(self) -> bool:
        stats = self.sessions.stats()
        return bool(stats.waiting_count or stats.in_flight_count)


def _replica_config(config: NodeConfig, booted: Booted) -> ReplicaConfig:
    identity = booted.identity
    founding = Bootstrap(
        mesh_id=identity.mesh_id,
        node_id=identity.node_id,
        name=identity.name,
        address=identity.address,
        apply_version_max=APPLY_VERSION,
    )
    return ReplicaConfig(
        node_id=identity.node_id,
        address=identity.address,
        root=config.data_dir / "state",
        founding=founding if identity.founded else None,
        joined_voters=identity.voters,
        compact_entries=config.compact_entries,
        compact_wal_bytes=config.compact_wal_bytes,
        keep_entries=config.keep_entries,
        segment_bytes_max=config.segment_bytes_max,
        scrub_ms=config.scrub_ms,
    )


def _first(group: ExceptionGroup[Exception]) -> Exception:
    one: Exception = group
    while isinstance(one, ExceptionGroup):
        one = one.exceptions[0]
    return one


def _print(line: str) -> None:
    # A terminal that is gone or a full disk under a redirected output must not end the node.
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _how_to_rejoin(config: NodeConfig) -> str:
    return f"it can only come back as a new node: mesh node start --rejoin --data {config.data_dir}"


def _let_go_of_output() -> None:
    """Drop what an output no longer takes: the interpreter would end with a code of its own for it."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _say(why: str, code: int) -> int:
    print(f"mesh node: {' '.join(why.split())}", file=sys.stderr, flush=True)
    return code

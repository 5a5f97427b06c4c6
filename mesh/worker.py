"""The worker process: `python -m mesh.worker` hosts agents and does what a node grants.

It decides nothing: the ledger grants, the node passes on, this process runs and reports.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio

from mesh.credentials import CHANNEL_TLS_OPTIONS, ClientCredentials
from mesh.errors import IdentityError
from mesh.worker_host import CHECK_MS, Host
from mesh.worker_loading import BadAgents, Loaded, load
from mesh.worker_process import (
    EXIT_NODE_GONE,
    EXIT_RESTART,
    STALL_MS_MAX,
    Watchdog,
    die_with_parent,
    leave,
)
from mesh.worker_stream import GONE_MS_MAX, STREAM_OPTIONS, Hello, Stream

SLOTS_MAX = 4_096
SESSION_BYTES = 16
DRAIN_MS_DEFAULT = 10_000
EXIT_USAGE = 64

Connect = Callable[[], grpc.aio.Channel]

log = logging.getLogger("mesh.worker")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker is started; see `python -m mesh.worker --help`."""

    connect: str
    agents: tuple[str, ...] = ()
    slots: int = 16
    name: str = "worker"
    allow_shell: bool = False
    log_level: str = "INFO"
    drain_ms: int = DRAIN_MS_DEFAULT
    stall_ms: int = STALL_MS_MAX
    gone_ms: int = GONE_MS_MAX
    parent_pid: int = 0
    credentials: str = ""


async def serve(options: WorkerOptions, loaded: Loaded, connect: Connect) -> int:
    """Work until told to stop, the node is gone or an agent is stuck. Returns the exit code."""
    stream: Stream | None = None

    def on_reports() -> None:
        if stream is not None:
            stream.wake()

    host = Host(loaded.skills, slots=options.slots, on_reports=on_reports)
    hello = Hello(
        session=os.urandom(SESSION_BYTES),
        name=options.name,
        skills=tuple(sorted(loaded.skills)),
        labels=tuple(sorted(loaded.labels.items())),
        slots=options.slots,
    )
    stream = Stream(hello, host, connect=connect, gone_ms_max=options.gone_ms)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    watchdog = Watchdog(options.stall_ms)
    watchdog.start()
    speaking = asyncio.ensure_future(stream.run())
    minding = asyncio.ensure_future(_mind(host, watchdog, stop, drain_ms=options.drain_ms))
    try:
        await asyncio.wait({speaking, minding}, return_when=asyncio.FIRST_COMPLETED)
        return minding.result() if minding.done() else _gone(speaking)
    finally:
        speaking.cancel()
        minding.cancel()
        await asyncio.gather(speaking, minding, return_exceptions=True)


def _gone(speaking: asyncio.Future[None]) -> int:
    speaking.result()
    log.error("the node is gone")
    return EXIT_NODE_GONE


async def _mind(host: Host, watchdog: Watchdog, stop: asyncio.Event, *, drain_ms: int) -> int:
    """Watch leases and stuck agents; once told to stop, or stuck, drain. Returns the exit code."""
    loop = asyncio.get_running_loop()
    code = 0
    drained_by: float | None = None
    while drained_by is None or (loop.time() < drained_by and not host.is_idle):
        watchdog.beat()
        host.check_clock()
        if drained_by is None and (stop.is_set() or host.has_stuck):
            code = 0 if stop.is_set() else EXIT_RESTART
            log.info("draining: %s", "asked to stop" if code == 0 else "an agent is stuck")
            host.offer(0)
            drained_by = loop.time() + drain_ms / 1_000
        await asyncio.sleep(CHECK_MS / 1_000)
    return code


def _connector(options: WorkerOptions) -> Connect:
    if options.connect.startswith("unix:"):
        return lambda: grpc.aio.insecure_channel(options.connect, options=STREAM_OPTIONS)
    credentials = ClientCredentials.load(Path(options.credentials)).channel_credentials()
    tls_options = (
        *STREAM_OPTIONS,
        *CHANNEL_TLS_OPTIONS,
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
    )
    return lambda: grpc.aio.secure_channel(options.connect, credentials, options=tls_options)


def parse(arguments: Sequence[str]) -> WorkerOptions:
    """Options from the command line."""
    parser = argparse.ArgumentParser(prog="python -m mesh.worker", description=__doc__)
    parser.add_argument("--connect", required=True, help="unix:PATH or HOST:PORT of a node")
    parser.add_argument("--agents", default="", help="modules or files, with commas")
    parser.add_argument("--slots", type=int, default=16, help="subtasks at once (1 to 4,096)")
    parser.add_argument("--name", default="worker")
    parser.add_argument("--allow-shell", action="store_true", help="offer the skill `shell`")
    parser.add_argument("--log-level", default="INFO", type=str.upper)
    parser.add_argument("--drain-ms", type=int, default=DRAIN_MS_DEFAULT)
    parser.add_argument("--stall-ms", type=int, default=STALL_MS_MAX)
    parser.add_argument("--gone-ms", type=int, default=GONE_MS_MAX, help="leave after so long")
    parser.add_argument("--parent-pid", type=int, default=0, help="die when this process dies")
    parser.add_argument("--credentials", default="", help="folder: ca.pem, cert.pem, key.pem")
    given = vars(parser.parse_args(arguments))
    if not 1 <= given["slots"] <= SLOTS_MAX:
        parser.error(f"--slots is 1 to {SLOTS_MAX}")
    if not given["connect"].startswith("unix:") and not given["credentials"]:
        parser.error("--connect HOST:PORT needs --credentials")
    given["agents"] = tuple(name for name in given["agents"].split(",") if name)
    return WorkerOptions(**given)


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    logging.basicConfig(
        level=options.log_level,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    if options.parent_pid:
        die_with_parent(options.parent_pid)
    try:
        loaded = load(options.agents, allow_shell=options.allow_shell)
        connect = _connector(options)
    except (BadAgents, IdentityError) as error:
        log.error("%s", error)
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        code = runner.run(serve(options, loaded, connect))
        leave(code)  # not by returning: a stuck agent's thread would hold the process
    return code


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

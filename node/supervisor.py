"""Keeps worker processes running beside the node, and their output in bounded files.

It starts and ends processes, always by the process it started; it knows nothing of tasks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

BACKOFF_MS_MIN = 200
BACKOFF_MS_MAX = 5_000
HEALTHY_MS = 30_000  # a worker that ran so long starts again without delay growing
LOG_BYTES_MAX = 1_048_576
READ_BYTES = 65_536
DRAIN_MS_DEFAULT = 5_000
KILL_MS_MAX = 5_000
# A worker never goes on after a fork, it only executes programs: gRPC need not prepare for one.
WORKER_ENVIRONMENT = {"PYTHONUNBUFFERED": "1", "GRPC_ENABLE_FORK_SUPPORT": "0"}

log = logging.getLogger("node.supervisor")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One worker process to keep running."""

    name: str
    connect: str
    agents: tuple[str, ...] = ()
    slots: int = 16
    allow_shell: bool = False
    log_level: str = "INFO"
    environment: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, *, parent_pid: int, drain_ms: int) -> list[str]:
        """The command line after the interpreter."""
        arguments = ["-m", "mesh.worker", "--connect", self.connect, "--name", self.name]
        arguments += ["--slots", str(self.slots), "--log-level", self.log_level]
        arguments += ["--parent-pid", str(parent_pid), "--drain-ms", str(drain_ms)]
        if self.agents:
            arguments += ["--agents", ",".join(self.agents)]
        if self.allow_shell:
            arguments.append("--allow-shell")
        return arguments


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """A worker process now. `pid` is 0 while it is not running."""

    name: str
    pid: int
    restart_count: int
    exit_code: int | None


def next_backoff_ms(backoff_ms: int, *, ran_ms: int) -> int:
    """How long to wait before the next start, from the wait before and how long it ran."""
    if ran_ms >= HEALTHY_MS:
        return BACKOFF_MS_MIN
    return min(max(BACKOFF_MS_MIN, 2 * backoff_ms), BACKOFF_MS_MAX)


class RotatingFile:
    """Bytes kept in two files of at most LOG_BYTES_MAX each; the older half goes first."""

    def __init__(self, path: Path, bytes_max: int = LOG_BYTES_MAX) -> None:
        self._path = path
        self._older = path.with_name(path.name + ".1")
        self._bytes_max = bytes_max
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._size_bytes = path.stat().st_size

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), self._bytes_max):
            piece = data[start : start + self._bytes_max]
            if self._size_bytes + len(piece) > self._bytes_max:
                self._file.close()
                os.replace(self._path, self._older)
                self._file = self._path.open("wb", buffering=0)
                self._size_bytes = 0
            self._file.write(piece)
            self._size_bytes += len(piece)

    def close(self) -> None:
        self._file.close()


class Supervisor:
    """Runs these workers until stopped. `run` returns after `stop`, or when it is cancelled."""

    def __init__(
        self,
        specs: Sequence[WorkerSpec],
        *,
        log_folder: Path,
        drain_ms: int = DRAIN_MS_DEFAULT,
    ) -> None:
        assert len({spec.name for spec in specs}) == len(specs), "worker names are unique"
        self._children = [_Child(spec, log_folder, drain_ms) for spec in specs]

    async def run(self) -> None:
        """Start all workers and start them again when they exit, until `stop`."""
        try:
            async with asyncio.TaskGroup() as group:
                for child in self._children:
                    group.create_task(child.run())
        finally:
            for child in self._children:
                child.kill()

    async def stop(self) -> None:
        """Ask all workers to drain; kill by pid those that have not left within the drain time."""
        await asyncio.gather(*(child.stop() for child in self._children))

    def stats(self) -> list[WorkerStats]:
        return [child.stats() for child in self._children]


class _Child:
    def __init__(self, spec: WorkerSpec, log_folder: Path, drain_ms: int) -> None:
        self._spec = spec
        self._drain_ms = drain_ms
        self._log_path = log_folder / f"worker-{spec.name}.log"
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._restart_count = -1
        self._exit_code: int | None = None

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_ms = 0
        while not self._stopping.is_set():
            started = loop.time()
            self._restart_count += 1
            try:
                await self._run_once()
            except OSError as error:
                log.error("worker does not start: name=%s %s", self._spec.name, error)
            ran_ms = int((loop.time() - started) * 1_000)
            backoff_ms = next_backoff_ms(backoff_ms, ran_ms=ran_ms)
            if self._stopping.is_set():
                return
            log.warning(
                "worker exited: name=%s code=%s ran_ms=%d again_in_ms=%d",
                self._spec.name,
                self._exit_code,
                ran_ms,
                backoff_ms,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(backoff_ms / 1_000):
                    await self._stopping.wait()

    async def _run_once(self) -> None:
        output = RotatingFile(self._log_path)
        try:
            process = await self._start()
            assert process.stdout is not None
            if self._stopping.is_set():
                process.terminate()  # stopped while it was being started
            reading = asyncio.ensure_future(_pump(process.stdout, output))
            try:
                self._exit_code = await process.wait()
                # A grandchild may hold the pipe open: what it still says is not waited for long.
                await asyncio.wait({reading}, timeout=1)
            finally:
                reading.cancel()
                self.kill()
        finally:
            output.close()

    async def _start(self) -> asyncio.subprocess.Process:
        arguments = self._spec.arguments(parent_pid=os.getpid(), drain_ms=self._drain_ms)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **WORKER_ENVIRONMENT, **self._spec.environment},
        )
        log.debug("worker started: name=%s pid=%d", self._spec.name, self._process.pid)
        return self._process

    async def stop(self) -> None:
        self._stopping.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout((self._drain_ms + 1_000) / 1_000):
                await process.wait()
        except TimeoutError:
            log.warning("worker does not leave: name=%s pid=%d", self._spec.name, process.pid)
            self.kill()
            async with asyncio.timeout(KILL_MS_MAX / 1_000):
                await process.wait()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    def stats(self) -> WorkerStats:
        process = self._process
        is_running = process is not None and process.returncode is None
        return WorkerStats(
            name=self._spec.name,
            pid=process.pid if process is not None and is_running else 0,
            restart_count=max(0, self._restart_count),
            exit_code=self._exit_code,
        )


async def _pump(stream: asyncio.StreamReader, output: RotatingFile) -> None:
    # Always read, so that an agent that prints megabytes never waits for us.
    while data := await stream.read(READ_BYTES):
        output.write(data)

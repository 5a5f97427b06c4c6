"""Small disks for real nodes: a tmpfs where mounting is allowed, else a bound on file sizes."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tests.e2e.mesh_process import NodeProcess

DISK_BYTES = 64 << 20
BALLAST_STEP_BYTES = 64 << 10


class SmallDisk(Protocol):
    """One node's disk, which can be filled up and given room again."""

    def fill(self, node: NodeProcess) -> None: ...

    def make_room(self, node: NodeProcess) -> None: ...


class Tmpfs:
    """The node's folder lies in a tmpfs of its own: a full one refuses with ENOSPC."""

    def fill(self, node: NodeProcess) -> None:
        with open(node.data / "ballast", "ab", buffering=0) as ballast:
            step = BALLAST_STEP_BYTES
            while step:
                try:
                    ballast.write(bytes(step))
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    step //= 2

    def make_room(self, node: NodeProcess) -> None:
        (node.data / "ballast").unlink()


class FileSizes:
    """No file of the process may grow any more: each write fails with EFBIG."""

    def fill(self, node: NodeProcess) -> None:
        self._set(node, 1)

    def make_room(self, node: NodeProcess) -> None:
        self._set(node, resource.RLIM_INFINITY)

    @staticmethod
    def _set(node: NodeProcess, soft: int) -> None:
        _, hard = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (soft if soft > 0 else hard, hard))


@contextlib.contextmanager
def small_disks(root: Path, count: int) -> Iterator[SmallDisk]:
    """Disks for node-1 … below `root`; the better kind that is allowed here."""
    folders = [root / f"node-{number}" for number in range(1, count + 1)]
    with contextlib.ExitStack() as mounted:
        for folder in folders:
            folder.mkdir(mode=0o700)
            if not _mount(folder):
                mounted.close()
                yield FileSizes()
                return
            mounted.callback(_unmount, folder)
        yield Tmpfs()


def _mount(folder: Path) -> bool:
    if os.geteuid() != 0:
        return False
    size = f"size={DISK_BYTES},mode=0700"
    command = ["mount", "-t", "tmpfs", "-o", size, "quorumesh-test", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", str(folder)], check=True)

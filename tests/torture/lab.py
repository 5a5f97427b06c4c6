"""A network of its own for the nodes: each in a network namespace, all on one bridge.

The harness starts itself anew inside private network, mount and process namespaces, so that
nothing of it outlives it: when its first process ends, the kernel ends all others and takes away
bridges, rules and mounts. Cuts are rules on what the bridge forwards between two nodes; the
harness' own clients speak from the bridge itself and always reach every node.

Loss and delay: the nodes' devices are taps of one small switch in user space (`switch.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.e2e.mesh_process import ROOT, Site

INSIDE = "QUORUMESH_LAB"
LAB_HOST = "10.77.0.254"
PORT = 7400
TOOLS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2", "nft": "nftables"}
INSTALL_S_MAX = 120
# A host without these for its users may still let them have a user namespace.
PLAIN = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
AS_USER = ("--user", "--map-root-user", *PLAIN)
PROBE = "ip link add probe type bridge && nft add table bridge probe && mount -t tmpfs t /run"

Pair = tuple[int, int]  # from node, to node; numbered from 1


class NoLab(Exception):
    """This host does not allow what the kind of fault needs. Says what."""


class Network(Protocol):
    """The nodes' network as faults see it."""

    @property
    def words(self) -> str: ...

    def site(self, name: str) -> Site: ...

    def cut(self, pairs: Iterable[Pair]) -> None:
        """Drop what goes from the first to the second node of each pair; nothing else."""

    def disturb(self, *, loss: float, delay_ms: float, jitter_ms: float) -> None:
        """Lose and delay what goes from node to node."""

    def heal(self) -> None: ...


class Loopback:
    """No network of its own: all nodes on 127.0.0.1."""

    words = "loopback"

    def site(self, name: str) -> Site:
        return Site()

    def cut(self, pairs: Iterable[Pair]) -> None:
        raise NoLab("partitions need network namespaces")

    def disturb(self, *, loss: float, delay_ms: float, jitter_ms: float) -> None:
        raise NoLab("loss and delay need network namespaces")

    def heal(self) -> None:
        pass


class Bridge:
    """A namespace for each node, joined by a bridge of the kernel."""

    words = "namespaces"

    def __init__(self, node_count: int) -> None:
        _ip("link", "set", "lo", "up")
        _ip("link", "add", "br0", "type", "bridge")
        for number in range(1, node_count + 1):
            _add_namespace(number)
            wire = ("type", "veth", "peer", "name", "eth0", "netns", f"n{number}")
            _ip("link", "add", f"v{number}", *wire)
            _ip("link", "set", f"v{number}", "master", "br0", "up")
            _configure(number)
        _ip("addr", "add", f"{LAB_HOST}/24", "dev", "br0")
        _ip("link", "set", "br0", "up")
        self.heal()

    def site(self, name: str) -> Site:
        return _site(name)

    def cut(self, pairs: Iterable[Pair]) -> None:
        drops = [f'iifname "v{a}" oifname "v{b}" drop' for a, b in pairs]
        _nft(drops)

    def disturb(self, *, loss: float, delay_ms: float, jitter_ms: float) -> None:
        raise NoLab("this lab was built for cuts, not for loss and delay")

    def heal(self) -> None:
        _nft([])


class Switched:
    """A namespace for each node, joined by a switch in user space that can lose and delay."""

    words = "namespaces, switch in user space"

    def __init__(self, node_count: int) -> None:
        _ip("link", "set", "lo", "up")
        command = [sys.executable, "-m", "tests.torture.switch", str(node_count), LAB_HOST]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise NoLab("no tap devices here (/dev/net/tun)")
        for number in range(1, node_count + 1):
            _add_namespace(number)
            _ip("link", "set", f"tap{number}", "netns", f"n{number}", "name", "eth0")
            _configure(number)
        _ip("addr", "add", f"{LAB_HOST}/24", "dev", "tap0")
        _ip("link", "set", "tap0", "up")

    def site(self, name: str) -> Site:
        return _site(name)

    def cut(self, pairs: Iterable[Pair]) -> None:
        raise NoLab("this lab was built for loss and delay, not for cuts")

    def disturb(self, *, loss: float, delay_ms: float, jitter_ms: float) -> None:
        self._say(loss=loss, delay_ms=delay_ms, jitter_ms=jitter_ms)

    def heal(self) -> None:
        self._say(loss=0.0, delay_ms=0.0, jitter_ms=0.0)

    def _say(self, **wish: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()


@dataclass(frozen=True, slots=True)
class SmallDisk:
    """A file system of a few megabytes, mounted where a node keeps its data."""

    path: Path

    @classmethod
    def mount(cls, path: Path, *, bytes_max: int) -> SmallDisk:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", f"size={bytes_max},mode=0700", "small", str(path))
        return cls(path)

    @property
    def filler(self) -> Path:
        return self.path / "filler"

    def fill(self) -> None:
        """Leave no byte free."""
        with self.filler.open("wb", buffering=0) as file:
            piece = b"x" * 65_536
            while piece:
                try:
                    file.write(piece)
                except OSError:
                    piece = piece[: len(piece) // 2]

    def make_room(self) -> None:
        self.filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Only while nothing uses it any more."""
        _run("umount", "--lazy", str(self.path))


class Lab:
    """What of the host's the harness may use. Leaving the block leaves no process of it behind."""

    def __init__(self, network: Network, *, is_private: bool) -> None:
        self.network = network
        self.is_private = is_private  # mounts, too, are its own

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(self.network, Switched):
            self.network._process.kill()
            self.network._process.wait()


def is_entered() -> bool:
    """Whether this process is what `enter` has started, or was told not to."""
    return INSIDE in os.environ


def is_inside() -> bool:
    return os.environ.get(INSIDE) == "inside"


def why_not_inside() -> str:
    """Why there are no namespaces; empty: there are."""
    return os.environ.get(INSIDE, "").removeprefix("inside")


def enter(arguments: Sequence[str]) -> None:
    """Start the harness anew inside namespaces of its own, in place of this process.

    Returns where the host does not allow it: `why_not_inside` says why.
    """
    if INSIDE in os.environ:
        return
    # Where they are for root; the path of others may leave them out.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = _missing()
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        _install({TOOLS[tool] for tool in missing})
        missing = _missing()
    if missing:
        os.environ[INSIDE] = f"{', '.join(missing)} not installed"
        return
    for flags in (PLAIN, AS_USER):
        probe = subprocess.run(
            ["unshare", *flags, "sh", "-c", PROBE], capture_output=True, text=True, timeout=30
        )
        if probe.returncode == 0:
            os.environ[INSIDE] = "inside"
            again = [sys.executable, "-m", "tests.torture", *arguments]
            os.execvp("unshare", ["unshare", *flags, "--", *again])
    os.environ[INSIDE] = f"namespaces are not allowed: {probe.stderr.strip()[:200]}"


def _missing() -> list[str]:
    return [tool for tool in TOOLS if shutil.which(tool) is None]


def _install(packages: Iterable[str]) -> None:
    """As Debian's root may. What cannot be had is found missing afterwards."""
    install = ["apt-get", "install", "-y", "--no-install-recommends", *sorted(packages)]
    for command in (install, ["apt-get", "update"], install):
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, capture_output=True, timeout=INSTALL_S_MAX)
            if done.returncode == 0 and command is install:
                return


def build(*, node_count: int, is_switched: bool) -> Lab:
    """The network that this host allows."""
    if not is_inside():
        return Lab(Loopback(), is_private=False)
    _run("mount", "-t", "tmpfs", "lab", "/run")
    network: Network = Switched(node_count) if is_switched else Bridge(node_count)
    return Lab(network, is_private=True)


def number_of(name: str) -> int:
    return int(name.rpartition("-")[2])


def _site(name: str) -> Site:
    number = number_of(name)
    launcher = ("nsenter", f"--net=/run/netns/n{number}")
    return Site(host=_host(number), port=PORT, launcher=launcher)


def _host(number: int) -> str:
    return f"10.77.0.{number}"


def _add_namespace(number: int) -> None:
    _ip("netns", "add", f"n{number}")


def _configure(number: int) -> None:
    inside = ("-n", f"n{number}")
    _ip(*inside, "addr", "add", f"{_host(number)}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "eth0", "up")
    _ip(*inside, "link", "set", "lo", "up")


def _nft(rules: Iterable[str]) -> None:
    """Replace all rules in one transaction, so that no packet slips between two of them."""
    lines = "\n".join(f"    {rule}" for rule in rules)
    chain = "type filter hook forward priority 0; policy accept;"
    text = (
        "table bridge lab\ndelete table bridge lab\n"
        f"table bridge lab {{\n  chain between {{\n    {chain}\n{lines}\n  }}\n}}\n"
    )
    _run("nft", "-f", "-", given=text)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str, given: str = "") -> None:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=30)
    if done.returncode != 0:
        raise NoLab(f"{' '.join(command)}: {done.stderr.strip()}")

"""What a node is told when it starts. Checks it; reads no files and opens nothing."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

PORT_DEFAULT = 7400
LISTEN_DEFAULT = f"0.0.0.0:{PORT_DEFAULT}"
SLOTS_MAX = 4_096
WORKERS_MAX = 64
AGENTS_MAX = 64
NAME_CHARS_MAX = 64
ADDRESS_CHARS_MAX = 253 + 6
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*(:[A-Za-z_][A-Za-z0-9_]*)?")


class ConfigError(ValueError):
    """A setting cannot be used. Its text is one line that says which and what to do."""


class Loop(Enum):
    """Which event loop runs the node. AUTO: uvloop where it is installed."""

    AUTO = "auto"
    UVLOOP = "uvloop"
    ASYNCIO = "asyncio"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """All settings of one node. Raises ConfigError when one of them cannot be used.

    `advertise` is what peers and clients dial; left empty it is the host of `listen`, or this
    machine's own address when that host stands for all interfaces.
    """

    data_dir: Path
    listen: str = LISTEN_DEFAULT
    advertise: str = ""
    join_token: str = ""
    rejoin: bool = False  # come back as a new node, for the folder is damaged
    name: str = ""  # empty: the machine's host name
    agents: tuple[str, ...] = ()  # modules, or paths of Python files
    worker_count: int = 1
    slots: int = 16  # of each worker
    allow_shell: bool = False
    loop: Loop = Loop.AUTO
    compact_entries: int = 20_000  # applied since the last compaction
    compact_wal_bytes: int = 32 << 20
    keep_entries: int = 4_000  # left in the journal for peers that are a little behind
    segment_bytes_max: int = 8 << 20
    scrub_ms: int = 600_000  # between two comparisons of all ledgers; 0: never
    writes_profile: bool = True  # so that people on this host need no flags
    log_level: str = "INFO"
    log_json: bool = False

    def __post_init__(self) -> None:
        split_address(self.listen, "listen")
        if self.advertise:
            host, port = split_address(self.advertise, "advertise")
            if is_wildcard(host) or port == 0:
                raise ConfigError(
                    f"--advertise {self.advertise} cannot be dialled: give a host and a port"
                )
        if self.name and (len(self.name) > NAME_CHARS_MAX or not _NAME.fullmatch(self.name)):
            raise ConfigError(
                f"--name {self.name!r}: at most {NAME_CHARS_MAX} letters, digits, '.', '_' and '-'"
            )
        if self.rejoin and self.join_token:
            raise ConfigError(
                "--rejoin and --join exclude each other: a damaged node needs no token"
            )
        self._check_workers()
        _check_range("--compact-entries", self.compact_entries, 1, 10_000_000)
        _check_range("--compact-wal-bytes", self.compact_wal_bytes, 4_096, 1 << 40)
        _check_range("--keep-entries", self.keep_entries, 0, 10_000_000)
        _check_range("--scrub-ms", self.scrub_ms, 0, 7 * 24 * 3_600_000)
        _check_range("--segment-bytes", self.segment_bytes_max, 4_096, 1 << 30)

    def _check_workers(self) -> None:
        _check_range("--workers", self.worker_count, 0, WORKERS_MAX)
        _check_range("--slots", self.slots, 1, SLOTS_MAX)
        if len(self.agents) > AGENTS_MAX:
            raise ConfigError(f"--agents: at most {AGENTS_MAX} modules")
        for agent in self.agents:
            if not agent.endswith(".py") and not _MODULE.fullmatch(agent):
                raise ConfigError(f"--agents {agent!r} is neither a module name nor a .py file")

    @property
    def display_name(self) -> str:
        """The name people see."""
        own = re.sub(r"[^A-Za-z0-9_.-]", "-", socket.gethostname())[:NAME_CHARS_MAX]
        return self.name or own.strip("-.") or "node"

    def advertised(self, bound_port: int) -> str:
        """What others dial, once it is known which port was bound."""
        if self.advertise:
            return self.advertise
        host, _ = split_address(self.listen, "listen")
        return join_address(primary_host() if is_wildcard(host) else host, bound_port)


def split_address(address: str, what: str) -> tuple[str, int]:
    """Take host:port (or [v6]:port) apart. Raises ConfigError naming the setting."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(
            f"--{what} {address!r} must be HOST:PORT, such as 192.0.2.7:{PORT_DEFAULT}"
        )
    if len(address) > ADDRESS_CHARS_MAX:
        raise ConfigError(f"--{what}: at most {ADDRESS_CHARS_MAX} characters")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise ConfigError(f"--{what} {address!r}: {host} is no IPv6 address") from error
    elif not _HOST.fullmatch(host):
        raise ConfigError(f"--{what} {address!r}: {host!r} is no host name")
    return host, int(port)


def listen_as(listen: str, address: str) -> str:
    """Where a node listens that the mesh knows by an address: its port, unless another is asked for."""
    host, port = split_address(listen, "listen")
    return listen if port else join_address(host, split_address(address, "advertise")[1])


def join_address(host: str, port: int) -> str:
    """host:port, with brackets where IPv6 needs them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_wildcard(host: str) -> bool:
    """Whether the host stands for all interfaces and so cannot be dialled."""
    return host in ("0.0.0.0", "::", "*")


def primary_host() -> str:
    """The address this machine would use to speak to others; loopback when it has no network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing; it only asks the routing table.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def _check_range(flag: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{flag} {value} must be between {least:,} and {most:,}")

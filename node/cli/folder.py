"""What `mesh doctor --data` looks at: a stopped node's folder, and its peers beside it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consensus.examining import Check, Examined, examine
from mesh.credentials import NodeCredentials
from mesh.errors import MeshError
from node.cli.session import Failure
from node.comparing import compare
from node.folder import NODE_FILE, BootError, read_identity, read_members

REJOIN = "do not use it again: mesh node start --rejoin --data"


def examine_folder(data: Path, peers: tuple[str, ...]) -> list[tuple[str, bool | None, str]]:
    """Every check as (what was looked at, whether it is well, what was seen), a verdict last."""
    state = _state_in(data)
    home = state.parent
    with _not_running(home), tempfile.TemporaryDirectory(prefix="quorumesh-doctor-") as aside:
        try:
            examined = examine(state, Path(aside))
        except OSError as error:
            raise Failure(f"{state} cannot be looked at: {error.strerror or error}") from None
        checks = list(examined.checks)
        checks.extend(asyncio.run(_compare(home, examined, peers)))
    checks.append(_verdict(checks, home))
    return [(check.name, check.ok, check.text) for check in checks]


def _verdict(checks: list[Check], home: Path) -> Check:
    if any(check.ok is False for check in checks):
        return Check("verdict", False, f"{REJOIN} {home}")
    if any(check.name == "digest" and check.ok for check in checks):
        return Check("verdict", True, "it can be trusted: start the node")
    text = "nothing is wrong with the files; what the rows say was not compared with a peer"
    return Check("verdict", True, text)


async def _compare(home: Path, examined: Examined, peers: tuple[str, ...]) -> list[Check]:
    if examined.copy is None:
        return []
    try:
        credentials = NodeCredentials.load(home / "node")
    except MeshError as error:
        return [Check("digest", None, f"no peer can be asked: {error}")]
    known = dict(examined.copy.members) or read_members(home)
    if not known:
        try:
            known = dict(read_identity(home / NODE_FILE).members)
        except BootError as error:
            return [Check("digest", None, f"no peer is known: {error}")]
    known.pop(credentials.node_id, None)
    if peers:
        by_address = {address: node_id for node_id, address in known.items()}
        known = {by_address.get(address, address): address for address in peers}
    return [check async for check in compare(examined.copy, known, credentials)]


def _state_in(data: Path) -> Path:
    """The folder with the replicated state: this one, or `state` in a node's."""
    if (data / "node.json").exists() or (data / "state").is_dir():
        return data / "state"
    for current in sorted([data / "CURRENT", *data.glob("*/CURRENT")]):
        if current.is_file():
            return current.parent
    raise Failure(f"{data} holds no ledger: give the folder of 'mesh node start --data'")


@contextmanager
def _not_running(home: Path) -> Iterator[None]:
    """Fails while a node runs there: its files change under whoever reads them."""
    if not (home / "lock").exists():
        yield
        return
    fd = os.open(home / "lock", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            raise Failure(f"a node runs on {home}; stop it first, or use mesh doctor") from None
        yield
    finally:
        os.close(fd)

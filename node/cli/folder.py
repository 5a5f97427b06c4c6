"""What `mesh doctor --data` looks at: a stopped node's folder, and its peers beside it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consensus.examining import Check, Examined, examine
from consensus.room import is_full
from mesh.credentials import NodeCredentials
from mesh.errors import MeshError
from node.cli.session import Failure
from node.comparing import compare
from node.folder import NODE_FILE, BootError, read_identity, read_members

SPARE_BYTES = 8 << 20  # beside the copy: what opening it writes
REJOIN = "do not use it again: mesh node start --rejoin --data"


def examine_folder(
    data: Path, peers: tuple[str, ...], work: Path | None = None
) -> list[tuple[str, bool | None, str]]:
    """Every check as (what was looked at, whether it is well, what was seen), a verdict last.

    The copy of the ledger lies in a folder of its own in `work`, by default beside the data, until
    this returns or is interrupted. Failure when there is no room for it.
    """
    state = _state_in(data)
    home = state.parent
    place = work or _place_beside(home)
    with _not_running(home), _aside(place, _ledger_bytes(state)) as aside:
        try:
            examined = examine(state, aside)
            checks = list(examined.checks)
            checks.extend(asyncio.run(_compare(home, examined, peers)))
        except OSError as error:
            if is_full(error):
                raise _no_room(place) from None
            raise Failure(f"{state} cannot be looked at: {error.strerror or error}") from None
    checks.append(_verdict(checks, home))
    return [(check.name, check.ok, check.text) for check in checks]


def _place_beside(home: Path) -> Path:
    """Beside the data there is likely to be room for a copy; the usual place may be in memory."""
    beside = home.absolute().parent
    return beside if os.access(beside, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _ledger_bytes(state: Path) -> int:
    """How large a copy of the largest ledger there is, with its write-ahead log."""
    sizes: dict[Path, int] = {}
    for path in state.glob("*/ledger.db*"):
        sizes[path.parent] = sizes.get(path.parent, 0) + path.stat().st_size
    return max(sizes.values(), default=0)


@contextmanager
def _aside(place: Path, copy_bytes: int) -> Iterator[Path]:
    """A folder for the copy, gone after the block. Failure when the place has no room for it."""
    try:
        if shutil.disk_usage(place).free < copy_bytes + SPARE_BYTES:
            raise _no_room(place, copy_bytes + SPARE_BYTES)
        folder = tempfile.TemporaryDirectory(prefix="quorumesh-doctor-", dir=place)
    except OSError as error:
        why = error.strerror or error
        raise Failure(f"{place} cannot be worked in ({why}): name another: --work DIR") from None
    with folder as aside:
        yield Path(aside)


def _no_room(place: Path, wanted_bytes: int = 0) -> Failure:
    wanted = f": {wanted_bytes / (1 << 20):,.0f} MiB" if wanted_bytes else ""
    return Failure(
        f"no room in {place} for a copy of the ledger{wanted}; name a folder with room: --work DIR"
    )


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

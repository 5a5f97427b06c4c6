"""A damaged node comes back as a new one, and only a damaged one; a sound one is left alone."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import pytest
from quorumesh.v1.mesh_pb2 import DigestRequest, EntriesRequest, JoinRequest
from quorumesh.v1.mesh_pb2_grpc import MeshStub

from consensus.errors import Damaged
from mesh.credentials import NodeCredentials
from mesh.identity import Authority, Principal, new_key, new_request
from node import rejoining
from node.cli.folder import examine_folder
from node.config import ConfigError, NodeConfig
from node.folder import BootError, read_identity, read_members
from tests.node.small_mesh import SmallMesh, small_mesh, until

SCRUB_MS = 300


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[SmallMesh]:
    """Three voters that have done something."""
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1", scrub_ms=SCRUB_MS)
        for name in ("n2", "n3"):
            await mesh.grow(name, scrub_ms=SCRUB_MS)
        async with mesh.client("n1") as client:
            for number in range(5):
                await client.submit({"subtasks": [{"id": "a", "skill": f"s{number}"}]})
        yield mesh


async def come_back(mesh: SmallMesh, name: str) -> str:
    """Start a node with --rejoin and wait until it votes under its new id, which this returns."""
    node = await mesh.start(name, rejoin=True, scrub_ms=SCRUB_MS)
    await until(lambda: node.node_id in node.replica.view().voters)
    return node.node_id


def ledger_of(root: Path, name: str) -> Path:
    state = root / name / "state"
    return state / (state / "CURRENT").read_text().strip() / "ledger.db"


def alter(path: Path) -> None:
    """Change a row of a stopped node, so that SQLite finds nothing wrong with it."""
    with sqlite3.connect(path) as db:
        assert db.execute("UPDATE task SET name = 'altered' WHERE seq = 2").rowcount == 1
    db.close()


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


async def test_altered_rows_are_found_by_the_scrub_and_their_node_comes_back_as_a_new_voter(
    mesh: SmallMesh, tmp_path: Path
) -> None:
    old = mesh.nodes["n3"].node_id
    await mesh.stop("n3")
    alter(ledger_of(tmp_path, "n3"))

    await mesh.start("n3", scrub_ms=SCRUB_MS)
    why = await mesh.out_of_service("n3")
    with pytest.raises(Damaged, match="taken out of service"):
        await mesh.start("n3")
    found = await asyncio.to_thread(examine_folder, tmp_path / "n3", ())
    new = await come_back(mesh, "n3")

    assert "majority of the voters" in str(why)
    failed = [name for name, ok, _ in found if ok is False]
    assert failed == ["mark", "digest", "verdict"]
    assert new != old and (tmp_path / "n3" / "state.damaged-1" / "DIVERGED").exists()
    async with mesh.client("n1") as client:
        await until(lambda: old not in mesh.nodes["n1"].replica.view().voters)
        members = {member.node_id: member.voter for member in await client.members()}
    assert members == {mesh.nodes[name].node_id: True for name in ("n1", "n2", "n3")}
    assert read_identity(tmp_path / "n3" / "node.json").node_id == new
    async with mesh.client("n3") as client:
        await client.submit({"subtasks": [{"id": "a", "skill": "s"}]})


async def test_rows_that_cannot_be_read_are_answered_with_data_loss(tmp_path: Path) -> None:
    async with small_mesh(tmp_path) as mesh:
        node = await mesh.start("n1", scrub_ms=0)
        async with mesh.client("n1") as client:
            await client.submit({"subtasks": [{"id": "a", "skill": "s"}]})
        path = node.replica.core.ledger_path
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            query = "SELECT rootpage FROM sqlite_schema WHERE name='task'"
            (page,) = db.execute(query).fetchone()
        with path.open("r+b") as file:
            file.seek((page - 1) * 4_096)
            file.write(b"\xa5" * 4_096)

        async with mesh.channel("n1", mesh.credentials("n1").channel_credentials()) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await MeshStub(channel).Digest(DigestRequest(), timeout=10)

    assert refused.value.code() is grpc.StatusCode.DATA_LOSS


async def test_a_voter_that_is_a_leader_steps_down_at_once_when_its_rows_are_wrong(
    mesh: SmallMesh, tmp_path: Path
) -> None:
    names = {node.node_id: name for name, node in mesh.nodes.items()}
    leader = names[mesh.nodes["n1"].replica.view().leader_id]
    others = [name for name in mesh.nodes if name != leader]
    alter(mesh.nodes[leader].replica.core.ledger_path)

    await mesh.out_of_service(leader)

    async with mesh.client(others[0]) as client:
        await client.submit({"subtasks": [{"id": "a", "skill": "s"}]})
    assert {mesh.nodes[name].replica.core.diverged for name in others} == {""}


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "vote": lambda state: _flip(state / "vote", 7),
    "vote gone": lambda state: (state / "vote").unlink(),
    "journal": lambda state: _flip(min((state / "journal").iterdir()), 90),
    "journal gone": lambda state: shutil.rmtree(state / "journal"),
    "ledger": lambda state: os.truncate(ledger_of(state.parent.parent, "n2"), 8_192),
    "everything": lambda state: shutil.rmtree(state),
}


@pytest.mark.parametrize("what", DAMAGE)
async def test_whatever_is_damaged_refuses_to_start_and_comes_back_when_told(
    mesh: SmallMesh, tmp_path: Path, what: str
) -> None:
    old = mesh.nodes["n2"].node_id
    await mesh.stop("n2")
    DAMAGE[what](tmp_path / "n2" / "state")

    with pytest.raises(Damaged):
        await mesh.start("n2")
    new = await come_back(mesh, "n2")

    assert new != old
    await until(lambda: old not in mesh.nodes["n1"].replica.view().voters)
    aside = tmp_path / "n2" / "state.damaged-1"
    assert aside.exists() == (what != "everything")


async def test_a_sound_folder_is_refused_and_not_touched(mesh: SmallMesh, tmp_path: Path) -> None:
    old = mesh.nodes["n2"].node_id
    await mesh.stop("n2")
    before = fingerprint(tmp_path / "n2")

    config = NodeConfig(data_dir=tmp_path / "n2", listen="127.0.0.1:0", rejoin=True)
    with pytest.raises(ConfigError, match="sound"):
        await rejoining.come_back_as_new(config)

    assert fingerprint(tmp_path / "n2") == before
    assert (await mesh.start("n2")).node_id == old
    await until(lambda: mesh.nodes["n2"].replica.view().writable)
    assert mesh.nodes["n1"].replica.ledger.leaving() == []


async def test_a_stopped_nodes_rows_are_compared_with_peers_that_have_gone_on(
    mesh: SmallMesh, tmp_path: Path
) -> None:
    await mesh.stop("n3")
    async with mesh.client("n1") as client:
        for number in range(20):
            await client.submit({"subtasks": [{"id": "a", "skill": f"x{number}"}]})

    well = await asyncio.to_thread(examine_folder, tmp_path / "n3", ())
    alter(ledger_of(tmp_path, "n3"))
    ill = await asyncio.to_thread(examine_folder, tmp_path / "n3", ())
    one = await asyncio.to_thread(examine_folder, tmp_path / "n3", (mesh.nodes["n1"].address,))

    assert ("digest", True, "3 of 3 voters agree") in well
    assert well[-1][0] == "verdict" and well[-1][1]
    assert [name for name, ok, _ in ill if ok is False] == ["digest", "verdict"]
    assert sum("DIFFERS at revision" in text for _, _, text in ill) == 2
    assert [ok for name, ok, _ in one if name == "digest"] == [None]


async def test_a_rejoin_that_is_cut_short_goes_on_as_the_same_new_node(
    mesh: SmallMesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await mesh.stop("n2")
    home = tmp_path / "n2"
    (home / "state" / "vote").unlink()
    config = NodeConfig(data_dir=home, listen="127.0.0.1:0", rejoin=True, writes_profile=False)
    old = read_identity(home / "node.json")

    # Cut after the mesh has admitted it, before the papers are written.
    with monkeypatch.context() as cut:
        cut.setattr(rejoining, "write_identity", _crash)
        with pytest.raises(_Cut):
            await rejoining.come_back_as_new(config)
    assert read_identity(home / "node.json") == old
    # And again, at each change of a name.
    crash_at = 0
    new_ids = set()
    for crash_at in range(1, 20):
        with monkeypatch.context() as cut:
            cut.setattr(rejoining, "sync_folder", _crash_on(crash_at))
            try:
                if not rejoining.finish(home):
                    await rejoining.come_back_as_new(config)
            except _Cut:
                papers = home / rejoining.REJOINING / "node.json"
                new_ids |= {read_identity(papers).node_id} if papers.exists() else set()
                continue
        break
    assert crash_at > 1

    node = await mesh.start("n2")
    await until(lambda: node.node_id in node.replica.view().voters)
    assert new_ids <= {node.node_id} and node.node_id != old.node_id
    assert not (home / rejoining.REJOINING).exists()
    assert len(mesh.nodes["n1"].replica.ledger.members()) == 3


class _Cut(BaseException):
    """The power goes."""


def _crash(*_: object) -> None:
    raise _Cut


def _crash_on(number: int) -> Callable[[Path], None]:
    count = 0

    def sync(folder: Path) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise _Cut

    return sync


async def test_nobody_may_replace_another_node(mesh: SmallMesh, tmp_path: Path) -> None:
    victim = mesh.nodes["n3"].node_id
    key = new_key()
    authority = Authority.load(tmp_path / "n1" / "node")
    forged = authority.issue(key.public_key(), Principal("join", "00" * 16))
    request = JoinRequest(csr=new_request(key), name="x", address=mesh.nodes["n2"].address)
    node = NodeCredentials.load(tmp_path / "n2" / "node")
    client = mesh.credentials("n2")
    codes = []
    for replaces, credentials in (
        (victim, node.channel_credentials()),  # another node
        (victim, client.channel_credentials()),  # a person
        ("", node.channel_credentials()),  # a node without a token
        (victim, _credentials(node.ca_pem, key, forged)),  # a token's host
    ):
        request.replaces = replaces
        async with mesh.channel("n1", credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await MeshStub(channel).Join(request, timeout=10)
        codes.append(refused.value.code())

    assert codes == [grpc.StatusCode.PERMISSION_DENIED] * 4
    assert victim in mesh.nodes["n1"].replica.view().voters


def _credentials(ca: bytes, key: object, certificate: bytes) -> grpc.ChannelCredentials:
    from mesh.identity import key_pem

    return grpc.ssl_channel_credentials(ca, key_pem(key), certificate)  # type: ignore[arg-type]


async def test_only_nodes_are_given_the_entries_of_the_log(mesh: SmallMesh, tmp_path: Path) -> None:
    node = NodeCredentials.load(tmp_path / "n2" / "node")
    async with mesh.channel("n1", node.channel_credentials()) as channel:
        reply = await MeshStub(channel).Entries(EntriesRequest(after_revision=0), timeout=10)
        ahead = await MeshStub(channel).Entries(EntriesRequest(after_revision=1 << 40), timeout=10)
    async with mesh.channel("n1", mesh.credentials("n2").channel_credentials()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await MeshStub(channel).Entries(EntriesRequest(), timeout=10)

    assert [entry.index for entry in reply.entries] == list(range(1, len(reply.entries) + 1))
    assert not ahead.entries
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_cannot_be_told_from_a_new_host_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no node has been"):
        await rejoining.come_back_as_new(NodeConfig(data_dir=tmp_path, rejoin=True))
    with pytest.raises(ConfigError, match="exclude"):
        NodeConfig(data_dir=tmp_path, rejoin=True, join_token="x")
    async with small_mesh(tmp_path) as mesh:
        await mesh.start("n1")
        await until(lambda: bool(read_members(tmp_path / "n1")))
        await mesh.stop("n1")
    (tmp_path / "n1" / "state" / "vote").unlink()
    config = NodeConfig(data_dir=tmp_path / "n1", listen="127.0.0.1:0", rejoin=True)
    with pytest.raises(BootError, match="no other node"):
        await rejoining.come_back_as_new(config)


async def test_a_working_mesh_notes_its_members_beside_the_state(
    mesh: SmallMesh, tmp_path: Path
) -> None:
    known = {node.node_id: node.address for node in mesh.nodes.values()}

    await until(lambda: all(read_members(tmp_path / name) == known for name in mesh.nodes))

    with contextlib.suppress(OSError):
        (tmp_path / "n1" / "members.json").write_bytes(b"\xff not json")
    assert read_members(tmp_path / "n1") == {}


async def test_a_node_that_cannot_read_its_members_keeps_those_that_it_noted(
    mesh: SmallMesh, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not those that it was told of when it joined, which were fewer."""
    known = {node.node_id: node.address for node in mesh.nodes.values()}
    await until(lambda: read_members(tmp_path / "n2") == known)
    connection = mesh.nodes["n2"].replica.core.ledger.connection

    connection.set_progress_handler(lambda: 1, 1)
    await until(lambda: "the ledger cannot be" in _told_by_the_node(caplog))
    noted = read_members(tmp_path / "n2")
    connection.set_progress_handler(None, 1)

    assert noted == known and len(known) > 2


def _told_by_the_node(caplog: pytest.LogCaptureFixture) -> str:
    """What it tells about once a second, after it has looked for its members."""
    return "\n".join(r.getMessage() for r in caplog.records if r.name == "node.runtime")

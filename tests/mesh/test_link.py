"""One contract, held by both links; and what only the real one can get wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from quorumesh.v1.peer_pb2 import Frame, LinkFrames, LinkHello, Propose
from quorumesh.v1.peer_pb2_grpc import PeerStub, add_PeerServicer_to_server

from mesh.credentials import NodeCredentials, tls_options_for
from mesh.identity import Authority, Principal, key_pem, new_key
from mesh.link import (
    FRAME_BYTES_MAX,
    LINK_FRAMES_MAX,
    SERVER_OPTIONS,
    SLICE_S,
    WIRE_VERSION,
    GrpcLink,
)
from mesh.memory_link import MemoryLink, MemoryNetwork

WAIT_S = 10.0


@dataclass
class Owner:
    """Writes down what its link tells it."""

    told: list[tuple[str, str, int]] = field(default_factory=list)

    def link_up(self, peer: str) -> None:
        self.told.append(("up", peer, 0))

    def link_down(self, peer: str) -> None:
        self.told.append(("down", peer, 0))

    def frame_received(self, peer: str, frame: Frame) -> None:
        self.told.append(("frame", peer, frame.term))

    def terms(self) -> list[int]:
        return [term for what, _, term in self.told if what == "frame"]

    def count(self, what: str) -> int:
        return sum(one[0] == what for one in self.told)


class BrokenOwner(Owner):
    """Has a bug, met when a link comes up."""

    def link_up(self, peer: str) -> None:
        raise AssertionError("a bug")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 (the condition is anything that a test sees)
            await asyncio.sleep(0.005)


def credentials_of(authority: Authority, principal: Principal) -> NodeCredentials:
    key = new_key()
    certificate = authority.issue(key.public_key(), principal)
    return NodeCredentials(authority.certificate_pem, certificate, key_pem(key))


@dataclass
class Two:
    """Links of `a` and `b`, each other's peers."""

    a: Any
    b: Any
    of_a: Owner
    of_b: Owner
    addresses: dict[str, str]
    kill: Callable[[], None]
    authority: Authority

    async def up(self) -> None:
        await until(lambda: self.a.is_up("b") and self.b.is_up("a"))


@asynccontextmanager
async def serving(link: GrpcLink, credentials: NodeCredentials) -> AsyncIterator[str]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    add_PeerServicer_to_server(link.servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials.server_credentials())
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@asynccontextmanager
async def running(*links: Any) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(link.run()) for link in links]
        await asyncio.sleep(0)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


@pytest.fixture(params=["grpc", "memory"])
async def two(request: pytest.FixtureRequest) -> AsyncIterator[Two]:
    authority = Authority.create("m")
    async with AsyncExitStack() as stack:
        if request.param == "memory":
            network = MemoryNetwork()
            a: Any = MemoryLink(network, "a")
            b: Any = MemoryLink(network, "b")
            addresses = {"a": "a:1", "b": "b:1"}

            def kill() -> None:
                network.kill_connection("a", "b")

        else:
            held = {name: credentials_of(authority, Principal("node", name)) for name in "ab"}
            a, b = (GrpcLink(name, held[name]) for name in "ab")
            addresses = {
                name: await stack.enter_async_context(serving(link, held[name]))
                for name, link in (("a", a), ("b", b))
            }

            def kill() -> None:
                a._drop(a._live["b"])

        owners = Owner(), Owner()
        a.bind(owners[0])
        b.bind(owners[1])
        await stack.enter_async_context(running(a, b))
        a.set_peers(addresses)
        b.set_peers(addresses)
        yield Two(a, b, *owners, addresses, kill, authority)


async def test_frames_arrive_in_order_both_ways(two: Two) -> None:
    await two.up()

    for term in range(1, 3_001):
        assert two.a.send("b", Frame(term=term))
        assert two.b.send("a", Frame(term=term))
    await until(lambda: len(two.of_a.terms()) == 3_000 and len(two.of_b.terms()) == 3_000)

    assert two.of_a.terms() == two.of_b.terms() == list(range(1, 3_001))
    assert two.of_a.told[0] == ("up", "b", 0)


async def test_send_before_the_link_is_up_is_refused(two: Two) -> None:
    assert not two.a.send("b", Frame(term=1)) or two.a.is_up("b")
    assert not two.a.send("stranger", Frame(term=1))


async def test_the_frame_above_the_bound_is_refused_and_nothing_queued_is_lost(two: Two) -> None:
    await two.up()

    taken = [two.a.send("b", Frame(term=term)) for term in range(1, LINK_FRAMES_MAX + 2)]
    await until(lambda: len(two.of_b.terms()) == LINK_FRAMES_MAX)

    assert taken == [True] * LINK_FRAMES_MAX + [False]
    assert two.of_b.terms() == list(range(1, LINK_FRAMES_MAX + 1))
    assert two.a.send("b", Frame(term=1))


async def test_queued_bytes_are_bounded_and_a_large_frame_passes(two: Two) -> None:
    await two.up()
    large = Frame(term=1, propose_reply={"refused": "x" * (3 << 20)})

    taken = [two.a.send("b", large) for _ in range(12)]
    await until(lambda: len(two.of_b.terms()) == sum(taken))

    assert taken == [True] * 10 + [False] * 2
    too_large = Frame(term=2, propose_reply={"refused": "x" * FRAME_BYTES_MAX})
    assert not two.a.send("b", too_large)


async def test_a_killed_connection_is_told_and_comes_back_without_stale_frames(two: Two) -> None:
    await two.up()
    for term in range(1, 1_001):
        two.a.send("b", Frame(term=term))

    two.kill()
    await until(lambda: two.of_a.count("up") == 2 and two.of_b.count("up") == 2)
    await two.up()
    assert two.a.send("b", Frame(term=5_000))
    await until(lambda: 5_000 in two.of_b.terms())

    last_up = max(at for at, one in enumerate(two.of_b.told) if one[0] == "up")
    assert two.of_b.told[last_up + 1 :] == [("frame", "a", 5_000)]
    assert [one[0] for one in two.of_b.told if one[0] != "frame"] == ["up", "down", "up"]


async def test_a_peer_taken_out_goes_down_and_comes_back_when_put_in(two: Two) -> None:
    await two.up()

    two.a.set_peers({})
    assert not two.a.is_up("b") and not two.a.send("b", Frame(term=1))
    await until(lambda: two.of_a.count("down") == 1 and not two.b.is_up("a"))
    two.a.set_peers(two.addresses)
    await two.up()

    assert two.of_a.count("up") == 2


# --- what only the real link can get wrong ---


@dataclass
class One:
    link: GrpcLink
    owner: Owner
    address: str
    authority: Authority


@pytest.fixture
async def one() -> AsyncIterator[One]:
    """The link of `b`, served, with `a` as its peer; tests play `a`."""
    authority = Authority.create("m")
    credentials = credentials_of(authority, Principal("node", "b"))
    link, owner = GrpcLink("b", credentials), Owner()
    link.bind(owner)
    link.set_peers({"a": "127.0.0.1:1"})
    async with serving(link, credentials) as address, running(link):
        yield One(link, owner, address, authority)


@asynccontextmanager
async def stream(one: One, credentials: NodeCredentials) -> AsyncIterator[Any]:
    options = tls_options_for("b")
    channel = grpc.aio.secure_channel(
        one.address, credentials.channel_credentials(), options=options
    )
    async with channel:
        yield PeerStub(channel).Link()


async def refusal(one: One, credentials: NodeCredentials, hello: LinkHello) -> grpc.StatusCode:
    async with asyncio.timeout(WAIT_S), stream(one, credentials) as call:
        try:
            await call.write(LinkFrames(hello=hello))
            await call.read()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        code = await call.code()
        assert isinstance(code, grpc.StatusCode)
        return code


def hello_of(node_id: str, *, wire_version: int = WIRE_VERSION) -> LinkHello:
    return LinkHello(node_id=node_id, incarnation=7, wire_version=wire_version)


async def test_a_foreign_certificate_is_refused(one: One) -> None:
    foreign = credentials_of(Authority.create("m"), Principal("node", "a"))
    mixed = NodeCredentials(one.authority.certificate_pem, foreign.certificate_pem, foreign.key_pem)

    assert await refusal(one, mixed, hello_of("a")) is grpc.StatusCode.UNAVAILABLE
    assert one.owner.told == []


async def test_a_client_certificate_is_refused(one: One) -> None:
    client = credentials_of(one.authority, Principal("client", "a"))

    assert await refusal(one, client, hello_of("a")) is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("principal", "hello"),
    [
        ("c", hello_of("a")),
        ("c", hello_of("c")),
        ("a", hello_of("c")),
        ("a", hello_of("a", wire_version=2)),
        ("a", hello_of("")),
    ],
)
async def test_a_wrong_name_or_version_is_refused(
    one: One, principal: str, hello: LinkHello
) -> None:
    credentials = credentials_of(one.authority, Principal("node", principal))

    assert await refusal(one, credentials, hello) is grpc.StatusCode.FAILED_PRECONDITION
    assert one.owner.told == []
    assert one.link.stats().refused_connects == 1


async def test_a_newer_connection_replaces_the_older_whose_frames_are_dropped(one: One) -> None:
    credentials = credentials_of(one.authority, Principal("node", "a"))
    async with stream(one, credentials) as older, stream(one, credentials) as newer:
        await older.write(LinkFrames(hello=hello_of("a")))
        await older.write(LinkFrames(frames=[Frame(term=1)]))
        await until(lambda: one.owner.terms() == [1])

        await newer.write(LinkFrames(hello=hello_of("a"), frames=[]))
        await until(lambda: one.owner.count("up") == 2)
        try:
            await older.write(LinkFrames(frames=[Frame(term=2)]))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        await newer.write(LinkFrames(frames=[Frame(term=3)]))
        await until(lambda: 3 in one.owner.terms())

    assert one.owner.told[:5] == [
        ("up", "a", 0),
        ("frame", "a", 1),
        ("down", "a", 0),
        ("up", "a", 0),
        ("frame", "a", 3),
    ]


async def test_a_dialled_node_that_is_another_one_is_not_believed() -> None:
    authority = Authority.create("m")
    impostor = credentials_of(authority, Principal("node", "c"))
    dialler = GrpcLink("a", credentials_of(authority, Principal("node", "a")))
    owner = Owner()
    dialler.bind(owner)
    server_link = GrpcLink("b", impostor)
    server_link.set_peers({"a": "127.0.0.1:1"})
    async with serving(server_link, impostor) as address, running(dialler):
        why = await dialler._dial("b", address)

    assert "UNAVAILABLE" in why
    assert owner.told == []


async def test_a_bug_of_the_owner_stops_the_link() -> None:
    authority = Authority.create("m")
    held = {name: credentials_of(authority, Principal("node", name)) for name in "ab"}
    a, b = (GrpcLink(name, held[name]) for name in "ab")
    a.bind(Owner())
    b.bind(BrokenOwner())
    b.set_peers({"a": "127.0.0.1:1"})
    async with serving(b, held["b"]) as address, running(a):
        a.set_peers({"b": address})
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(BaseExceptionGroup) as caught:
                await b.run()

    assert caught.value.split(AssertionError)[0] is not None


class SlowOwner(Owner):
    """Takes longer with each frame than the slice of one message."""

    def frame_received(self, peer: str, frame: Frame) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SLICE_S
        while loop.time() < until_s:
            pass
        super().frame_received(peer, frame)


async def test_the_loop_has_its_turn_between_the_frames_of_one_long_message(one: One) -> None:
    owner, known = SlowOwner(), list[int]()
    one.link.bind(owner)
    credentials = credentials_of(one.authority, Principal("node", "a"))

    async def look() -> None:
        while len(owner.terms()) < 4:
            known.append(len(owner.terms()))
            await asyncio.sleep(0)

    async with stream(one, credentials) as call:
        await call.write(LinkFrames(hello=hello_of("a")))
        await call.read()
        await call.write(LinkFrames(frames=[Frame(term=term) for term in (1, 2, 3, 4)]))
        async with asyncio.timeout(WAIT_S):
            await look()

    assert owner.terms() == [1, 2, 3, 4]
    assert {1, 2, 3} <= set(known)


async def test_proposals_of_many_frames_share_messages(one: One) -> None:
    credentials = credentials_of(one.authority, Principal("node", "a"))
    async with stream(one, credentials) as call:
        await call.write(LinkFrames(hello=hello_of("a")))
        await call.read()
        await until(lambda: one.link.is_up("a"))
        for _ in range(600):
            one.link.send("a", Frame(term=1, propose=Propose()))
        sizes = [len((await call.read()).frames) for _ in range(3)]

    assert sizes == [256, 256, 88]

"""Hostile requests, worker streams and link messages, into the services of a real replica.

Each is answered, or refused with a status of the one table: nothing else may come out of a service.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from quorumesh.v1 import locks_pb2, mesh_pb2, tasks_pb2
from quorumesh.v1 import workers_pb2 as workers
from quorumesh.v1.ledger_pb2 import AddToken, Bootstrap, Cancel, Command
from quorumesh.v1.peer_pb2 import Frame, LinkFrames, LinkHello, Propose

from consensus.config import Ports, ReplicaConfig
from consensus.ledger import LEASE_MS, invariants
from consensus.ports import LinkHandler
from consensus.replica import Replica
from mesh.credentials import NodeCredentials
from mesh.identity import Principal, key_pem, new_key, new_request
from mesh.link import GrpcLink
from mesh.tokens import new_token
from node.api import guard
from node.api.feed import Feed
from node.api.locks import LocksService
from node.api.mesh import About, MeshService, Roster
from node.api.proposing import Proposer
from node.api.reading import LongReads
from node.api.sessions import Sessions
from node.api.tasks import TasksService
from node.api.workers import WorkersService
from node.joining import Joining
from node.system import SystemClock
from tests.hostile.mesh_of_one import SPECS, honest_commands
from tests.hostile.mutating import HONEST_SHARE, bend, lie
from tests.hostile.papers import authority
from tests.hostile.reads import KeptReads
from tests.hostile.running import Kind, Target
from tests.hostile.skipping import SkippingLoop

RAW_SHARE = 0.25
ANSWER_S_MAX = 20.0
CALL_S = 0.05  # what a call may wait: some wait for what never comes
CALLS_AT_A_TIME = 32
STREAMS_AT_A_TIME, STREAM_MESSAGES = 8, 4
REPLIES_MAX = 4
TASKS = 4  # some more than a page holds
IN_THREADS_SHARE = 0.2  # of rounds, whose long reads are in threads as on a node
TASK, ENDED_TASK = b"task1", b"task2"


class Aborted(Exception):
    """The call was ended with a status."""


class Context:
    """What gRPC hands a service, as far as services use it."""

    def __init__(self, principal: str, call_s: float = CALL_S) -> None:
        self._principal, self._call_s = principal, call_s
        self.written: deque[Message] = deque(maxlen=REPLIES_MAX)
        self.written_count = 0

    def auth_context(self) -> Mapping[str, list[bytes]]:
        kind = self._principal.partition(":")[0]
        return {} if kind == "local" else {"x509_common_name": [self._principal.encode()]}

    def peer(self) -> str:
        return "unix:"

    def time_remaining(self) -> float:
        return self._call_s

    async def write(self, message: Message) -> None:
        self.written.append(message)
        self.written_count += 1
        if self.written_count >= REPLIES_MAX and self._principal.startswith("client"):
            raise Aborted("the caller has seen enough")

    async def abort(self, code: grpc.StatusCode, details: str = "", metadata: Any = ()) -> None:
        assert isinstance(code, grpc.StatusCode) and code is not grpc.StatusCode.INTERNAL, details
        raise Aborted(f"{code.name}: {details}")


class NoLink:
    """A mesh of one node has nobody to speak to."""

    def bind(self, handler: LinkHandler) -> None:
        pass

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        pass

    def send(self, peer: str, frame: Frame) -> bool:
        return False

    def is_up(self, peer: str) -> bool:
        return False


class Soon:
    """Work of other threads, done by the loop itself, one turn later."""

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def act() -> None:
            work()
            done(None)

        asyncio.get_event_loop().call_soon(act)


class Served:
    """A node of one with all its services, on a loop of its own that runs while it is fed."""

    def __init__(self, rng: Random, folder: Path) -> None:
        self.rng = rng
        self.loop = SkippingLoop(self.is_busy)
        asyncio.set_event_loop(self.loop)
        founding = Bootstrap(
            mesh_id="m", node_id="n1", name="one", address="h:1", apply_version_max=1
        )
        config = ReplicaConfig("n1", "h:1", folder / "state", founding=founding, scrub_ms=0)
        ports = Ports(NoLink(), self.loop, Soon(), rng, incarnation=7)
        self.replica = Replica(config, ports)
        reads = LongReads if rng.random() < IN_THREADS_SHARE else KeptReads
        self.news, self.reads = Feed(), reads(lambda: self.replica.core.ledger_path)
        self.sessions = Sessions(
            self.replica,
            lease_ms=LEASE_MS,
            monotonic_ms=self.loop.monotonic_ms,
            on_progress=self.news.soft,
        )
        self.replica.subscribe(self.news)
        self.replica.subscribe(self.sessions)
        self.proposer = Proposer(self.replica, is_up=lambda peer: False)
        self.parts = [
            self.loop.create_task(self.replica.run()),
            self.loop.create_task(self.sessions.run()),
        ]
        for command in (*honest_commands(TASKS), Command(cancel=Cancel(task_id=ENDED_TASK))):
            self.run(self.replica.propose([command], timeout_ms=10_000))

    def is_busy(self) -> bool:
        """Whether time must pass, because somebody else is at work."""
        return self.reads._waiting_count > 0

    def admitting(self, method: str) -> Callable[[Any], Awaitable[None]]:
        """What looks at who calls, as the interceptor of a node does."""
        has_left = self.replica.core.membership.has_left

        async def admit(context: Any) -> None:
            await guard._admit(method, context, has_left)

        return admit

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, ANSWER_S_MAX))

    def check(self) -> None:
        for part in self.parts:
            assert not part.done(), part.exception()
        found = invariants.violations(self.replica.ledger.connection)
        assert found == [], found

    def close(self) -> None:
        for part in self.parts:
            part.cancel()
        with suppress(asyncio.CancelledError):
            self.loop.run_until_complete(asyncio.gather(*self.parts, return_exceptions=True))
        self.reads.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


class Called(Served):
    """Calls one method with hostile requests, behind the guard that real calls go through."""

    def __init__(self, name: str, honest: Message, rng: Random, folder: Path) -> None:
        self._honest = honest
        super().__init__(rng, folder)
        service, method = name.split("/")
        behavior = getattr(self._service(service), method)
        is_stream = method in ("Watch",)
        wrap = guard._streaming if is_stream else guard._answering
        self._answer = wrap(behavior, self.admitting(f"/quorumesh.v1.{name}"))
        self._principal = "node:n2" if method == "Entries" else "client:c"
        if self._is_join:
            self._honest = self._invite(honest)  # type: ignore[arg-type]

    @property
    def _is_join(self) -> bool:
        return isinstance(self._honest, mesh_pb2.JoinRequest)

    def is_busy(self) -> bool:
        """Hosts that would join are dialled, and their tokens are not to lapse."""
        return self._is_join or super().is_busy()

    def _invite(self, request: mesh_pb2.JoinRequest) -> mesh_pb2.JoinRequest:
        """The request of a host that has a token and that answers when it is dialled."""
        server = self.run(asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0))
        token = new_token(authority(), ["h:1"], ttl_ms=60_000, now_wall_ms=SystemClock().wall_ms())
        add = AddToken(token_id=token.token_id, secret_digest=token.secret_digest, ttl_ms=3_600_000)
        self.run(self.replica.propose([Command(add_token=add)], timeout_ms=10_000))
        self._principal = f"join:{token.token_id.hex()}"
        made = mesh_pb2.JoinRequest()
        made.CopyFrom(request)
        made.token_id, made.secret = token.token_id, token.secret
        made.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return made

    def _service(self, name: str) -> object:
        if name == "Tasks":
            return TasksService(self.replica, self.proposer, self.news, self.reads)
        if name == "Locks":
            return LocksService(self.replica)
        roster = Roster(self.replica, lambda peer: False)
        joining = Joining(
            mesh_id="m",
            address="h:1",
            authority=authority(),
            proposer=self.proposer,
            members=roster.members,
            wall_ms=SystemClock().wall_ms,
        )
        about = About("m", "one", "asyncio", "0")
        return MeshService(self.replica, roster, self.proposer, joining, about, reads=self.reads)

    def make(self, rng: Random) -> object:
        """Requests that come at the same time."""
        return [self._request(rng) for _ in range(CALLS_AT_A_TIME)]

    def _request(self, rng: Random) -> Message | bytes:
        if rng.random() < HONEST_SHARE:
            return self._honest
        # A bent address is one that somebody might have: none but this machine's is dialled.
        if rng.random() < RAW_SHARE and not self._is_join:
            return bend(rng, self._honest.SerializeToString())
        core = self.replica.core
        return lie(rng, self._honest, [core.applied_index, core.ledger.counted_ms])

    async def answer(self, request: Message) -> None:
        """As with gRPC, the call ends at its deadline: a stream may have nothing more to say."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CALL_S):
                await self._answer(request, Context(self._principal))

    def feed(self, given: object) -> int:
        assert isinstance(given, list)
        requests = [request for one in given if (request := self._decoded(one)) is not None]
        return sum(self.run(self._answer_all(requests)))

    def _decoded(self, given: Message | bytes) -> Message | None:
        try:
            return type(self._honest).FromString(given) if isinstance(given, bytes) else given
        except DecodeError:
            return None

    async def _answer_all(self, requests: list[Message]) -> list[bool]:
        return await asyncio.gather(*(self._is_answered(request) for request in requests))

    async def _is_answered(self, request: Message) -> bool:
        try:
            await self.answer(request)
        except Aborted:
            return False
        return True


class Worked(Served):
    """Worker streams at the same time: an honest hello or a hostile one, then messages that lie."""

    def __init__(self, rng: Random, folder: Path) -> None:
        super().__init__(rng, folder)
        self._service = WorkersService(self.sessions, node_id="n1")

    def make(self, rng: Random) -> object:
        held = [key for seat in self.sessions._seats.values() for key in seat.held]
        near = [number for key in held for number in key]
        return [self._stream(rng, near) for _ in range(STREAMS_AT_A_TIME)]

    def _stream(self, rng: Random, near: list[int]) -> list[Message]:
        session = bytes([rng.randrange(STREAMS_AT_A_TIME)]) * 16
        hello = workers.FromWorker(
            hello=workers.WorkerHello(session=session, name="w", skills=["s", "s2"], slots=4)
        )
        if rng.random() < 0.3:
            hello = lie(rng, hello)
        done = workers.FromWorker(
            completions=[workers.Completion(subtask_ref=1 << 20 | 1, fence=1)],
            failures=[workers.FailureReport(subtask_ref=1 << 20 | 2, fence=2)],
            progress=[workers.ProgressReport(subtask_ref=1 << 20 | 1, fence=1, fraction=0.5)],
            offer=workers.SlotOffer(slots=2),
        )
        return [hello, *(lie(rng, done, near) for _ in range(STREAM_MESSAGES - 1))]

    def feed(self, given: object) -> int:
        assert isinstance(given, list)
        return sum(self.run(self._answer_all(given)))

    async def _answer_all(self, streams: list[list[workers.FromWorker]]) -> list[int]:
        return await asyncio.gather(*(self._read_count(messages) for messages in streams))

    async def _read_count(self, messages: list[workers.FromWorker]) -> int:
        """How many messages of a stream were read before it ended; none if that was with a status."""
        count = 0

        async def requests() -> AsyncIterator[workers.FromWorker]:
            nonlocal count
            for message in messages:
                count += 1
                yield message
                await asyncio.sleep(0)

        answer = guard._streaming(self._service.Work, self.admitting("/quorumesh.v1.Workers/Work"))
        try:
            await answer(requests(), Context("local:worker"))
        except Aborted:
            return 0
        return count


class Owner:
    """Counts what its link tells it."""

    def __init__(self) -> None:
        self.ups = self.downs = self.frames = 0

    def link_up(self, peer: str) -> None:
        self.ups += 1

    def link_down(self, peer: str) -> None:
        self.downs += 1

    def frame_received(self, peer: str, frame: Frame) -> None:
        self.frames += 1


class Linked:
    """Streams that peers open: a first message and others, honest and hostile."""

    def __init__(self, rng: Random, folder: Path) -> None:
        self._loop = asyncio.new_event_loop()
        key = new_key()
        certificate = authority().issue(key.public_key(), Principal("node", "n2"))
        papers = NodeCredentials(authority().certificate_pem, certificate, key_pem(key))
        self._link, self._owner = GrpcLink("n2", papers, rng=rng), Owner()
        self._link.bind(self._owner)
        self._loop.run_until_complete(self._begin())

    async def _begin(self) -> None:
        self._link.set_peers({"n1": "h:1", "n3": "h:3"})

    def make(self, rng: Random) -> object:
        hello = LinkHello(node_id="n1", incarnation=9, wire_version=1, address="h:1")
        first = LinkFrames(hello=hello)
        second = LinkFrames(frames=[Frame(term=3, propose=Propose()), Frame(term=4)])
        messages = [first, second, second]
        at = rng.randrange(3)
        messages[at] = lie(rng, messages[at], [1, 2])
        data = [message.SerializeToString() for message in messages]
        if rng.random() < RAW_SHARE:
            data[at] = bend(rng, data[at])
        return data

    def feed(self, given: object) -> int:
        assert isinstance(given, list)
        try:
            messages = [LinkFrames.FromString(data) for data in given]
        except DecodeError:
            return 0  # gRPC ends the stream
        if self._link.refusal("node:n1", messages[0].hello):
            return 0
        self._loop.run_until_complete(self._converse(messages))
        return 1

    async def _converse(self, messages: list[LinkFrames]) -> None:
        waiting = deque(messages[1:])

        async def read() -> object:
            return waiting.popleft() if waiting else grpc.aio.EOF

        async def write(message: LinkFrames) -> None:
            assert message.ByteSize() < 1_000

        await self._link.accept(read, write, messages[0].hello)

    def check(self) -> None:
        stats = self._link.stats()
        assert self._owner.ups == self._owner.downs == stats.connects, "a link was told wrongly"
        assert stats.up == () and stats.frames_queued == 0
        assert not self._link._failed, self._link._failed

    def close(self) -> None:
        self._loop.close()


def _submit(task_id: bytes) -> tasks_pb2.SubmitRequest:
    return tasks_pb2.SubmitRequest(task_id=task_id, spec=SPECS[0])


_REQUESTS: dict[str, Message] = {
    "Tasks/Submit": _submit(b"new"),
    "Tasks/SubmitMany": tasks_pb2.SubmitManyRequest(submits=[_submit(b"x"), _submit(b"y")]),
    "Tasks/Get": tasks_pb2.GetTaskRequest(task_id=TASK, with_subtasks=True, with_outputs=True),
    "Tasks/List": tasks_pb2.ListTasksRequest(page_size=3),
    "Tasks/Watch": tasks_pb2.WatchTaskRequest(task_id=TASK),
    "Tasks/Result": tasks_pb2.ResultRequest(task_id=ENDED_TASK),
    "Tasks/Cancel": tasks_pb2.CancelTaskRequest(task_id=TASK),
    "Tasks/Story": tasks_pb2.StoryRequest(task_id=TASK, page_size=2),
    "Locks/List": locks_pb2.ListLocksRequest(page_size=2),
    "Mesh/Status": mesh_pb2.StatusRequest(),
    "Mesh/Members": mesh_pb2.MembersRequest(),
    "Mesh/CreateToken": mesh_pb2.CreateTokenRequest(ttl_ms=1_000),
    "Mesh/Join": mesh_pb2.JoinRequest(csr=new_request(new_key()), name="two"),
    "Mesh/Digest": mesh_pb2.DigestRequest(at_least_revision=1),
    "Mesh/Entries": mesh_pb2.EntriesRequest(after_revision=1),
}


# What these leave behind fills a ledger, in which less and less is taken.
_WRITES = {"Tasks/Submit", "Tasks/SubmitMany", "Mesh/CreateToken", "Mesh/Join"}


def _begin(name: str, honest: Message, rng: Random, folder: Path) -> Target:
    return Called(name, honest, rng, folder)


KINDS = (
    *(
        Kind(
            f"call-{name.replace('/', '-').lower()}",
            partial(_begin, name, honest),
            round_inputs=(64 if name in _WRITES else 256) * CALLS_AT_A_TIME,
            check_every_inputs=64 * CALLS_AT_A_TIME,
            ci_inputs=10 * CALLS_AT_A_TIME,
            inputs_per_feed=CALLS_AT_A_TIME,
        )
        for name, honest in _REQUESTS.items()
    ),
    Kind(
        "stream-worker",
        Worked,
        round_inputs=4_000,
        check_every_inputs=2_000,
        ci_inputs=320,
        inputs_per_feed=STREAMS_AT_A_TIME * STREAM_MESSAGES,
    ),
    Kind("stream-link", Linked),
)

"""One real node's core whose peers are played: honest ones to bring it somewhere, then whoever."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from quorumesh.v1.ledger_pb2 import AddToken, Admit, Bootstrap, Command
from quorumesh.v1.peer_pb2 import AppendEntries, AppendReply, Frame, PreVoteReply, VoteReply
from quorumesh.v1.tasks_pb2 import BallotSpec, TaskSpec

from consensus.core import Core, Ports, ReplicaConfig
from consensus.ledger import invariants
from consensus.ports import LinkHandler
from tests.consensus.cluster import AtOnce
from tests.ledger.world import claim_command, open_command, sub, submit_command

PEERS = ("n2", "n3")
STRANGER = "n4"  # a member without a vote
SENT_MAX = 64  # what peers answer is of the last turns, and each may be as large as a frame
TURNS_MAX = 400
TURN_MS = 20
TEMPLATE_TASKS = 3  # one of each of SPECS: of a small ledger more of what is bent matters


class Clock:
    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.now_ms = now_ms

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.now_ms


class Link:
    """Takes what is sent and keeps the last of it, for those who play the peers."""

    def __init__(self) -> None:
        self.sent: deque[tuple[str, Frame]] = deque(maxlen=SENT_MAX)

    def bind(self, handler: LinkHandler) -> None:
        pass

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        pass

    def is_up(self, peer: str) -> bool:
        return peer in PEERS or peer == STRANGER

    def send(self, peer: str, frame: Frame) -> bool:
        self.sent.append((peer, frame))
        return True


class Later:
    """Work that others would do in a thread, done when asked for."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], None], Callable[[BaseException | None], None]]] = (
            deque()
        )

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self._waiting.append((work, done))

    def drain(self) -> None:
        for _ in range(len(self._waiting)):
            AtOnce().run(*self._waiting.popleft())


class Node:
    """A core on a folder. `turn` is one turn of its loop; `answer` lets honest peers speak."""

    def __init__(self, root: Path, rng: Random, *, node_id: str = "n1") -> None:
        self.clock, self.link, self.later = Clock(), Link(), Later()
        founding = Bootstrap(
            mesh_id="m", node_id="n1", name="one", address="h1:1", apply_version_max=1
        )
        config = ReplicaConfig(
            node_id=node_id,
            address="h1:1",
            root=root,
            founding=founding if node_id == "n1" else None,
            scrub_ms=0,
            compact_entries=400,
            keep_entries=50,
            segment_bytes_max=65_536,
        )
        ports = Ports(
            link=self.link, clock=self.clock, background=self.later, rng=rng, incarnation=7
        )
        self.core = Core(config, ports, on_wake=lambda: None)
        for peer in (*PEERS, STRANGER):
            self.core.link_up(peer)

    def turn(self, ms: int = TURN_MS) -> None:
        self.clock.now_ms += ms
        self.core.turn()
        self.later.drain()

    def answer(self) -> None:
        """What was sent since is answered as a peer would that agrees with everything."""
        sent = list(self.link.sent)
        self.link.sent.clear()
        for peer, frame in sent:
            term = frame.term
            match frame.WhichOneof("kind"):
                case "append":
                    reply = AppendReply(next_index=_after(frame.append), success=True)
                    self.core.frame_received(peer, Frame(term=term, append_reply=reply))
                case "pre_vote":
                    given = PreVoteReply(term=frame.pre_vote.term)
                    self.core.frame_received(peer, Frame(term=term, pre_vote_reply=given))
                case "request_vote":
                    self.core.frame_received(peer, Frame(term=term, vote_reply=VoteReply()))

    def until(self, condition: Callable[[], bool]) -> bool:
        """Let time pass among honest peers until it holds; False when it does not come to hold."""
        for _ in range(TURNS_MAX):
            if condition():
                return True
            self.turn()
            self.answer()
        return condition()

    def lead(self) -> bool:
        """Lead, with everything applied, as far as the peers' past words allow."""
        engine = self.core.engine
        return self.until(
            lambda: engine.role == "leader" and self.core.applied_index == engine.last_index
        )

    def follow(self, peer: str = "n2") -> None:
        """Hear from a leader of a newer term."""
        engine = self.core.engine
        beat = AppendEntries(
            prev_index=engine.last_index, prev_term=self.core.journal.last_term, commit_index=0
        )
        self.core.frame_received(peer, Frame(term=engine.term + 1, append=beat))

    def propose(self, *commands: Command) -> None:
        ended: list[object] = []
        self.core.propose(commands, deadline_ms=self.clock.now_ms + 60_000, done=ended.append)
        assert self.until(lambda: bool(ended)) and isinstance(ended[0], list), ended

    def check(self) -> None:
        found = invariants.violations(self.core.ledger.connection)
        assert found == [], found
        rows = self.core.journal.rows
        assert [row[1] for row in rows] == list(range(rows[0][1], rows[0][1] + len(rows)))
        assert self.core.engine.commit_index <= self.core.engine.last_index


def _after(append: AppendEntries) -> int:
    return (append.entries[-1].index if append.entries else append.prev_index) + 1


SPECS = (
    TaskSpec(name="a", subtasks=[sub("a"), sub("b", "a"), sub("c", "a", "b", optional=True)]),
    TaskSpec(
        name="v",
        subtasks=[*(sub(f"v{n}", ballot="b") for n in range(3)), sub("z", "b")],
        ballots=[BallotSpec(id="b")],
    ),
    TaskSpec(name="t", subtasks=[sub("a", timeout_ms=700, skill="s2")], deadline_ms=5_000),
)


def honest_commands(task_count: int = 9) -> list[Command]:
    """What brings a ledger to a state in which every command has something to do."""
    made = [
        Command(add_token=AddToken(token_id=b"k" * 16, secret_digest=b"s" * 32, ttl_ms=3_600_000))
    ]
    for number in (2, 3, 4):
        token = bytes([number]) * 16
        made.append(
            Command(add_token=AddToken(token_id=token, secret_digest=b"s" * 32, ttl_ms=60_000))
        )
        admit = Admit(
            token_id=token,
            secret_digest=b"s" * 32,
            node_id=f"n{number}",
            name=f"node{number}",
            address=f"h{number}:1",
            apply_version_max=1,
        )
        made.append(Command(admit=admit))
    made += [submit_command(f"task{n}", SPECS[n % len(SPECS)]) for n in range(task_count)]
    made += [open_command(f"w{n}", "s s2", nonce=n + 1) for n in range(2)]
    made += [claim_command(f"w{n}", 1, 1, 3) for n in range(2)]
    return made


_template: list[tempfile.TemporaryDirectory[str]] = []
_files: dict[Path, bytes] = {}  # of the template, by their place in it


def template(beside: Path) -> Path:
    """A folder of a node n1 that has voted and applied things; made once in a process."""
    if not _template:
        made = tempfile.TemporaryDirectory(prefix="hostile-template-", dir=beside.parent)
        node = Node(Path(made.name), Random(1))
        assert node.lead()
        node.propose(*honest_commands(TEMPLATE_TASKS))
        assert node.until(lambda: len(node.core.engine.voters) >= 3), node.core.engine.voters
        assert node.lead()
        node.core.close()
        _template.append(made)
    return Path(_template[0].name)


def copy_of_template(folder: Path, number: int) -> Path:
    """A folder like the template, written from memory: thousands are made."""
    if not _files:
        source = template(folder)
        found = (path for path in sorted(source.rglob("*")) if path.is_file())
        _files.update({path.relative_to(source): path.read_bytes() for path in found})
    root = folder / f"state-{number}"
    for place in {path.parent for path in _files}:
        (root / place).mkdir(parents=True, exist_ok=True)
    for path, data in _files.items():
        (root / path).write_bytes(data)
    return root

"""Hostile frames, of every kind, into a node in every role.

Whoever sends them is a peer with a certificate, so it may end a term or fill a log. It must not
make a node fail, forget or contradict what was committed, or grow without bound.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from google.protobuf.message import DecodeError
from quorumesh.v1 import peer_pb2 as peer
from quorumesh.v1.ledger_pb2 import Command, MembershipChange, Proposal

from consensus.engine.following import Contradiction
from consensus.errors import Damaged
from consensus.ledger import CannotApply
from tests.hostile.mesh_of_one import (
    PEERS,
    STRANGER,
    Node,
    copy_of_template,
    honest_commands,
)
from tests.hostile.mutating import BLOBS, bend, lie
from tests.hostile.running import Kind, Target
from tests.ledger.world import entry_of

ROLES = ("leader", "follower", "candidate", "passive")
TURN_EVERY_INPUTS = 8
AGAIN_EVERY_INPUTS = 250  # then the role is taken up anew
RAW_SHARE = 0.25
SENDERS = (*PEERS, *PEERS, STRANGER)
Honest = Callable[[Random, Node], peer.Frame]


class Hostile:
    """A node in one role that is sent frames of one kind."""

    def __init__(self, honest: Honest, rng: Random, folder: Path) -> None:
        self._honest, self._rng, self._folder = honest, rng, folder
        self._role = rng.choice(ROLES)
        self._count = 0
        self._starts = 0
        self.stops = 0
        self._node = self._start()

    def _start(self) -> Node:
        self._starts += 1
        root = copy_of_template(self._folder, self._starts)
        node = Node(root, self._rng, node_id="n4" if self._role == "passive" else "n1")
        self._commit, self._term = node.core.engine.commit_index, node.core.engine.term
        self._held: dict[int, int] = {}
        self._take_role(node)
        return node

    def _take_role(self, node: Node) -> None:
        if self._role == "leader":
            node.lead()
        elif self._role == "follower":
            node.follow()
        elif self._role == "candidate":
            for _ in range(60):
                node.turn()

    def make(self, rng: Random) -> object:
        frame = self._honest(rng, self._node)
        frame.term = self._node.core.engine.term
        if rng.random() < RAW_SHARE:
            return bend(rng, frame.SerializeToString())
        return lie(rng, frame, self._near())

    def _near(self) -> list[int]:
        core = self._node.core
        engine, journal = core.engine, core.journal
        return [
            *(engine.term, engine.term, engine.commit_index, engine.last_index),
            *(journal.base_index, journal.last_term, core.counted.now_ms()),
        ]

    def feed(self, given: object) -> bool:
        try:
            frame = peer.Frame.FromString(given) if isinstance(given, bytes) else given
        except DecodeError:
            return False
        assert isinstance(frame, peer.Frame)
        core = self._node.core
        refused = core.engine.counters.frames_refused
        self._count += 1
        try:
            core.frame_received(self._rng.choice(SENDERS), frame)
            if self._count % TURN_EVERY_INPUTS == 0:
                self._node.turn(7)
            if self._count % AGAIN_EVERY_INPUTS == 0:
                self._take_role(self._node)
        except (CannotApply, Contradiction, Damaged):
            # Documented: who is told to apply what it does not know, or to cut what is committed,
            # or is outvoted by a scrub, stops.
            self.stops += 1
            core.close()
            shutil.rmtree(core.config.root)
            self._node = self._start()
            return False
        self._look()
        return core.engine.counters.frames_refused == refused

    def _look(self) -> None:
        engine = self._node.core.engine
        assert engine.failed is None, engine.failed
        assert engine.commit_index >= self._commit, "the commit index went back"
        assert engine.term >= self._term, "the term went back"
        self._commit, self._term = engine.commit_index, engine.term

    def check(self) -> None:
        """What was committed is there as it was; the ledger is sound; the folder opens again."""
        node, journal = self._node, self._node.core.journal
        node.check()
        for index in range(journal.base_index + 1, node.core.engine.commit_index + 1):
            crc = zlib.crc32(journal.command_at(index), journal.term_at(index) or 0)
            assert self._held.setdefault(index, crc) == crc, f"committed entry {index} changed"

    def close(self) -> None:
        self._node.core.close()


class Reopened(Hostile):
    """As Hostile; at each check the node is stopped and comes back from its folder."""

    def check(self) -> None:
        super().check()
        core = self._node.core
        before = (core.applied_index, core.engine.term, core.ledger.digest)
        core.close()
        node = Node(core.config.root, self._rng, node_id=core.config.node_id)
        assert (node.core.applied_index, node.core.ledger.digest) == (before[0], before[2])
        assert node.core.engine.term >= before[1], "the term was forgotten"
        self._node = node
        self._commit, self._term = node.core.engine.commit_index, node.core.engine.term
        self._take_role(node)


def _append(rng: Random, node: Node) -> peer.Frame:
    core = node.core
    last, term = core.journal.last_index, core.engine.term
    commands = [b"\x00" + entry_of(rng.choice(_COMMANDS)).SerializeToString(), b"\x01"]
    change = MembershipChange(add=rng.random() < 0.5, node_id="n4", address="h4:1")
    commands.append(b"\x02" + change.SerializeToString())
    append = peer.AppendEntries(
        prev_index=last,
        prev_term=core.journal.last_term,
        commit_index=last + rng.choice((0, 1, 3)),
        counted_ms=core.counted.now_ms(),
    )
    for number in range(rng.choice((0, 1, 1, 2, 4))):
        append.entries.add(index=last + 1 + number, term=term, command=rng.choice(commands))
    return peer.Frame(append=append)


def _append_reply(rng: Random, node: Node) -> peer.Frame:
    last = node.core.journal.last_index
    is_reset = rng.random() < 0.3
    reply = peer.AppendReply(next_index=last + 1, reset=is_reset, success=not is_reset)
    return peer.Frame(append_reply=reply)


def _vote(kind: str, rng: Random, node: Node) -> peer.Frame:
    core = node.core
    held = {"last_index": core.journal.last_index, "last_term": core.journal.last_term}
    term = core.engine.term + 1
    match kind:
        case "request_vote":
            return peer.Frame(request_vote=peer.RequestVote(transfer=rng.random() < 0.3, **held))
        case "pre_vote":
            return peer.Frame(pre_vote=peer.PreVote(term=term, **held))
        case "pre_vote_reply":
            return peer.Frame(pre_vote_reply=peer.PreVoteReply(term=term))
        case "timeout_now":
            return peer.Frame(timeout_now=peer.TimeoutNow())
        case _:
            return peer.Frame(vote_reply=peer.VoteReply())


def _snapshot(rng: Random, node: Node) -> peer.Frame:
    index = node.core.engine.commit_index + rng.choice((1, 10, 10))
    data = rng.choice(BLOBS) or b"x"
    chunk = peer.SnapshotChunk(
        index=index,
        entry_term=node.core.engine.term,
        offset=rng.choice((0, 0, len(data))),
        data=data,
        total_bytes=len(data) * rng.choice((1, 2)),
        digest=b"d" * 32,
        commit_index=index,
    )
    return peer.Frame(snapshot=chunk)


def _snapshot_reply(rng: Random, node: Node) -> peer.Frame:
    latest = node.core.snapshots.latest()
    index = latest.index if latest is not None else node.core.journal.last_index
    reply = peer.SnapshotReply(index=index, next_offset=4_096, installed=rng.random() < 0.4)
    return peer.Frame(snapshot_reply=reply)


def _propose(rng: Random, node: Node) -> peer.Frame:
    propose = peer.Propose()
    for number in range(rng.choice((0, 1, 1, 3))):
        propose.proposals.append(
            Proposal(incarnation=7, sequence=number, command=rng.choice(_COMMANDS))
        )
    if rng.random() < 0.1:
        propose.change.CopyFrom(
            MembershipChange(add=rng.random() < 0.5, node_id=rng.choice(("n2", "n4", "n9")))
        )
    return peer.Frame(propose=propose)


def _propose_reply(rng: Random, node: Node) -> peer.Frame:
    reply = peer.ProposeReply(incarnation=7, sequences=[1, 2, 3], refused="NOT_LEADER")
    if rng.random() < 0.3:
        reply.change.CopyFrom(MembershipChange(add=True, node_id="n4"))
    return peer.Frame(propose_reply=reply)


def _scrub_digest(rng: Random, node: Node) -> peer.Frame:
    digest = peer.ScrubDigest(revision=node.core.applied_index, digest=b"d" * 32)
    return peer.Frame(scrub_digest=digest)


_COMMANDS: list[Command] = honest_commands()
_HONEST: dict[str, Honest] = {
    "append": _append,
    "append_reply": _append_reply,
    **{
        name: partial(_vote, name)
        for name in ("request_vote", "vote_reply", "pre_vote", "pre_vote_reply", "timeout_now")
    },
    "snapshot": _snapshot,
    "snapshot_reply": _snapshot_reply,
    "propose": _propose,
    "propose_reply": _propose_reply,
    "scrub_digest": _scrub_digest,
}


def _begin(honest: Honest, rng: Random, folder: Path) -> Target:
    return Reopened(honest, rng, folder)


KINDS = tuple(
    Kind(
        f"frame-{name.replace('_', '-')}",
        partial(_begin, honest),
        round_inputs=5_000,
        check_every_inputs=2_500,
        ci_inputs=1_500,
    )
    for name, honest in _HONEST.items()
)


def kinds_are_all_there() -> bool:
    """Whether every kind of frame that peers may send has hostile ones here."""
    return set(_HONEST) == {field.name for field in peer.Frame.DESCRIPTOR.oneofs[0].fields}

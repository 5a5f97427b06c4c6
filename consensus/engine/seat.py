"""What one node holds while it takes part: its parts, its voters, its peers' progress."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from quorumesh.v1.ledger_pb2 import MembershipChange
from quorumesh.v1.peer_pb2 import Frame

from consensus.engine.codec import MEMBERSHIP, decode_change
from consensus.engine.config import NEVER_MS, EngineConfig
from consensus.engine.journal import Journal
from consensus.engine.outbox import Outbox
from consensus.engine.ports import Machine, SnapshotFile, SnapshotStore
from consensus.engine.raft import Raft
from consensus.ports import Clock


@dataclass(slots=True)
class Progress:
    """What the leader knows of one peer."""

    match_index: int = 0
    next_index: int = 1  # Invariant: match_index < next_index
    is_probing: bool = True  # one AppendEntries at a time, until the logs are known to agree
    probed_ms: int = NEVER_MS
    sent_ms: int = NEVER_MS
    heard_ms: int = NEVER_MS
    commit_said: int = 0  # the commit index that the last frame carried
    inflight: deque[int] = field(default_factory=deque)  # last index of each frame under way
    snapshot: SnapshotFile | None = None
    chunk_sent: int = 0
    chunk_acked: int = 0
    chunk_ms: int = NEVER_MS
    no_copy_until_ms: int = NEVER_MS  # it threw one away, and is sent none for a while


@dataclass(slots=True)
class Counters:
    """How often things happened since the engine began."""

    elections: int = 0
    prevotes: int = 0
    led: int = 0
    truncations: int = 0
    snapshots_sent: int = 0
    snapshots_installed: int = 0
    frames_refused: int = 0


class Seat:
    """The parts of one engine, and the small decisions that several of its files share."""

    def __init__(
        self,
        config: EngineConfig,
        raft: Raft,
        *,
        journal: Journal,
        outbox: Outbox,
        machine: Machine,
        snapshots: SnapshotStore,
        clock: Clock,
        rng: random.Random,
    ) -> None:
        self.config = config
        self.node_id = config.node_id
        self.raft = raft
        self.journal = journal
        self.outbox = outbox
        self.machine = machine
        self.snapshots = snapshots
        self.clock = clock
        self.rng = rng
        self.applied_voters: dict[str, str] = dict(config.voters)
        self.voters: dict[str, str] = dict(config.voters)
        self.connected: set[str] = set()
        self.fed: set[str] = set()
        self.peers: dict[str, Progress] = {}
        self.votes: set[str] = set()
        self.prevotes: set[str] = set()
        self.prevote_term = 0
        self.is_leader_lost = False
        self.is_removed = False
        self.damage = ""  # why this node's log cannot be trusted; it says nothing more then
        self.leader_heard_ms = NEVER_MS
        self.answered: tuple[str, int, int] = ("", 0, NEVER_MS)  # to whom, up to where, when
        self.counters = Counters()

    def now_ms(self) -> int:
        return self.clock.monotonic_ms()

    @property
    def is_voter(self) -> bool:
        return self.node_id in self.voters

    def quorum_count(self) -> int:
        return len(self.voters) // 2 + 1

    def others(self) -> list[str]:
        return sorted(peer for peer in self.voters if peer != self.node_id)

    def has_heard_leader(self) -> bool:
        """Whether a leader was heard so lately that nobody should stand against it."""
        if self.raft.is_leader:
            return True
        if self.is_leader_lost:
            return False
        return self.now_ms() - self.leader_heard_ms < self.config.election_ms_min

    def has_just_answered(self, peer: str, verified: int) -> bool:
        """Whether the leader was told the same so lately that a new commit needs no answer.

        A probe whose answer is left out for this is sent again after a heartbeat.
        """
        since_ms = self.now_ms() - self.config.heartbeat_ms // 2
        return self.answered[:2] == (peer, verified) and self.answered[2] > since_ms

    def say(self, peer: str, frame: Frame, *, needs_offset: int = 0) -> bool:
        """Send a frame in this term once the journal is durable up to the offset it needs."""
        frame.term = self.raft.term
        if peer not in self.connected:
            return False
        return self.outbox.send(
            peer, frame, needs_offset=needs_offset, synced_offset=self.journal.synced_offset
        )

    def step_down(self, term: int | None = None, *, leader: str | None = None) -> None:
        """Follow; in a newer term if one is given."""
        if term is not None and term > self.raft.term:
            self.raft.enter_term(term)
            self.votes.clear()
            self.outbox.clear()
        was_leader = self.raft.is_leader
        self.raft.follow(leader)
        if was_leader:
            self.peers.clear()
            self.raft.wait_for_election()

    # Membership: the last change in the log is in force, committed or not.

    def recount_voters(self) -> None:
        """Voters as of what is applied, changed by every later entry in the log."""
        voters = dict(self.applied_voters)
        for command, index, _ in self.journal.rows:
            if index > self.raft.applied_index and command[0] == MEMBERSHIP:
                change_voters(voters, decode_change(command[1:]))
        self._adopt(voters)

    def appended(self, command: bytes) -> None:
        """An entry was appended: if it changes membership, the change is in force from here on."""
        if self.raft.change_in(command) is not None:
            voters = dict(self.voters)
            change_voters(voters, decode_change(command[1:]))
            self._adopt(voters)

    def applied(self, command: bytes) -> None:
        """An entry was applied. A node whose removal is applied has nothing more to say."""
        if command[0] != MEMBERSHIP:
            return
        change = decode_change(command[1:])
        change_voters(self.applied_voters, change)
        if not change.add and change.node_id == self.node_id and not self.is_voter:
            self.is_removed = True

    def reload_voters(self, voters: Mapping[str, str]) -> None:
        """The machine was replaced: begin from what it knows."""
        if voters:
            self.applied_voters = dict(voters)
        self.recount_voters()

    def _adopt(self, voters: dict[str, str]) -> None:
        self.voters = voters
        self.raft.set_others(self.others())
        if self.raft.is_leader:
            wanted = {*self.others(), *self.fed}
            for peer in sorted(wanted - set(self.peers)):
                self.peers[peer] = Progress(
                    next_index=self.journal.last_index + 1, heard_ms=self.now_ms()
                )
            for peer in sorted(set(self.peers) - wanted):
                del self.peers[peer]


def change_voters(voters: dict[str, str], change: MembershipChange) -> None:
    if change.add:
        voters[change.node_id] = change.address
    else:
        voters.pop(change.node_id, None)

"""The engine: orders commands among voters, stores them, hands them to the machine in order.

Its owner drives it on one thread: `tick()` every 20 ms and whenever `on_need_tick` asks, and the
link's events as they come. It opens no socket, starts no thread and reads no clock of its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from types import TracebackType

from quorumesh.v1.ledger_pb2 import MembershipChange
from quorumesh.v1.peer_pb2 import Frame

from consensus.engine import following, leading, sending, votes
from consensus.engine.codec import MEMBERSHIP, REGULAR, Malformed, Undecodable
from consensus.engine.config import (
    APPLY_ENTRIES_PER_TICK_MAX,
    APPLY_MS_PER_TICK_MAX,
    COMMAND_BYTES_MAX,
    NEEDED_MS_MAX,
    TERM_MAX,
    EngineConfig,
)
from consensus.engine.journal import Journal
from consensus.engine.library import ambient
from consensus.engine.outbox import Outbox
from consensus.engine.ports import Machine, SnapshotStore
from consensus.engine.raft import LogView, Raft
from consensus.engine.seat import Counters, Seat
from consensus.engine.vote import VoteRecord
from consensus.errors import Damaged, StorageFailed
from consensus.ports import Clock, Link


def _nothing() -> None:
    """The owner who polls needs no wake-up."""


class Engine:
    """One node's part in the consensus.

    Promises: `machine.apply` is called in order, once per entry, only for what is committed and
    durable here; nothing that reflects unsynced state is said to a peer; a node whose storage
    failed steps down, sets `failed` and says nothing more.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        link: Link,
        clock: Clock,
        journal: Journal,
        vote: VoteRecord,
        machine: Machine,
        snapshots: SnapshotStore,
        rng: random.Random,
        on_need_tick: Callable[[], None] = _nothing,
    ) -> None:
        self._clock, self._rng = clock, rng
        self._machine = machine
        self._on_need_tick = on_need_tick
        self._is_closed = self._is_held = False
        self._entered = _Entered(self)
        self.failed: BaseException | None = journal.failed or vote.failed
        ambient.enter(clock, rng)
        applied = machine.applied_index
        if self.failed is None:
            self.failed = _check_storage(journal, vote, applied)
        raft = Raft(config, LogView(journal, vote, applied), applied)
        self._seat = Seat(
            config,
            raft,
            journal=journal,
            outbox=Outbox(link),
            machine=machine,
            snapshots=snapshots,
            clock=clock,
            rng=rng,
        )
        self._seat.recount_voters()

    # What it is asked to do.

    def tick(self) -> None:
        """Do what is due: stand, lead, send, sync, apply. Raises what `machine.apply` raises."""
        self.exchange()
        self.apply_committed()

    def exchange(self) -> None:
        """The part of a tick that peers wait for: install a copy, stand, lead, send, sync."""
        if self._is_stopped():
            return
        with self._entered:
            if not self._is_held:
                following.install_if_checked(self._seat)
                votes.stand_if_due(self._seat)
            if self._seat.raft.is_leader and leading.lead(self._seat):
                self._on_need_tick()
            self._flush()

    def has_committed(self) -> bool:
        """Whether `apply_committed` would have something to do."""
        seat = self._seat
        ready = min(seat.raft.commit_index, seat.journal.synced_index)
        return seat.raft.applied_index < ready and not self._is_stopped()

    def apply_committed(self) -> None:
        """Hand what is committed and durable here to the machine. Raises what `apply` raises."""
        if not self._is_stopped():
            self._apply()

    def append(self, command: bytes) -> int | None:
        """Add a command to the log; its index, or None when this node does not lead.

        The index says nothing about the outcome: another leader may put another entry there.
        """
        assert 0 < len(command) <= COMMAND_BYTES_MAX and command[0] == REGULAR
        if self._is_stopped() or not self._seat.raft.is_leader:
            return None
        index: int | None = None
        with self._entered:
            index = self._add(command)
        return index

    def change(self, change: MembershipChange) -> bool:
        """Add one voter or remove one node. False: not the leader, one is under way, or no change.

        A node without a vote is removed in the same way, so that it learns of it.
        """
        seat = self._seat
        if self._is_stopped() or not seat.raft.is_leader or not seat.raft.may_change():
            return False
        if change.add and change.node_id in seat.voters:
            return False
        if not change.add and set(seat.voters) == {change.node_id}:
            return False
        with self._entered:
            index = self._add(bytes([MEMBERSHIP]) + change.SerializeToString(deterministic=True))
            seat.raft.note_change(index)
            return True
        return False

    def feed(self, peer: str) -> None:
        """Leader: send the log to a peer that is no voter yet, so that it can be added later."""
        with self._entered:
            leading.feed(self._seat, peer)

    def unfeed(self, peer: str) -> None:
        """Leader: send the log no more to a peer that is no voter."""
        leading.unfeed(self._seat, peer)

    def has_told(self, peer: str, index: int) -> bool:
        """Leader: whether the peer holds the entry and was told that it is committed."""
        progress = self._seat.peers.get(peer)
        return progress is not None and min(progress.match_index, progress.commit_said) >= index

    def live_nodes(self) -> set[str]:
        """Leader: itself and the peers that have answered it lately."""
        return leading.live_nodes(self._seat) if self._seat.raft.is_leader else set()

    def hoped_nodes(self) -> set[str]:
        """Leader: the live nodes, and those that it has not given time enough to answer."""
        return leading.hoped_nodes(self._seat) if self._seat.raft.is_leader else set()

    def matched(self, peer: str) -> int:
        """Leader: the last entry that the peer is known to hold durably; 0 when none is."""
        progress = self._seat.peers.get(peer)
        return progress.match_index if progress is not None else 0

    def needed_after(self) -> int | None:
        """Leader: the entry after which peers that are being caught up still need all; None: nobody.

        Who was not heard for NEEDED_MS_MAX is not waited for.
        """
        seat = self._seat
        if not seat.raft.is_leader:
            return None
        since_ms = seat.now_ms() - NEEDED_MS_MAX
        reached = [
            progress.match_index if progress.snapshot is None else progress.snapshot.index
            for peer, progress in seat.peers.items()
            if peer in seat.connected and progress.heard_ms > since_ms
        ]
        return min((index for index in reached if index > 0), default=None)

    def hold(self, is_held: bool) -> None:
        """While held it hears and says nothing and has no office; what it holds is synced and applied.

        To the others it is as if it were gone: whoever cannot take entries must not count as one
        who could, or a leader without a majority would stay.
        """
        if is_held == self._is_held:
            return
        self._is_held = is_held
        if not self._is_stopped():
            self._give_up()
            self._seat.raft.wait_for_election()

    def transfer(self, peer: str) -> bool:
        """Leader: ask this voter to take over. False: it does not hold everything yet."""
        if self._is_stopped():
            return False
        with self._entered:
            return leading.transfer(self._seat, peer)
        return False

    def close(self) -> None:
        """Say and do nothing more. The journal stays open: it is the owner's."""
        self._is_closed = True
        self._seat.outbox.clear()

    # What the link tells.

    def link_up(self, peer: str) -> None:
        self._seat.connected.add(peer)
        if not self._is_stopped():
            with self._entered:
                leading.connected(self._seat, peer)
        self._on_need_tick()

    def link_down(self, peer: str) -> None:
        seat = self._seat
        seat.connected.discard(peer)
        seat.outbox.drop_peer(peer)
        if not self._is_stopped() and peer == seat.raft.leader_id and not seat.raft.is_leader:
            with self._entered:
                seat.snapshots.abort()
                votes.leader_lost(seat)

    def frame_received(self, peer: str, frame: Frame) -> None:
        """Take one frame. A malformed one is dropped and counted; one of an old term is dropped."""
        if self._is_stopped() or self._is_held:
            return
        with self._entered:
            try:
                self._receive(peer, frame)
            except (Malformed, Undecodable):
                self._seat.counters.frames_refused += 1
        self._on_need_tick()

    # What it is.

    @property
    def role(self) -> str:
        """'leader', 'follower', 'candidate', or 'passive' when this node is no voter."""
        raft = self._seat.raft
        if self._seat.is_removed:
            return "passive"
        if raft.is_leader:
            return "leader"
        if not self._seat.is_voter:
            return "passive"
        return "candidate" if raft.is_candidate else "follower"

    @property
    def leader_id(self) -> str:
        """The leader of the current term as far as known here; '' when none is."""
        return self._seat.raft.leader_id

    @property
    def term(self) -> int:
        return self._seat.raft.term

    @property
    def commit_index(self) -> int:
        return self._seat.raft.commit_index

    @property
    def last_index(self) -> int:
        return self._seat.journal.last_index

    @property
    def synced_index(self) -> int:
        return self._seat.journal.synced_index

    @property
    def unsynced_count(self) -> int:
        """Entries of the log that are not durable here yet."""
        return self._seat.journal.last_index - self._seat.journal.synced_index

    @property
    def voters(self) -> dict[str, str]:
        """Node id to address, as of the last membership entry in the log."""
        return dict(self._seat.voters)

    @property
    def connected(self) -> frozenset[str]:
        """The peers whose link is up."""
        return frozenset(self._seat.connected)

    @property
    def leader_heard_ms(self) -> int:
        """Monotonic time at which a leader was last heard; now, when this node leads."""
        if self._seat.raft.is_leader:
            return self._clock.monotonic_ms()
        return self._seat.leader_heard_ms

    @property
    def counters(self) -> Counters:
        return self._seat.counters

    @property
    def damage(self) -> str:
        """Why this node's log cannot be trusted any more; empty while it can."""
        return self._seat.damage

    # Inside.

    def _is_stopped(self) -> bool:
        seat = self._seat
        return self._is_closed or self.failed is not None or seat.is_removed or bool(seat.damage)

    def _fail(self, error: BaseException) -> None:
        if self.failed is None:
            self.failed = error
            self._give_up()

    def _give_up(self) -> None:
        """Lead and follow nobody; what waits to be said is not."""
        self._seat.raft.follow(None)
        self._seat.peers.clear()
        self._seat.outbox.clear()

    def _add(self, command: bytes) -> int:
        seat = self._seat
        index = seat.journal.last_index + 1
        seat.journal.append(index, seat.raft.term, command)
        seat.appended(command)
        self._on_need_tick()
        return index

    def _flush(self) -> None:
        self._seat.outbox.release(self._seat.journal.synced_offset, self._seat.raft.term)
        self._seat.journal.sync(self._synced)

    def _synced(self) -> None:
        error = self._seat.journal.failed
        if error is not None:
            self._fail(error)
        if not self._is_stopped():
            with self._entered:
                self._flush()
        self._on_need_tick()

    def _apply(self) -> None:
        """In slices, so that a leader that catches up keeps its heartbeats."""
        seat = self._seat
        ready = min(seat.raft.commit_index, seat.journal.synced_index)
        last = min(ready, seat.raft.applied_index + APPLY_ENTRIES_PER_TICK_MAX)
        end_ms = seat.now_ms() + APPLY_MS_PER_TICK_MAX
        for index in range(seat.raft.applied_index + 1, last + 1):
            command = seat.journal.command_at(index)
            term = seat.journal.term_at(index)
            assert term is not None
            self._machine.apply(index, term, command)
            seat.raft.applied_index = index
            seat.applied(command)
            if self._is_stopped():
                self._seat.raft.follow(None)
                return
            if seat.now_ms() >= end_ms:
                break
        if seat.raft.applied_index < ready:
            self._on_need_tick()

    def _receive(self, peer: str, frame: Frame) -> None:
        seat, term, kind = self._seat, frame.term, frame.WhichOneof("kind")
        if term > TERM_MAX:
            raise Malformed(f"no mesh has come to term {term}")
        match kind:
            case "append":
                following.entries_received(seat, peer, term, frame.append)
            case "snapshot":
                following.chunk_received(seat, peer, term, frame.snapshot)
            case "request_vote":
                votes.vote_asked(seat, peer, term, frame.request_vote)
            case "pre_vote" | "pre_vote_reply":
                # A newer term is taken over here too, or a voter with a newer term and an older
                # log could keep the others from ever reaching a majority of pre-votes.
                if term > seat.raft.term and not seat.has_heard_leader():
                    seat.step_down(term)
                if kind == "pre_vote":
                    votes.pre_vote_asked(seat, peer, frame.pre_vote)
                else:
                    votes.pre_vote_given(seat, peer, frame.pre_vote_reply)
            case "append_reply" | "vote_reply" | "snapshot_reply" | "timeout_now":
                self._receive_in_term(peer, frame, term, kind)
            case _:
                seat.counters.frames_refused += 1

    def _receive_in_term(self, peer: str, frame: Frame, term: int, kind: str) -> None:
        """Answers count only in the term that they were given in."""
        seat = self._seat
        if term > seat.raft.term:
            seat.step_down(term)
        elif term == seat.raft.term:
            match kind:
                case "append_reply":
                    leading.append_answered(seat, peer, frame.append_reply)
                case "vote_reply":
                    votes.vote_given(seat, peer, term)
                case "snapshot_reply":
                    sending.chunk_answered(seat, peer, frame.snapshot_reply)
                case _:
                    votes.hand_over_asked(seat, peer, term)


class _Entered:
    """`with` it, each way in has this engine's clock and chance, and ends when the disk refuses."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        ambient.enter(self._engine._clock, self._engine._rng)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None or not isinstance(error, OSError | StorageFailed):
            return False
        self._engine._fail(error)
        return True


def _check_storage(journal: Journal, vote: VoteRecord, applied_index: int) -> OSError | None:
    """Refuse to take part with a journal and a vote record that cannot be of the same node.

    Returns what the disk refused, if a term had to be noted.
    """
    if not journal.base_index <= applied_index <= journal.last_index:
        raise Damaged(
            f"the ledger has applied {applied_index}, the journal holds "
            f"{journal.base_index} to {journal.last_index}"
        )
    if journal.last_index > journal.base_index and journal.last_term > vote.term:
        raise Damaged(
            f"the journal holds entries of term {journal.last_term}, the vote record knows only "
            f"{vote.term}: the vote was lost; this node must come back as a new one"
        )
    if journal.base_index > 0 and not vote.existed:
        raise Damaged("the vote record is missing beside a journal that has begun anew: it is lost")
    if vote.term < journal.base_term:
        try:
            vote.save(journal.base_term, None)
        except OSError as error:
            return error
    return None

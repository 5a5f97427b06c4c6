"""The replica without a loop: engine, ledger and proposals joined, driven by `turn()` and callbacks.

Everything runs on one thread. The owner calls `turn()` whenever `on_wake` asked for it and at least
every TICK_MS; time, chance, links and blocking work come in as ports, so that a simulator can drive
the very same code.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from quorumesh.v1.ledger_pb2 import Command, Entry, MembershipChange
from quorumesh.v1.peer_pb2 import Frame

from consensus.autopilot import Autopilot
from consensus.clock import CountedClock
from consensus.compaction import Compaction, checkpoint_at_once
from consensus.config import Observer, Ports, ReplicaConfig
from consensus.directory import LedgerDirectory
from consensus.engine import Engine, EngineConfig, Journal, VoteRecord
from consensus.errors import ConsensusError, Damaged, Removed, StorageFailed, Unavailable
from consensus.forwarding import Forwarding
from consensus.guard import GuardedBackground, Refusals
from consensus.leadership import MEMBERSHIP, NO_OP, REGULAR, Leadership
from consensus.ledger import Reader
from consensus.membership import Membership
from consensus.mending import Mending, Reopened
from consensus.proposals import Done, Proposals
from consensus.received import is_readable
from consensus.retiring import let_go
from consensus.room import Room
from consensus.scrub import Scrubbing, refuse_marked, scrubs_of, write_mark
from consensus.snapshots import Snapshots
from consensus.storage import (
    Storage,
    damage_told,
    install_ledger,
    let_go_if_refused,
    open_journal,
    open_ledger,
    open_vote,
)
from consensus.succession import Succession
from consensus.telling import Observers
from consensus.view import HEARD_MS_MAX, ReplicaView
from consensus.vouching import Vouching

TICK_MS = 20
# What a removed node may say, in no newer term than ours: how much of the log it has, until it has
# read of its removal.
FAREWELL_KINDS = frozenset({"append_reply", "snapshot_reply"})

log = logging.getLogger("consensus.core")


class Core:
    """One node's replica.

    Raises from the constructor: Damaged when its folder cannot be trusted, StorageFailed when it
    cannot even be read.
    """

    def __init__(self, config: ReplicaConfig, ports: Ports, *, on_wake: Callable[[], None]) -> None:
        self.config = config
        self._on_wake = on_wake
        self._observers = Observers()
        room = Room(config.root, ports.disk, clock=ports.clock, background=ports.background)
        self._storage = Storage(room)
        self._refusals = Refusals(self, self._storage)
        self.guard = self._refusals.reading  # for whoever reads the ledger on the loop
        ports = replace(ports, background=GuardedBackground(ports.background, self.guard))
        self._ports = ports
        refuse_marked(config.root, ports.disk)
        self._directory = LedgerDirectory(config.root, ports.disk)
        self._path, self.ledger, self._reader = open_ledger(self._directory)
        self.counted = CountedClock(ports.clock, counted_ms=self.ledger.counted_ms)
        self.proposals = Proposals(ports.incarnation)
        self.vouching = Vouching(self, ports)
        self.snapshots = Snapshots(
            self._directory,
            background=ports.background,
            clock=ports.clock,
            ledger_path=lambda: self._path,
            replace=self._replace_ledger,
            witness=self.vouching,
        )
        self._mending = Mending(self._directory, ports.background)
        self.journal = self._journal_opener()()
        with damage_told(), let_go_if_refused(self.journal):  # the members' first reading
            self.engine = self._make_engine(open_vote(self._directory))
        self.forwarding = Forwarding(self.engine, ports.link, self.proposals)
        self.succession = Succession(self)
        self.membership = Membership(self, ports.link)
        self.autopilot = Autopilot(self, ports.link, ports.clock)
        self.compaction = Compaction(self, ports.background, on_wake=on_wake)
        self.scrubbing = Scrubbing(self, ports, scrub_ms=config.scrub_ms)
        self.diverged = ""  # why this node is out of service for good
        self._seen_leader: tuple[str, int] = ("", 0)
        self._leadership = Leadership(self)
        self._apply_due = self.is_removed = False
        self._removal_due = True
        with damage_told():
            self._notice_removal()
        ports.link.bind(self)

    def _journal_opener(self) -> Callable[[], Journal]:
        return partial(
            open_journal,
            self._directory,
            (self.ledger.applied_index, self.ledger.applied_term),
            background=self._ports.syncs or self._ports.background,
            segment_bytes_max=self.config.segment_bytes_max,
            installed_index=self._directory.installed_index(self._path),
        )

    def _make_engine(self, vote: VoteRecord) -> Engine:
        config = self.config
        voters = dict(self.ledger.voters()) or dict(config.joined_voters)
        if not voters and config.founding is not None:
            voters = {config.node_id: config.address}
        engine_config = EngineConfig(node_id=config.node_id, voters=voters)
        self._fallback_ms = engine_config.leader_fallback_ms
        return Engine(
            engine_config,
            link=self._ports.link,
            clock=self._ports.clock,
            journal=self.journal,
            vote=vote,
            machine=self,
            snapshots=self.snapshots,
            rng=self._ports.rng,
            on_need_tick=self._on_wake,
        )

    def _reopen_storage(self) -> None:
        """Open journal and vote anew, as at a start, with all that is meant by that."""
        self.engine.close()
        with contextlib.suppress(OSError, StorageFailed):
            self.journal.close()
        self.snapshots.abort()
        self._mending.begin(self._path, self._journal_opener(), self._reopened)

    def _reopened(self, opened: Reopened | BaseException) -> None:
        self._on_wake()
        match opened:
            case OSError() | StorageFailed():
                self.engine.failed = opened
            case Reopened() if self.diverged or self.is_removed:
                opened.journal.close()
            case Reopened():
                self._go_on_with(opened)
            case _:
                raise opened  # damage, too: the guard takes this node out of service

    def _go_on_with(self, opened: Reopened) -> None:
        connected = self.engine.connected
        self.journal = opened.journal
        self.engine = self._make_engine(opened.vote)
        self.forwarding = Forwarding(self.engine, self._ports.link, self.proposals)
        self._seen_leader = ("", 0)
        for peer in sorted(connected):
            self.engine.link_up(peer)
        if self.engine.failed is None:
            self._storage.engine_reopened()
            log.warning("the storage takes writes again: journal and vote were opened anew")

    # What the engine needs of its machine.

    @property
    def applied_index(self) -> int:
        return self.ledger.applied_index

    def voters(self) -> dict[str, str]:
        return self.ledger.voters()

    def counted_ms(self) -> int:
        return self.counted.now_ms()

    def leader_counted_ms(self, counted_ms: int) -> None:
        self.counted.heard(counted_ms)

    def apply(self, index: int, term: int, command: bytes) -> None:
        """Apply one committed, locally durable entry; tell who waits and who observes."""
        kind, body = command[0], command[1:]
        if kind == REGULAR:
            entry = Entry.FromString(body)
            applied = self.ledger.apply(index, term, entry)
            for is_whole, scrub in scrubs_of(entry).items():
                (self.vouching if is_whole else self.scrubbing).applied(index, scrub)
            for fault in applied.faults:
                log.error("a bug in apply at revision %d was put off: %s", index, fault)
            self.counted.at_least(applied.counted_ms)
            for proposal, outcome in zip(entry.proposals, applied.outcomes, strict=True):
                self.proposals.applied(proposal, outcome)
        elif kind == MEMBERSHIP:
            change = MembershipChange.FromString(body)
            applied = self.ledger.apply_membership(index, term, change)
            # The entry is applied, and never again, whether or not anybody can read now.
            self._removal_due = True
            with self.guard:
                self._notice_removal()
        else:
            assert kind == NO_OP, f"unknown entry kind {kind}"
            applied = self.ledger.apply_noop(index, term)
        self._observers.entry_applied(applied)

    def _replace_ledger(self, copy: Path, index: int) -> None:
        # The old one stays open until the new one is there: if the disk refuses, reads go on.
        path, fresh, fresh_reader = install_ledger(self._directory, copy, index)
        before, reader, ledger = self._path, self._reader, self.ledger
        older = self._directory.other_ledgers(path, before)

        def close() -> None:
            reader.close()
            ledger.close()

        let_go(
            before,
            close,
            background=self._ports.background,
            after=lambda: self._directory.remove_ledgers(older),
        )
        self._path, self.ledger, self._reader = path, fresh, fresh_reader
        self._storage.ledger_written()  # what the old one could not apply is in the new one
        assert self.ledger.applied_index == index
        self.counted.at_least(self.ledger.counted_ms)
        # Outcomes of the entries that the copy jumped over are not to be had: ask again.
        self.proposals.resend_all()
        self._removal_due = True
        with self.guard:
            self._notice_removal()
            self._observers.ledger_replaced()

    def _notice_removal(self) -> None:
        """A node that the mesh has removed takes no part any more, and says so to its clients."""
        if self.is_removed or not self._removal_due:
            return
        self.is_removed = self.ledger.removed_at(self.config.node_id) is not None
        self._removal_due = False
        if self.is_removed:
            log.warning("%s", Removed())
            self.engine.close()
            self.proposals.fail_all(Removed())

    # What the owner calls.

    def observe(self, observer: Observer) -> None:
        self._observers.add(observer)

    def propose(self, commands: Sequence[Command], *, deadline_ms: int, done: Done) -> None:
        """Bring commands into the log and call `done` once this node's ledger has applied them all.

        The deadline is on the monotonic clock. Raises Unavailable when too many wait already, and
        DiskFull when this node could not apply them.
        """
        if self.is_removed:
            raise Removed
        self.refuse_diverged()
        if self._storage.trouble:
            raise self._storage.refusal()
        if not self.proposals.has_room(len(commands)):
            raise Unavailable("too many commands wait for the log; try again", retry_ms=200)
        self.proposals.add(commands, deadline_ms=deadline_ms, done=done)
        self._on_wake()

    def now_ms(self) -> int:
        return self._ports.clock.monotonic_ms()

    def wall_ms(self) -> int:
        return self._ports.clock.wall_ms()

    def wake(self) -> None:
        """Ask the owner for a turn soon."""
        self._on_wake()

    def peers(self) -> dict[str, str]:
        """Who is to be dialled: members, and those removed so lately that they may not know it.

        Voters that only the journal names yet are among them: after a power loss the ledger may
        lie before their joining, or be empty, and only from them can it be known what follows.
        """
        return {**self.ledger.farewells(), **self.engine.voters, **self.ledger.members()}

    def turn(self) -> None:
        """Do what is due: exchange with peers, or else apply what has become ready.

        These take turns, so that what peers wait for is on its way before an entry is applied.
        Raises Damaged, once, when this node's ledger turns out to be wrong; then nothing more is done.
        """
        if self.diverged:
            return
        found = ""
        with self.guard:
            if self._apply_due and not self.compaction.holds_apply:
                self._apply_due = False
                self._apply_committed()
            else:
                found = self._exchange(self.now_ms())
        self._take_out_if_wrong(found or self._refusals.damage)

    def _exchange(self, now_ms: int) -> str:
        """All of a turn but applying. Returns why this node must not go on; empty: it may.

        Peers come first, and what needs the ledger last: a read that is refused ends the turn.
        """
        if self.is_removed:
            self.membership.turn(now_ms)
            return ""
        self.counted.now_ms()
        self.engine.hold(self._refusals.has_too_much_to_apply(now_ms))
        self.engine.exchange()
        self._look_after_storage()
        self._follow_leader()
        self.proposals.expire(now_ms)
        has_more = self.engine.has_committed() and not self.compaction.holds_apply
        if has_more and self._storage.may_apply():
            self._apply_due = True
            self._on_wake()
        is_in_trouble = bool(self.trouble)
        self.succession.turn(now_ms, must_go=is_in_trouble)
        if not is_in_trouble and self.engine.role == "leader":
            self._leadership.lead(now_ms - self._fallback_ms)
        elif not is_in_trouble:
            self.forwarding.send_to_leader()
        found = self.engine.damage or self.snapshots.damage
        if found or not self._refusals.can_read(now_ms):
            self.membership.expire(now_ms)
            return found
        self._notice_removal()
        self._observers.tell_again()
        self.membership.turn(now_ms)
        self.autopilot.turn()
        self.compaction.turn()
        return self.scrubbing.turn() or self.vouching.turn()

    def _look_after_storage(self) -> None:
        """What was never sent is refused at once; a disk that was full may have room again."""
        failed = self.engine.failed
        if failed is None or self._mending.is_under_way:
            return
        if self._storage.engine_failed(failed):
            log.error("stepped down: %s", self.trouble)
            self.proposals.refuse_unsent(self._storage.refusal())
        # A sync that is under way ends first: it holds the old file open.
        if not self.journal.is_syncing and self._storage.may_reopen(self.journal.unproven_bytes):
            self._reopen_storage()

    def _apply_committed(self) -> None:
        with self._refusals.applying:
            before = self.applied_index
            self.engine.apply_committed()
            if self.applied_index > before and self._storage.ledger_written():
                log.warning("the ledger can be written again")
            self._on_wake()

    def _take_out_if_wrong(self, why: str) -> None:
        """A ledger that cannot be trusted is not served, copied, led or voted with any more."""
        if not why:
            return
        self.diverged = why
        self.engine.close()
        log.critical("this node takes itself out of service: %s", why)
        try:
            write_mark(self.config.root, why, self._ports.disk)
        except OSError as error:
            log.critical("the mark that keeps it from starting again was not written: %s", error)
        self.proposals.fail_all(Damaged(why))
        raise Damaged(why)

    def refuse_diverged(self) -> None:
        """Raises Damaged when this node is out of service."""
        if self.diverged:
            raise Damaged(f"this node is out of service: {self.diverged}")

    def _follow_leader(self) -> None:
        seen = (self.engine.leader_id, self.engine.term)
        if seen != self._seen_leader:
            self._seen_leader = seen
            self.proposals.resend_all()
            self.forwarding.drop_older()
            self.membership.leader_changed()

    # What the link tells.

    def link_up(self, peer: str) -> None:
        self.engine.link_up(peer)
        self.scrubbing.peer_came(peer)
        self.vouching.peer_came(peer)
        self._on_wake()

    def link_down(self, peer: str) -> None:
        self.engine.link_down(peer)
        if peer == self._seen_leader[0]:
            self.proposals.resend_all()
        self._on_wake()

    def frame_received(self, peer: str, frame: Frame) -> None:
        with self.guard:
            self._receive(peer, frame)

    def _receive(self, peer: str, frame: Frame) -> None:
        kind = frame.WhichOneof("kind")
        is_farewell = kind in FAREWELL_KINDS and frame.term <= self.engine.term
        if kind == "propose":
            is_part = False
            # Whoever sent it is told that it got nowhere also when that cannot be read.
            with self.guard:
                is_part = self.membership.is_part(peer)
                if frame.propose.HasField("change"):
                    self.membership.receive(peer, frame.propose.change)
            self.forwarding.receive(peer, frame.propose, term=frame.term, is_part=is_part)
        elif not is_farewell and self.membership.has_left(peer):
            self.engine.counters.frames_refused += 1
        elif kind == "propose_reply":
            if frame.propose_reply.HasField("change"):
                self.membership.refusal_received(frame.propose_reply)
            if frame.propose_reply.incarnation == self.proposals.incarnation:
                self.proposals.put_back(frame.propose_reply.sequences)
                return  # sent again at the next tick, not at once: the other may still find a leader
        elif kind == "scrub_digest":
            self.scrubbing.heard(peer, frame.scrub_digest)
            self.vouching.heard(peer, frame.scrub_digest)
        elif kind == "append" and not is_readable(frame.append):
            self.engine.counters.frames_refused += 1
        else:
            self.engine.frame_received(peer, frame)
        self._on_wake()

    def view(self) -> ReplicaView:
        """Counters and states for status, cheap to ask for."""
        engine, now_ms = self.engine, self._ports.clock.monotonic_ms()
        leads = engine.role == "leader"
        heard_ms = max(engine.leader_heard_ms, self._leadership.led_ms)
        age_ms = 0 if leads else max(0, now_ms - heard_ms)
        heard = leads or (self._ports.link.is_up(engine.leader_id) and age_ms <= HEARD_MS_MAX)
        return ReplicaView(
            node_id=self.config.node_id,
            role=engine.role,
            leader_id=engine.leader_id,
            term=engine.term,
            revision=self.ledger.applied_index,
            commit_index=engine.commit_index,
            writable=heard and not self.trouble and not self.is_removed,
            leader_age_ms=age_ms,
            counted_ms=self.counted.now_ms(),
            digest=self.ledger.digest,
            voters=tuple(sorted(engine.voters)),
            waiting_count=len(self.proposals),
            compaction_count=self.compaction.done_count,
            snapshot_install_count=self.snapshots.installed_count,
            journal_bytes=self.journal.bytes_on_disk,
            ledger_bytes=self._path.stat().st_size,
            trouble=str(Removed()) if self.is_removed else self.trouble,
            is_disk_full=self._storage.is_full,
        )

    @property
    def trouble(self) -> str:
        """Why this node can write nothing, and what helps; empty when it can."""
        return self._storage.trouble or self.snapshots.damage or self.diverged

    @property
    def reader(self) -> Reader:
        """Read-only queries. Raises Damaged once this node is out of service."""
        self.refuse_diverged()
        return self._reader

    @property
    def ledger_path(self) -> Path:
        """Where the ledger in force lies. Raises Damaged once this node is out of service."""
        self.refuse_diverged()
        return self._path

    def close(self) -> None:
        """Stop. Whoever waits gets Unavailable or OutcomeUnknown; the ledger is checkpointed."""
        self.proposals.fail_all(Unavailable("this node is stopping"))
        self.membership.fail_all(Unavailable("this node is stopping"))
        self.compaction.close()
        self.scrubbing.close()
        self._mending.close()
        self.vouching.close()
        self.engine.close()
        try:
            self.journal.close()
        except (OSError, StorageFailed) as error:
            log.warning("the journal was not synced at the end: %s", error)
        self._reader.close()
        # Not done when a reader is in the way, or the disk is full: the journal has what is missing.
        if not self.diverged:
            checkpoint_at_once(self.ledger)
        self.ledger.close()


__all__ = ["ConsensusError", "Core", "Observer", "Ports", "ReplicaConfig", "StorageFailed"]

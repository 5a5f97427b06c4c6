"""Planted bugs of the engine: what replication and elections may get wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from quorumesh.v1.peer_pb2 import AppendEntries, Frame, LogEntry, RequestVote, VoteReply

from consensus import compaction, snapshots
from consensus import core as core_module
from consensus.engine import Engine, following, leading, votes
from consensus.engine.disk import Disk
from consensus.engine.journal import Journal
from consensus.engine.raft import Raft
from consensus.engine.seat import Seat
from consensus.engine.vote import VoteRecord
from consensus.vouching import Vouching
from tests.sim.planted import plants, swapped


@plants("termless-ack", comeback=20)
def termless_ack() -> AbstractContextManager[None]:
    """An answer counts in whatever term it arrives."""
    sound = Engine._receive_in_term

    def receive(self: Engine, peer: str, frame: Frame, term: int, kind: str) -> None:
        sound(self, peer, frame, max(term, self.term), kind)

    return swapped(Engine, "_receive_in_term", receive)


@plants("truncate-always", blip=60, lossy=40, crash_at_write=60, kill=30)
@contextmanager
def truncate_always() -> Iterator[None]:
    """Every append cuts all that comes after its first entry, whether it agrees or not.

    What is cut comes back with the same frame here, so that hardly anybody dies in between; with an
    entry to a frame, which is as right, the law shows.
    """
    sound, sound_rows = following._store, Raft.rows_from

    def rows_from(self: Any, index: int, count: int, bytes_max: int) -> list[Any]:
        return sound_rows(self, index, count, bytes_max)[:1]

    def store(seat: Seat, entries: list[LogEntry]) -> None:
        for entry in entries[:1]:
            if seat.journal.base_index < entry.index <= seat.journal.last_index:
                seat.journal.truncate_from(entry.index)
        sound(seat, entries)

    with swapped(following, "_store", store), swapped(Raft, "rows_from", rows_from):
        yield


@plants("commit-beyond-verified")
def commit_beyond_verified() -> AbstractContextManager[None]:
    """A follower commits as far as the leader says, over entries of its own that nobody compared."""
    sound = following.entries_received

    def received(seat: Seat, peer: str, term: int, append: AppendEntries) -> None:
        sound(seat, peer, term, append)
        if term == seat.raft.term and not seat.raft.is_leader:
            commit = min(append.commit_index, seat.journal.last_index)
            if commit > seat.raft.commit_index:
                seat.raft.commit_index = commit

    return swapped(following, "entries_received", received)


@plants("count-an-unsynced-leader", bare_majority=40)
def count_an_unsynced_leader() -> AbstractContextManager[None]:
    """The leader counts itself for entries that its own disk does not hold yet."""

    def advance(seat: Seat) -> None:
        held = [
            seat.journal.last_index
            if voter == seat.node_id
            else (seat.peers[voter].match_index if voter in seat.peers else 0)
            for voter in seat.voters
        ]
        index = sorted(held, reverse=True)[seat.quorum_count() - 1] if held else 0
        if index > seat.raft.commit_index and seat.journal.term_at(index) == seat.raft.term:
            seat.raft.commit_index = index

    return swapped(leading, "advance_commit", advance)


@plants("commit-an-older-term", relay=60)
@contextmanager
def commit_an_older_term() -> Iterator[None]:
    """Entries of older terms are committed by counting who holds them (Raft thesis 3.6.2).

    Alone that harms nobody here: a new leader sends its no-op in one frame with what is older, so
    that nobody holds the one without the other. Raft does not ask for that; without it the law shows.
    """
    sound_rows = Raft.rows_from

    def rows_from(self: Any, index: int, count: int, bytes_max: int) -> list[Any]:
        rows = sound_rows(self, index, count, bytes_max)
        return [row for row in rows if row[2] == rows[0][2]]

    def advance(seat: Seat) -> None:
        held = [
            seat.journal.synced_index
            if voter == seat.node_id
            else (seat.peers[voter].match_index if voter in seat.peers else 0)
            for voter in seat.voters
        ]
        index = sorted(held, reverse=True)[seat.quorum_count() - 1] if held else 0
        if index > seat.raft.commit_index:
            seat.raft.commit_index = index

    with swapped(leading, "advance_commit", advance), swapped(Raft, "rows_from", rows_from):
        yield


@plants("double-vote")
@contextmanager
def double_vote() -> Iterator[None]:
    """Whoever asks gets a vote, also after another got one in the same term."""
    sound = votes.vote_asked

    def asked(seat: Seat, peer: str, term: int, request: RequestVote) -> None:
        if term == seat.raft.term and seat.raft.voted_for not in (None, peer):
            if not seat.raft.is_leader and votes._is_up_to_date(
                seat, request.last_term, request.last_index
            ):
                seat.say(peer, Frame(vote_reply=VoteReply()))
            return
        sound(seat, peer, term, request)

    with swapped(votes, "vote_asked", asked):
        yield


@plants("vote-without-sync")
def vote_without_sync() -> AbstractContextManager[None]:
    """The vote record is written over in place and never synced."""

    def replace(self: Any, data: bytes) -> None:
        disk: Disk = self._disk
        path: Path = self._path
        disk.remove(path)
        handle = disk.open_append(path)
        disk.write(handle, data)
        disk.close(handle)

    return swapped(VoteRecord, "_replace", replace)


@plants("two-membership-changes", crowd=60, purge=60)
def two_membership_changes() -> AbstractContextManager[None]:
    """A change of voters is appended while another is under way, before the leader's no-op even."""

    def may_change(self: Any) -> bool:
        return True

    return swapped(Raft, "may_change", may_change)


@plants("drop-segments-before-the-checkpoint")
@contextmanager
def drop_segments_before_the_checkpoint() -> Iterator[None]:
    """Journal segments go as soon as their entries are applied, whatever the ledger's file holds."""

    def nothing(path: Path) -> None:
        """No checkpoint is made."""

    def done(path: Path) -> bool:
        return True

    with ExitStack() as stack:
        stack.enter_context(swapped(compaction, "checkpoint_passively", nothing))
        stack.enter_context(swapped(compaction, "checkpoint_wholly", done))
        yield


@plants("apply-before-sync")
@contextmanager
def apply_before_sync() -> Iterator[None]:
    """What a majority holds is applied here although this node's own journal may yet lose it."""

    def apply(self: Any) -> None:
        seat = self._seat
        for index in range(seat.raft.applied_index + 1, seat.raft.commit_index + 1):
            command, term = seat.journal.command_at(index), seat.journal.term_at(index)
            self._machine.apply(index, term, command)
            seat.raft.applied_index = index
            seat.applied(command)
            if self._is_stopped():
                return

    def has_committed(self: Any) -> bool:
        return self._seat.raft.applied_index < self.commit_index and not self._is_stopped()

    with ExitStack() as stack:
        stack.enter_context(swapped(Engine, "_apply", apply))
        stack.enter_context(swapped(Engine, "has_committed", has_committed))
        yield


@plants("sync-says-it-worked")
def sync_says_it_worked() -> AbstractContextManager[None]:
    """A sync that failed counts as one that worked."""
    sound = Journal._finish_sync

    def finish(self: Any, syncing: Any, error: BaseException | None) -> None:
        sound(self, syncing, None)

    return swapped(Journal, "_finish_sync", finish)


@plants("settle-what-a-copy-jumped-over")
def settle_what_a_copy_jumped_over() -> AbstractContextManager[None]:
    """A ledger that a copy replaced counts as having applied what waits here."""
    sound = core_module.Core._replace_ledger

    def replace(self: Any, copy: Path, index: int) -> None:
        from quorumesh.v1.ledger_pb2 import Outcome

        sound(self, copy, index)
        for sequence in list(self.proposals._waiting):
            self.proposals.settle(sequence, Outcome(revision=index))

    return swapped(core_module.Core, "_replace_ledger", replace)


@plants("hand-out-unvouched")
@contextmanager
def hand_out_unvouched() -> Iterator[None]:
    """A copy in which a value went bad is handed out before anybody has said what he holds."""
    sound: Any = vars(snapshots)["copy_pages"]

    def copy_pages(reading: Any, target: Path, disk: Disk, **options: Any) -> Any:
        copied = sound(reading, target, disk, **options)
        with closing(sqlite3.connect(target, isolation_level=None)) as db:
            db.execute("UPDATE task SET spec_digest = zeroblob(32)")
        return copied

    def vouch(self: Vouching, index: int, digest: bytes, answer: Callable[[str], None]) -> None:
        answer("")

    with swapped(snapshots, "copy_pages", copy_pages), swapped(Vouching, "vouch", vouch):
        yield

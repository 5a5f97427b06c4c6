"""Copies are vouched for: all voters compare all rows at one index before a copy of it is handed out.

A leader that needs a copy puts a Scrub entry for the whole ledger into the log. Every other node
opens a read transaction right after it has applied that entry, copies its ledger there, hashes all
rows of that off the loop, throws it away and tells all members. The leader copies at the same index,
hashes the copy and tells that; it hands the copy out only if a majority of the voters found the same.
A node that differs from a majority goes out of service, as after any scrub. A leader whose copy
differs has all, itself among them, hash their ledgers again: it may be the copy alone that went bad.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import Command, Outcome, Scrub
from quorumesh.v1.peer_pb2 import Frame, ScrubDigest

from consensus.config import Ports
from consensus.copying import copy_pages, digest_of_rows, remove_database, removed_if_it_fails
from consensus.errors import ConsensusError, Damaged, StorageFailed, Unavailable
from consensus.ledger.parts import first_range
from consensus.scrub import (
    ANSWER_MS,
    DIGEST_BYTES,
    PROPOSE_MS,
    READING_MAX,
    Verdict,
    check_schema,
    damage_in,
    judge,
    open_at,
    whole_digest,
)
from consensus.snapshots import WAL_BYTES_MAX, wal_bytes

if TYPE_CHECKING:
    from consensus.core import Core

WHOLES_KEPT_MAX = 4  # of each voter: a leader may have given up an entry that comes all the same
VOUCH_MS_MIN = 5_000  # a voter that was killed while it hashed does not answer any more
OWN_MS = 2 * ANSWER_MS  # others may still hash: then what they said so far is what is known
ROOM_LEDGERS_MIN = 2  # as much must be free as so many ledgers take, or none is copied to be hashed
# Nothing was committed for so long: then a copy is made that nobody compares, at once if too few of
# the voters that are there need none, and after the longer time whatever they seem to need.
STUCK_MS_MIN = 1_000
STUCK_MS_MAX = 20_000

log = logging.getLogger("consensus.vouching")


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A comparison that somebody waits for; `begin` is called at its index, or else `give_up`."""

    begin: Callable[[int | None], None]
    give_up: Callable[[ConsensusError], None]
    until_ms: int


@dataclass(frozen=True, slots=True)
class Question:
    """What a copy holds at an index; `answer` is called once: why nobody vouches for it, or empty."""

    index: int
    digest: bytes
    until_ms: int
    answer: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Own:
    """What this node's own ledger was found to hold."""

    index: int
    digest: bytes
    path: Path
    until_ms: int


class Vouching:
    """One node's part in comparing whole ledgers. Its methods are called on the loop."""

    def __init__(self, core: Core, ports: Ports) -> None:
        self._core = core
        self._link = ports.link
        self._clock = ports.clock
        self._background = ports.background
        self._disk = ports.disk
        self._pace_s = core.config.hash_pace_ms / 1_000
        self._asked: Asked | None = None
        self._copied_index = 0  # of the last copy: what it holds is this node's word
        self._copied_ms = 0
        self._question: Question | None = None
        self._own: Own | None = None  # until it is settled
        # Of voters only, and the last WHOLES_KEPT_MAX of each: what it found at which index.
        self._said: dict[str, dict[int, bytes]] = {}
        self._reading_count = 0  # of those under way, that hold a read transaction open
        self._under_way_count = 0  # at most READING_MAX
        # A commit index, and since when there is something to commit after it and nothing was.
        self._stuck_at = (-1, 0)
        self._is_split = False  # the voters differ, no majority agrees, and that was told
        self._fault = ""
        self._closed = threading.Event()

    @property
    def is_reading(self) -> bool:
        """A read transaction is held open."""
        return self._reading_count > 0

    # For copies.

    def ask(
        self, begin: Callable[[int | None], None], give_up: Callable[[ConsensusError], None]
    ) -> None:
        """Have all ledgers compared at an index to come, and call `begin` when this one is there.

        `begin(None)` when nothing can be committed: the voters that are up may need the very copy.
        """
        now_ms = self._clock.monotonic_ms()
        asked = self._asked = Asked(begin, give_up, now_ms + PROPOSE_MS)
        self._note_commits(now_ms)
        try:
            self._propose(lambda result: self._proposed(asked, result))
        except ConsensusError as error:
            self._asked = None
            give_up(error)

    def _propose(self, done: Callable[[list[Outcome] | ConsensusError], None]) -> None:
        # To a release that knows no `whole` it is the first range.
        scrub = first_range()
        scrub.whole = True
        deadline_ms = self._clock.monotonic_ms() + PROPOSE_MS
        self._core.propose([Command(scrub=scrub)], deadline_ms=deadline_ms, done=done)

    def _proposed(self, asked: Asked, result: list[Outcome] | ConsensusError) -> None:
        if asked is not self._asked:
            return
        self._asked = None
        # One that was refused before its time was refused because this node ends.
        is_late = self._clock.monotonic_ms() >= asked.until_ms
        if is_late and self._can_commit_nothing(self._clock.monotonic_ms()):
            asked.begin(None)
        elif isinstance(result, ConsensusError):
            asked.give_up(result)
        else:
            asked.give_up(Unavailable("the ledger was replaced meanwhile"))

    def _note_commits(self, now_ms: int) -> None:
        engine = self._core.engine
        if self._stuck_at[0] != engine.commit_index or engine.last_index == engine.commit_index:
            self._stuck_at = (engine.commit_index, now_ms)

    def _can_commit_nothing(self, now_ms: int) -> bool:
        """Nothing was committed for a while, and too few of the voters that are there need no copy."""
        self._note_commits(now_ms)
        engine, stuck_ms = self._core.engine, now_ms - self._stuck_at[1]
        if engine.role != "leader" or stuck_ms < STUCK_MS_MIN:
            return False
        voters, base_index = engine.voters, self._core.journal.base_index
        level = [peer for peer in engine.connected if engine.matched(peer) >= base_index]
        count = len({*level, self._core.config.node_id} & set(voters))
        return 2 * count <= len(voters) or stuck_ms >= STUCK_MS_MAX

    def _end_waiting_if_stuck(self, now_ms: int) -> None:
        """Whoever is needed for a majority and needs the copy does not wait for voters who cannot be heard."""
        asked, question = self._asked, self._question
        if (asked is None and question is None) or not self._can_commit_nothing(now_ms):
            return
        if asked is not None:
            self._asked = None
            asked.begin(None)
        elif question is not None and not self._differ(question.index):
            log.warning("nothing can be committed: a copy is sent that too few have compared")
            self._answer(question, "")

    def is_of_use(self, index: int) -> bool:
        """Whether what the journal holds still follows on a copy at this index. Any thread may ask."""
        return not self._closed.is_set() and index >= self._core.journal.base_index

    def may_go_on(self, index: int) -> bool:
        """The same for whoever hashes a copy, which takes a third of a processor at most."""
        self._closed.wait(self._pace_s)
        return self.is_of_use(index)

    def vouch(self, index: int, digest: bytes, answer: Callable[[str], None]) -> None:
        """Call `answer` once: why it is not known that a majority found this there; empty: it has.

        Others have as long again as this node took, and VOUCH_MS_MIN at least.
        """
        if self._closed.is_set():
            return
        now_ms = self._clock.monotonic_ms()
        until_ms = now_ms + max(VOUCH_MS_MIN, now_ms - self._copied_ms)
        self._question = Question(index, digest, until_ms, answer)
        if index == self._copied_index:
            self._say(index, digest)
        self._compare()

    # What the core tells.

    def applied(self, index: int, _scrub: Scrub) -> None:
        """Begin to hash all rows: an entry asks for it. Called before the next entry."""
        if self._closed.is_set():
            return
        asked, self._asked = self._asked, None
        self._stuck_at = (-1, 0)
        engine = self._core.engine
        if asked is not None and engine.role != "leader":
            asked.give_up(Unavailable("this node leads no more"))
            asked = None
        # With nobody else to compare it with, a copy is compared with the ledger itself.
        is_alone = set(engine.voters) <= {self._core.config.node_id}
        if asked is None or is_alone:
            self._hash(index)
        if asked is not None:
            self._copied_index = 0 if is_alone else index
            self._copied_ms = self._clock.monotonic_ms()
            asked.begin(index)

    def heard(self, peer: str, said: ScrubDigest) -> None:
        """Take what a voter found. It may have come further than this node: it is kept until then."""
        if peer in self._core.engine.voters and len(said.whole_digest) == DIGEST_BYTES:
            self._keep(peer, said.revision, said.whole_digest)
            self._compare()

    def peer_came(self, peer: str) -> None:
        """A voter that was away may vouch now, or may not have heard yet what this node found."""
        if peer in self._core.engine.voters:
            self._core.snapshots.voter_came()
        if not self._core.diverged and not self._core.is_removed:
            for index, digest in self._said.get(self._core.config.node_id, {}).items():
                self._send(peer, index, digest)

    def turn(self) -> str:
        """Give up what is late. Returns why this node must not go on; empty: it may."""
        now_ms = self._clock.monotonic_ms()
        self._end_waiting_if_stuck(now_ms)
        own, question = self._own, self._question
        if own is not None and own.until_ms <= now_ms:
            self._end_own()
        if question is not None and not self.is_of_use(question.index):
            self._answer(question, "the journal went on without it")
        elif question is not None and question.until_ms <= now_ms:
            if self._differ(question.index):
                self._doubt(question, "the voters that answered differ")
            else:
                self._answer(question, f"{self._silent(question.index)} did not say what they hold")
        return self._fault

    def close(self) -> None:
        """What is being read ends soon, without a word."""
        self._closed.set()

    # Inside.

    def _hash(self, index: int) -> None:
        path = self._core.ledger_path
        if self._under_way_count >= READING_MAX:
            return
        try:
            reading = open_at(path, index)
        except (sqlite3.Error, Damaged) as error:
            self._not_read(index, path, error)
            return
        self._reading_count += 1
        self._under_way_count += 1
        aside = self._core.snapshots.folder / f"compared-{index}.db"
        read: list[bytes] = []

        def may_go_on() -> bool:
            return not self._closed.is_set() and wal_bytes(path) <= WAL_BYTES_MAX

        def work() -> None:
            with contextlib.closing(reading), removed_if_it_fails(aside, self._disk):
                check_schema(reading)
                if self._disk.free_bytes(aside.parent) >= ROOM_LEDGERS_MIN * path.stat().st_size:
                    copy_pages(reading, aside, self._disk, may_go_on=may_go_on)
                else:
                    read.append(whole_digest(reading, may_go_on=may_go_on))

        def done(error: BaseException | None) -> None:
            self._reading_count -= 1
            if error is None and not read:
                self._hash_aside(index, path, aside)
            else:
                self._hashed(index, path, read, error)

        self._background.run(work, done)

    def _hash_aside(self, index: int, path: Path, aside: Path) -> None:
        """Hash a copy that is gone afterwards: a long read of the ledger itself would let its log grow."""
        read: list[bytes] = []

        def may_go_on() -> bool:
            return not self._closed.wait(self._pace_s)

        def work() -> None:
            try:
                read.append(digest_of_rows(aside, may_go_on=may_go_on))
            finally:
                remove_database(aside, self._disk)

        def done(error: BaseException | None) -> None:
            if isinstance(error, sqlite3.Error | Damaged):
                # That says nothing about the ledger.
                error = StorageFailed(f"what was copied to be hashed cannot be read: {error}")
            self._hashed(index, path, read, error)

        self._background.run(work, done)

    def _hashed(
        self, index: int, path: Path, read: list[bytes], error: BaseException | None
    ) -> None:
        self._under_way_count -= 1
        if self._closed.is_set():
            return
        if error is not None:
            self._not_read(index, path, error)
            return
        [digest] = read
        self._end_own()
        self._own = Own(index, digest, path, self._clock.monotonic_ms() + OWN_MS)
        self._say(index, digest)
        self._compare()

    def _not_read(self, index: int, path: Path, error: BaseException | None) -> None:
        damage = damage_in(error) if path == self._core.ledger_path else ""
        self._fault = self._fault or damage
        if not damage:
            log.error("the ledger could not be compared as a whole at %d: %s", index, error)

    def _say(self, index: int, digest: bytes) -> None:
        own = self._core.config.node_id
        self._keep(own, index, digest)
        for member in self._core.ledger.members():
            if member != own:
                self._send(member, index, digest)

    def _send(self, peer: str, index: int, digest: bytes) -> None:
        said = ScrubDigest(revision=index, whole_digest=digest)
        self._link.send(peer, Frame(term=self._core.engine.term, scrub_digest=said))

    def _keep(self, voter: str, index: int, digest: bytes) -> None:
        own, voters = self._core.config.node_id, self._core.engine.voters
        self._said = {one: kept for one, kept in self._said.items() if one == own or one in voters}
        kept = self._said.setdefault(voter, {})
        kept[index] = digest
        if len(kept) > WHOLES_KEPT_MAX:
            del kept[next(iter(kept))]

    def _said_at(self, index: int) -> dict[str, bytes]:
        return {voter: kept[index] for voter, kept in self._said.items() if index in kept}

    def _compare(self) -> None:
        own, question = self._own, self._question
        if own is not None:
            verdict = self._judge(own.index, own.digest)
            if verdict is not Verdict.PENDING:
                self._own = None
                self._settle(own, verdict)
        if question is not None:
            verdict = self._judge(question.index, question.digest)
            if verdict is Verdict.EQUAL:
                self._is_split = False
                self._answer(question, "")
            elif verdict is not Verdict.PENDING:
                self._doubt(question, "no majority of the voters holds what it holds")

    def _end_own(self) -> None:
        """Too few have said what they hold: that they differ is still worth telling."""
        own, self._own = self._own, None
        if own is not None and self._differ(own.index):
            self._settle(own, Verdict.SPLIT)

    def _settle(self, own: Own, verdict: Verdict) -> None:
        if own.path != self._core.ledger_path:
            return  # what is said of a ledger that was replaced is not held against the new one
        if verdict is Verdict.DIVERGED:
            self._fault = (
                f"this node's ledger is not what a majority of the voters has at revision "
                f"{own.index}"
            )
        elif verdict is Verdict.SPLIT and not self._is_split:
            log.critical(
                "the ledgers of the voters differ at revision %d, and no majority agrees: nobody can "
                "say which is right, and no copy is sent until one does. Compare them with: mesh "
                "doctor",
                own.index,
            )
        self._is_split = verdict is Verdict.SPLIT

    def _doubt(self, question: Question, why: str) -> None:
        """It may be the copy alone that is wrong: let all, this node too, look at their ledgers."""
        if not self._is_split and question.index == self._copied_index:
            with contextlib.suppress(ConsensusError):
                self._propose(lambda _: None)
        self._answer(question, why)

    def _answer(self, question: Question, why: str) -> None:
        self._question = None
        question.answer(why)

    def _differ(self, index: int) -> bool:
        return len(set(self._said_at(index).values())) > 1

    def _silent(self, index: int) -> str:
        silent = set(self._core.engine.voters) - set(self._said_at(index))
        return ", ".join(sorted(silent)) or "too few voters"

    def _judge(self, index: int, digest: bytes) -> Verdict:
        return judge(digest, self._said_at(index), self._core.engine.voters)

"""The background scrub: nodes read the same rows at the same log index and tell each other what they found.

The leader puts a Scrub entry into the log for each range. Every node opens a read transaction right
after it has applied that entry, reads the rows off the loop from a connection of its own, and sends
their hash to all members. Who differs from what a majority of the voters found, or finds its own
file damaged, takes itself out of service: `Core.turn` raises Damaged, once, and a mark beside the
state keeps the node from starting again. This file reads and compares; it repairs nothing.

A range is at most RANGE_ROWS_MAX rows or about RANGE_BYTES_MAX, so that no read transaction keeps
the write-ahead log from being checkpointed for long. The first of a round checks the structure of
the file as well, when that is at most CHECK_BYTES_MAX.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import Command, Entry, Scrub
from quorumesh.v1.peer_pb2 import Frame, ScrubDigest

from consensus.config import Ports
from consensus.engine.disk import Disk
from consensus.errors import Damaged, Unavailable
from consensus.ledger.parts import Range, all_lines, first_range, foreign_schema, read_range

if TYPE_CHECKING:
    from consensus.core import Core

MARK = "DIVERGED"
MARK_BYTES_MAX = 4_096
STEP_MS = 100  # between the end of one range and the next
PROPOSE_MS = 5_000
ANSWER_MS = 30_000  # then a range counts as compared as far as it was
RANGES_KEPT_MAX = 64  # of each node: some seconds of a round, for whoever lags so far behind
READING_MAX = 2  # a node that is slower leaves ranges out
CHECK_BYTES_MAX = 64 << 20
FAULTS_SHOWN_MAX = 3
DIGEST_BYTES = 32
PACE_BYTES = 64 << 10  # as hashed: some two milliseconds of work
NO_TEXT = "Could not decode to UTF-8"  # how the errors of text that is none begin
NO_DEFINITION = "a definition is not what it was"
MEMORY_BYTES_TRIED = 64 << 20

log = logging.getLogger("consensus.scrub")


class Verdict(Enum):
    """What the hashes of one range say of this node."""

    PENDING = "pending"  # too few have answered
    EQUAL = "equal"  # a majority of the voters found what this node found
    DIVERGED = "diverged"  # a majority agrees on something else
    SPLIT = "split"  # they differ, and no majority agrees on anything


def judge(own: bytes, said: Mapping[str, bytes], voters: Collection[str]) -> Verdict:
    """What a node is to think of its ledger. `said` has its own answer too if it is a voter."""
    answers = Counter(said[voter] for voter in voters if voter in said)
    missing_count = len(voters) - answers.total()
    majority = len(voters) // 2 + 1
    if not answers:
        return Verdict.PENDING
    digest, count = answers.most_common(1)[0]
    if count >= majority:
        return Verdict.EQUAL if digest == own else Verdict.DIVERGED
    if count + missing_count < majority:
        return Verdict.SPLIT
    return Verdict.PENDING


def scrubs_of(entry: Entry) -> dict[bool, Scrub]:
    """What an entry has compared: False to the first range in it, True to the first whole ledger."""
    found: dict[bool, Scrub] = {}
    for proposal in entry.proposals:
        if proposal.command.HasField("scrub"):
            found.setdefault(proposal.command.scrub.whole, proposal.command.scrub)
    return found


def is_due(*, now_ms: int, ended_ms: int, scrub_ms: int, has_news: bool) -> bool:
    """Whether the leader should begin a round: in time, and only if there is something to find."""
    return scrub_ms > 0 and has_news and now_ms - ended_ms >= scrub_ms


@dataclass(frozen=True, slots=True)
class ScrubView:
    """What the scrub has found so far, for status."""

    result: str  # equal, undecided, differs, damaged; empty: nothing was compared yet
    revision: int  # of the last range compared
    age_ms: int  # since then
    round_count: int
    row_count: int


@dataclass(slots=True)
class Compared:
    """A range that this node has read and others are asked about."""

    revision: int
    digest: bytes
    until_ms: int


class Scrubbing:
    """One node's part in the scrub. Its methods are called on the loop, by the core."""

    def __init__(self, core: Core, ports: Ports, *, scrub_ms: int) -> None:
        self._core = core
        self._link = ports.link
        self._clock = ports.clock
        self._background = ports.background
        self._scrub_ms = scrub_ms
        self._heard: dict[str, dict[int, bytes]] = {}  # of voters only: revision to hash
        self._open: deque[Compared] = deque()  # at most RANGES_KEPT_MAX
        self._told: deque[Compared] = deque(maxlen=RANGES_KEPT_MAX)  # to whoever could be reached
        self._reading_count = 0
        self._next: Scrub | None = None  # None: between two rounds
        self._wait_ms = 0  # do not propose before
        self._ended_ms = ports.clock.monotonic_ms()
        self._last_revision = 0  # of the last Scrub entry
        self._has_comer = True  # a node may have come back since the last round began
        self._is_closed = False
        self._fault = ""
        self._result, self._compared_ms, self._compared_revision = "", 0, 0
        self._round_result = "equal"
        self._round_count = self._row_count = 0

    # What the core tells.

    def applied(self, index: int, scrub: Scrub) -> None:
        """Begin to read the range that an entry names. Called before the next entry."""
        self._last_revision = index
        if not scrub.after and scrub.part == 0:
            self._has_comer, self._round_result = False, "equal"
        self._next = None
        self._wait_ms = self._clock.monotonic_ms() + ANSWER_MS
        if self._reading_count >= READING_MAX or self._is_closed:
            return
        try:
            reading = open_at(self._core.ledger_path, index)
        except (sqlite3.Error, Damaged) as error:
            self._read(index, None, error)
            return
        self._reading_count += 1
        found: list[Range] = []
        path = self._core.ledger_path

        def work() -> None:
            with contextlib.closing(reading):
                check_schema(reading)
                is_first = not scrub.after and scrub.part == 0
                if is_first and path.stat().st_size <= CHECK_BYTES_MAX:
                    check_structure(reading)
                found.append(read_range(reading, scrub))

        def done(error: BaseException | None) -> None:
            self._reading_count -= 1
            if not self._is_closed:
                self._read(index, found[0] if found else None, error)

        self._background.run(work, done)

    def heard(self, peer: str, said: ScrubDigest) -> None:
        """Take what a voter found. It may have come further than this node: it is kept until then."""
        if peer not in self._core.engine.voters or len(said.digest) != DIGEST_BYTES:
            return
        kept = self._heard.setdefault(peer, {})
        kept[said.revision] = said.digest
        if len(kept) > RANGES_KEPT_MAX:
            del kept[next(iter(kept))]
        self._compare()

    def peer_came(self, peer: str) -> None:
        """A node that was away may have come back with other rows: compare, also if nothing is new.

        It may be asked about a range by the leader before its link to this node is up.
        """
        self._has_comer = True
        now_ms = self._clock.monotonic_ms()
        if self._core.diverged or self._core.is_removed:
            return
        for compared in self._told:
            if compared.until_ms > now_ms:
                self._send(peer, compared)

    def turn(self) -> str:
        """Propose what is due. Returns why this node must not go on; empty: it may."""
        now_ms = self._clock.monotonic_ms()
        while self._open and self._open[0].until_ms <= now_ms:
            self._give_up(self._open.popleft())
        if self._core.engine.role == "leader" and now_ms >= self._wait_ms:
            self._propose(now_ms)
        return self._fault

    def view(self) -> ScrubView:
        """Cheap to ask for."""
        age_ms = self._clock.monotonic_ms() - self._compared_ms if self._result else 0
        return ScrubView(
            result=self._result,
            revision=self._compared_revision,
            age_ms=age_ms,
            round_count=self._round_count,
            row_count=self._row_count,
        )

    def close(self) -> None:
        """What is being read ends without a word."""
        self._is_closed = True

    # Inside.

    def _propose(self, now_ms: int) -> None:
        scrub = self._next
        if scrub is None:
            has_news = self._has_comer or self._core.applied_index > self._last_revision
            if not is_due(
                now_ms=now_ms,
                ended_ms=self._ended_ms,
                scrub_ms=self._scrub_ms,
                has_news=has_news,
            ):
                return
            scrub = first_range()
        self._wait_ms = now_ms + PROPOSE_MS
        with contextlib.suppress(Unavailable):  # too much waits for the log: a scrub can wait too
            self._core.propose(
                [Command(scrub=scrub)], deadline_ms=now_ms + PROPOSE_MS, done=lambda _: None
            )

    def _read(self, index: int, found: Range | None, error: BaseException | None) -> None:
        now_ms = self._clock.monotonic_ms()
        if found is None:
            self._not_read(index, error)
            self._end_round(now_ms)
            return
        self._row_count += found.row_count
        self._next = found.following
        self._wait_ms = now_ms + STEP_MS
        if len(self._open) >= RANGES_KEPT_MAX:
            self._give_up(self._open.popleft())
        self._open.append(Compared(index, found.digest, now_ms + ANSWER_MS))
        self._told.append(self._open[-1])
        for member in self._core.ledger.members():
            if member != self._core.config.node_id:
                self._send(member, self._open[-1])
        voters = self._core.engine.voters
        self._heard = {peer: kept for peer, kept in self._heard.items() if peer in voters}
        self._compare()
        if found.following is None:
            self._round_count += 1
            self._end_round(now_ms)

    def _send(self, peer: str, compared: Compared) -> None:
        said = ScrubDigest(revision=compared.revision, digest=compared.digest)
        self._link.send(peer, Frame(term=self._core.engine.term, scrub_digest=said))

    def _end_round(self, now_ms: int) -> None:
        self._next, self._ended_ms, self._wait_ms = None, now_ms, 0

    def _not_read(self, index: int, error: BaseException | None) -> None:
        damage = damage_in(error)
        if not damage:
            log.error("the ledger could not be compared at revision %d: %s", index, error)
            return
        self._fault = damage
        self._result, self._compared_revision = "damaged", index
        self._compared_ms = self._clock.monotonic_ms()

    def _compare(self) -> None:
        voters = self._core.engine.voters
        left: deque[Compared] = deque()
        for compared in self._open:
            verdict = judge(compared.digest, self._said(compared), voters)
            if verdict is Verdict.PENDING:
                left.append(compared)
            else:
                self._settle(compared, verdict)
        self._open = left

    def _said(self, compared: Compared) -> dict[str, bytes]:
        said = {self._core.config.node_id: compared.digest}
        for peer, kept in self._heard.items():
            if compared.revision in kept:
                said[peer] = kept[compared.revision]
        return said

    def _settle(self, compared: Compared, verdict: Verdict) -> None:
        match verdict:
            case Verdict.EQUAL:
                self._tell(compared, "equal")
            case Verdict.DIVERGED:
                self._tell(compared, "damaged")
                self._fault = (
                    f"this node's ledger is not what a majority of the voters has at revision "
                    f"{compared.revision}"
                )
            case _:
                self._tell(compared, "differs")
                log.critical(
                    "the ledgers of the voters differ at revision %d, and no majority agrees: "
                    "nobody can say which is right. Compare them with: mesh doctor",
                    compared.revision,
                )

    def _give_up(self, compared: Compared) -> None:
        """Too few answered in time: what they said is still worth telling."""
        said = self._said(compared)
        others = sorted(peer for peer, digest in said.items() if digest != compared.digest)
        if others:
            log.critical(
                "the ledgers differ at revision %d: here and on %s; too few voters answered to say "
                "which is right",
                compared.revision,
                ", ".join(others),
            )
        self._tell(compared, "differs" if others else "undecided")

    def _tell(self, compared: Compared, result: str) -> None:
        """The worst of a round is its result: a range that is equal does not make up for another."""
        order = ("equal", "undecided", "differs", "damaged")
        self._round_result = max(self._round_result, result, key=order.index)
        self._result, self._compared_revision = self._round_result, compared.revision
        self._compared_ms = self._clock.monotonic_ms()


def open_at(path: Path, index: int) -> sqlite3.Connection:
    """A connection of its own that sees the ledger at exactly this index, for a thread to read.

    Raises what SQLite raises, and Damaged when the file says that it is elsewhere.
    """
    reading = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        reading.text_factory = bytes
        with errors_as_sqlite():
            reading.execute("PRAGMA query_only=1")
            reading.execute("BEGIN")
            row = reading.execute("SELECT applied_index FROM ledger").fetchone()
        # It was written just now: what the file says else, it was not told.
        if row != (index,):
            raise Damaged(f"the ledger is damaged: at {index} it says {row}")
    except BaseException:
        reading.close()
        raise
    return reading


def whole_digest(db: sqlite3.Connection, *, may_go_on: Callable[[], bool]) -> bytes:
    """One hash over all rows of all tables. Unavailable when it may not go on. For a thread.

    It asks at each PACE_BYTES, and whoever answers late makes it slower.
    """
    chain = blake2b(digest_size=DIGEST_BYTES)
    unasked_bytes = PACE_BYTES
    for lines in all_lines(db):
        chain.update(lines)
        unasked_bytes += len(lines)
        if unasked_bytes >= PACE_BYTES:
            unasked_bytes = 0
            if not may_go_on():
                raise Unavailable("hashing all rows was given up")
    return chain.digest()


def check_schema(db: sqlite3.Connection) -> None:
    """Damaged unless every table and index is defined as this program defines it."""
    name = foreign_schema(db)
    if name:
        raise Damaged(f"the ledger is damaged: the definition of {name} is not ours")


def check_structure(reading: sqlite3.Connection) -> None:
    """Damaged unless pages, rows and indexes fit together. Reads the whole file."""
    rows = reading.execute(f"PRAGMA integrity_check({FAULTS_SHOWN_MAX})").fetchall()
    said = "; ".join(" ".join(row[0].decode("utf-8", "replace").split()) for row in rows)
    if said != "ok":
        raise Damaged(f"the ledger is damaged: {said}")


@contextlib.contextmanager
def errors_as_sqlite() -> Iterator[None]:
    """For the first read of a file, which looks at its definitions: it raises sqlite3.Error only.

    SQLite quotes a definition that makes no sense, and one that is no text cannot be told. One whose
    bytes it cannot get at, it calls a lack of memory (`sqlite3_exec`, `sqlite3_column_text`). One in
    which a name has changed makes the question wrong (SQLITE_ERROR), which is the same at every node.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        raise sqlite3.DatabaseError(f"{NO_TEXT}: {error}") from error
    except MemoryError as error:
        # If memory is lacking indeed, this says so, and nothing is said of the file.
        bytearray(MEMORY_BYTES_TRIED)
        raise sqlite3.DatabaseError(NO_DEFINITION) from error
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
            raise sqlite3.DatabaseError(f"{NO_DEFINITION}: {error}") from error
        raise


def damage_in(error: BaseException | None) -> str:
    """What an error says is wrong with the ledger itself; empty when it says nothing of that."""
    if isinstance(error, Damaged):
        return str(error)
    if isinstance(error, sqlite3.DatabaseError) and is_damage(error):
        return f"the ledger is damaged: {error}"
    return ""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite met bytes that cannot be right, rather than a disk that refuses."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    is_unspeakable = code == 0 and str(error).startswith((NO_TEXT, NO_DEFINITION))
    return is_unspeakable or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def write_mark(root: Path, why: str, disk: Disk) -> None:
    """Keep this state from ever being used again. Durable when it returns."""
    disk.replace(root / MARK, why.encode()[:MARK_BYTES_MAX] + b"\n")


def refuse_marked(root: Path, disk: Disk) -> None:
    """Raises Damaged when this state was found not to be what the other nodes have."""
    if disk.exists(root / MARK):
        why = disk.read(root / MARK)[:MARK_BYTES_MAX].decode("utf-8", "replace").strip()
        raise Damaged(f"this node was taken out of service: {why}")

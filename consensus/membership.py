"""Voters come and go: what a node asks for, and what the leader makes of it, one change at a time.

Any node may be asked. It brings the change to the leader, again when the leader changes, until its
own ledger shows it. The leader appends it, or says why not. It decides nothing about tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import MembershipChange
from quorumesh.v1.peer_pb2 import Frame, Propose, ProposeReply

from consensus.engine.config import NEVER_MS
from consensus.errors import (
    ChangeRefused,
    ConsensusError,
    OutcomeUnknown,
    Refusal,
    Removed,
    Unavailable,
)
from consensus.ports import Link

if TYPE_CHECKING:
    from consensus.core import Core

ASKS_WAITING_MAX = 16  # changes that one node brings to the leader at a time
ASK_AGAIN_MS = 200
VOTERS_MAX = 7  # whatever is asked: each more makes every write wait for one more disk
CAUGHT_UP_ENTRIES = 50
ROUND_MS_MAX = (
    400  # of a round of catching up after which a node may vote: an election takes longer
)

# What does not pass by itself; the other refusals are asked again until the deadline.
FINAL = frozenset(
    {Refusal.UNKNOWN_NODE, Refusal.LAST_VOTER, Refusal.NO_LIVE_MAJORITY, Refusal.NO_SEAT}
)

Changed = Callable[[ConsensusError | None], None]


def judge(
    change: MembershipChange, *, voters: Collection[str], live: Collection[str]
) -> Refusal | None:
    """Whether the voters that a change would leave could go on; None when they can."""
    after = set(voters) | {change.node_id} if change.add else set(voters) - {change.node_id}
    if not after:
        return Refusal.LAST_VOTER
    if change.add and len(after) > VOTERS_MAX:
        return Refusal.NO_SEAT
    if 2 * len(after & set(live)) <= len(after):
        return Refusal.NO_LIVE_MAJORITY
    return None


@dataclass(slots=True)
class Ask:
    """A change that somebody here waits for."""

    change: MembershipChange
    deadline_ms: int
    done: Changed
    asked_ms: int = NEVER_MS
    open_count: int = 0  # times it was brought to a leader that has not refused it
    refusal: Refusal | None = None


class Membership:
    """The changes of one node's mesh: those asked for here, and, on the leader, all."""

    def __init__(self, core: Core, link: Link) -> None:
        self._core = core
        self._link = link
        self._asks: list[Ask] = []
        self._rounds: dict[str, tuple[int, int]] = {}  # member: when it began, up to which entry

    def add_voter(self, node_id: str, *, deadline_ms: int, done: Changed) -> None:
        """Give a member a vote once it has caught up. Idempotent. `done` is called once, later."""
        self._ask(MembershipChange(add=True, node_id=node_id), deadline_ms, done)

    def remove_voter(self, node_id: str, *, deadline_ms: int, done: Changed) -> None:
        """Remove a node from the mesh, for good. Idempotent. `done` is called once, later.

        A leader hands over first. Refused: UNKNOWN_NODE, LAST_VOTER, NO_LIVE_MAJORITY.
        """
        self._ask(MembershipChange(node_id=node_id), deadline_ms, done)

    def replace_voter(self, old: str, new: str, *, deadline_ms: int, done: Changed) -> None:
        """Give `new` a vote, then remove `old`: what was begun and failed may be asked again."""

        def added(error: ConsensusError | None) -> None:
            if error is not None:
                done(error)
                return
            try:
                self.remove_voter(old, deadline_ms=deadline_ms, done=done)
            except ConsensusError as refused:
                done(refused)

        self.add_voter(new, deadline_ms=deadline_ms, done=added)

    def _ask(self, change: MembershipChange, deadline_ms: int, done: Changed) -> None:
        if self._core.is_removed:
            raise Removed
        if len(self._asks) >= ASKS_WAITING_MAX:
            raise Unavailable("too many changes of voters wait already")
        change.wall_ms = self._core.wall_ms()
        self._asks.append(Ask(change, deadline_ms, done))
        self._core.wake()

    def turn(self, now_ms: int) -> None:
        """Ask, ask again, and give up what is too late."""
        if self._core.is_removed:
            self.expire(now_ms)  # first, for nobody else does it when the ledger cannot be read
        for ask in list(self._asks):
            if self._is_done(ask.change):
                self._end(ask, None)
            elif self._core.is_removed:
                self._end(ask, OutcomeUnknown(str(Removed())) if ask.open_count else Removed())
            elif now_ms >= ask.deadline_ms:
                self._end(ask, _late_error(ask))
            elif now_ms - ask.asked_ms >= ASK_AGAIN_MS:
                self._bring(ask, now_ms)

    def expire(self, now_ms: int) -> None:
        """Give up what is too late, without a look at the ledger."""
        for ask in list(self._asks):
            if now_ms >= ask.deadline_ms:
                self._end(ask, _late_error(ask))

    def leader_changed(self) -> None:
        """Whoever leads now has not been asked yet."""
        self._core.succession.leader_changed()
        self._rounds.clear()
        for ask in self._asks:
            ask.asked_ms = NEVER_MS

    def fail_all(self, error: ConsensusError) -> None:
        """The node stops: nobody waits any longer."""
        for ask in list(self._asks):
            self._end(ask, OutcomeUnknown(str(error)) if ask.open_count else error)

    def _is_done(self, change: MembershipChange) -> bool:
        ledger = self._core.ledger
        if change.add:
            return change.node_id in ledger.voters()
        is_member = change.node_id in ledger.members()
        return ledger.removed_at(change.node_id) is not None and not is_member

    def _bring(self, ask: Ask, now_ms: int) -> None:
        engine = self._core.engine
        if engine.role == "leader":
            ask.asked_ms, ask.open_count = now_ms, ask.open_count + 1
            refusal = self.consider(ask.change)
            if refusal is not None:
                self._refused(ask, refusal)
        elif engine.leader_id and self._link.is_up(engine.leader_id):
            frame = Frame(term=engine.term, propose=Propose(change=ask.change))
            if self._link.send(engine.leader_id, frame):
                ask.asked_ms, ask.open_count = now_ms, ask.open_count + 1

    def _refused(self, ask: Ask, refusal: Refusal) -> None:
        ask.open_count -= 1
        ask.refusal = refusal
        # A leader that knew less may have appended it before this one refused.
        if refusal in FINAL and ask.open_count == 0:
            self._end(ask, ChangeRefused(refusal))

    def _end(self, ask: Ask, error: ConsensusError | None) -> None:
        self._asks.remove(ask)
        ask.done(error)

    # What peers say.

    def is_part(self, peer: str) -> bool:
        """Whether a peer may write: a voter or a member, as far as this node knows."""
        return peer in self._core.engine.voters or self._core.ledger.is_member(peer)

    def has_left(self, peer: str) -> bool:
        """Whether a peer was removed from the mesh, as this node's ledger has it."""
        if peer in self._core.engine.voters:
            return False
        return self._core.ledger.removed_at(peer) is not None

    def receive(self, peer: str, change: MembershipChange) -> None:
        """A peer asks for a change: append it, or answer why not."""
        refusal: Refusal | None
        if not self.is_part(peer):
            refusal = Refusal.NOT_A_MEMBER
        else:
            refusal = self.consider(change) if change.node_id else Refusal.UNKNOWN_NODE
        if refusal is not None:
            reply = ProposeReply(refused=refusal.name, change=change)
            self._link.send(peer, Frame(term=self._core.engine.term, propose_reply=reply))

    def refusal_received(self, reply: ProposeReply) -> None:
        if reply.refused not in Refusal.__members__:
            return
        for ask in list(self._asks):
            if ask.change == reply.change and ask.open_count > 0:
                self._refused(ask, Refusal[reply.refused])

    # What the leader does.

    def consider(self, change: MembershipChange) -> Refusal | None:
        """Leader: append the change if that is safe now. None: appended, or in force already."""
        core, engine, node_id = self._core, self._core.engine, change.node_id
        if engine.role != "leader":
            return Refusal.NOT_LEADER
        if self._is_done(change) or (change.add and node_id in engine.voters):
            return None
        members = core.ledger.members()
        if node_id not in members:
            return Refusal.UNKNOWN_NODE
        if change.add and not self._has_caught_up(node_id):
            return Refusal.NOT_CAUGHT_UP
        refusal = judge(change, voters=engine.voters, live=engine.live_nodes())
        if refusal is Refusal.NO_LIVE_MAJORITY:
            hope = judge(change, voters=engine.voters, live=engine.hoped_nodes())
            return Refusal.NOT_KNOWN_YET if hope is None else refusal
        if refusal is not None:
            return refusal
        if not change.add and node_id == core.config.node_id:
            core.succession.begin()
            return Refusal.HANDING_OVER
        asked = MembershipChange(add=change.add, node_id=node_id, wall_ms=core.wall_ms())
        if change.add:
            asked.address = members[node_id]
        return None if engine.change(asked) else Refusal.CHANGE_UNDER_WAY

    def _has_caught_up(self, node_id: str) -> bool:
        """Nothing matched means that it has not answered at all, however short the log is.

        Who is not heard from might never be, and would count in every majority from then on. On a
        busy mesh the end of the log is never near: then a short round will do (thesis 4.2.1), in
        which it has received all that the log held when the round began.
        """
        engine, now_ms = self._core.engine, self._core.now_ms()
        engine.feed(node_id)
        matched = engine.matched(node_id)
        if matched == 0 or matched + CAUGHT_UP_ENTRIES >= engine.last_index:
            return matched > 0
        began_ms, wanted = self._rounds.get(node_id, (NEVER_MS, 0))
        if matched < wanted:
            return False
        self._rounds[node_id] = (now_ms, engine.last_index)
        return now_ms - began_ms <= ROUND_MS_MAX


def _late_error(ask: Ask) -> ConsensusError:
    if ask.open_count > 0:
        return OutcomeUnknown("the change was brought to a leader, and is not in force yet")
    if ask.refusal is not None:
        return ChangeRefused(ask.refusal)
    return Unavailable("no leader that could be asked; nothing was changed")

"""What the leader does for the mesh by itself.

Silent nodes are suspected, leaving ones are removed, admitted ones become voters, and who was
removed is told.

It decides nothing that is not in the log: it only proposes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import Command, MembershipChange, Suspect

from consensus.errors import Refusal, Unavailable
from consensus.ports import Clock, Link

if TYPE_CHECKING:
    from consensus.core import Core

PERIOD_MS = 100
SUSPECT_AFTER_MS = 250
PROPOSE_MS = 5_000
FAREWELL_MS = 5_000  # for so long one connection is used to tell a removed node


class Autopilot:
    """Runs on every node, acts only on the leader."""

    def __init__(self, core: Core, link: Link, clock: Clock) -> None:
        self._core = core
        self._link = link
        self._clock = clock
        self._next_ms = 0
        self._down_since_ms: dict[str, int] = {}
        self._suspected: set[str] = set()
        self._told_since_ms: dict[str, int] = {}  # removed nodes on this connection

    def turn(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + PERIOD_MS
        if self._core.engine.role != "leader":
            self._down_since_ms.clear()
            self._suspected.clear()
            self._told_since_ms.clear()
            return
        addresses = self._core.ledger.members()
        self._suspect_silent([m for m in addresses if m != self._core.config.node_id], now_ms)
        self._bid_farewell(now_ms)
        if not self._remove_leaving():
            self._promote(addresses)

    def _suspect_silent(self, members: list[str], now_ms: int) -> None:
        for member in members:
            if self._link.is_up(member):
                self._down_since_ms.pop(member, None)
                self._suspected.discard(member)
                continue
            since_ms = self._down_since_ms.setdefault(member, now_ms)
            is_due = member not in self._suspected and now_ms - since_ms >= SUSPECT_AFTER_MS
            if is_due and self._suspect(member, now_ms):
                self._suspected.add(member)

    def _suspect(self, member: str, now_ms: int) -> bool:
        try:
            self._core.propose(
                [Command(suspect=Suspect(node_id=member))],
                deadline_ms=now_ms + PROPOSE_MS,
                done=lambda _: None,
            )
        except Unavailable:
            return False  # too much waits for the log already: asked again in a moment
        return True

    def _promote(self, addresses: dict[str, str]) -> None:
        """Feed admitted nodes; add one only once it has caught up and there is a seat."""
        engine = self._core.engine
        waiting = [m for m in sorted(addresses) if m not in engine.voters and self._link.is_up(m)]
        has_seat = len(engine.voters) < self._core.config.voters_max
        for member in waiting:
            engine.feed(member)
        for member in waiting if has_seat else ():
            if self._core.membership.consider(MembershipChange(add=True, node_id=member)) is None:
                return

    def _remove_leaving(self) -> bool:
        """Remove one member in whose place another came. True: that is under way."""
        for member in self._core.ledger.leaving():
            refusal = self._core.membership.consider(MembershipChange(node_id=member))
            if refusal in (None, Refusal.HANDING_OVER, Refusal.CHANGE_UNDER_WAY):
                return True
        return False

    def _bid_farewell(self, now_ms: int) -> None:
        """Send the log to whoever was removed until it has learnt of it, or says nothing.

        Once it knows it has stopped, so an answer to the last frame is never waited for.
        """
        engine, ledger = self._core.engine, self._core.ledger
        for node_id in ledger.farewells():
            if not self._link.is_up(node_id):
                engine.unfeed(node_id)
                self._told_since_ms.pop(node_id, None)
                continue
            since_ms = self._told_since_ms.setdefault(node_id, now_ms)
            is_late = now_ms - since_ms >= FAREWELL_MS
            if is_late or engine.has_told(node_id, ledger.removed_at(node_id) or 0):
                engine.unfeed(node_id)
                self._told_since_ms[node_id] = now_ms - FAREWELL_MS
            else:
                engine.feed(node_id)

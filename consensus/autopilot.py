"""What the leader does for the mesh by itself: admitted nodes become voters, silent ones are suspected.

It decides nothing that is not in the log: it only proposes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import Command, MembershipChange, Suspect

from consensus.errors import Unavailable
from consensus.ports import Clock, Link

if TYPE_CHECKING:
    from consensus.core import Core

PERIOD_MS = 100
SUSPECT_AFTER_MS = 250
CAUGHT_UP_ENTRIES = 50
PROPOSE_MS = 5_000
FED_MEMBERS_MAX = 16  # members without a vote that the leader sends the log to


class Autopilot:
    """Runs on every node, acts only on the leader."""

    def __init__(self, core: Core, link: Link, clock: Clock) -> None:
        self._core = core
        self._link = link
        self._clock = clock
        self._next_ms = 0
        self._down_since_ms: dict[str, int] = {}
        self._suspected: set[str] = set()

    def turn(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if now_ms < self._next_ms:
            return
        self._next_ms = now_ms + PERIOD_MS
        if self._core.engine.role != "leader":
            self._down_since_ms.clear()
            self._suspected.clear()
            return
        addresses = self._core.ledger.members()
        self._suspect_silent([m for m in addresses if m != self._core.config.node_id], now_ms)
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
        """Feed admitted nodes; append the change only once one has caught up and there is a seat."""
        engine = self._core.engine
        waiting = [m for m in sorted(addresses) if m not in engine.voters and self._link.is_up(m)]
        has_seat = len(engine.voters) < self._core.config.voters_max
        for member in waiting[:FED_MEMBERS_MAX]:
            engine.feed(member)
            # Nothing matched means that it has not answered at all, however short the log is. Who
            # is not heard from might never be, and would count in every majority from then on.
            matched = engine.matched(member)
            if has_seat and matched > 0 and matched + CAUGHT_UP_ENTRIES >= engine.last_index:
                engine.change(
                    MembershipChange(
                        add=True,
                        node_id=member,
                        address=addresses[member],
                        wall_ms=self._clock.wall_ms(),
                    )
                )
                return

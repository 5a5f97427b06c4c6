"""A leader that is to go asks one voter after another to lead (Raft thesis 3.10).

It goes for one of two reasons: it is to be removed, or it can write nothing. It decides nothing
about who may lead: the voters elect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consensus.engine.config import NEVER_MS

if TYPE_CHECKING:
    from consensus.core import Core

HEIR_MS = 1_000  # for so long an heir may take: two that stand at once help nobody
HOLD_MS = 1_000  # for so long a leader takes no commands, so that an heir can hold them all
PAUSE_MS = 1_000  # before it holds commands back again, it serves its clients


class Succession:
    """The heirs of one node, over all the terms that it leads.

    Who was asked longest ago is asked first, also in a later term: one that cannot lead, or that
    hands back at once, is not asked again before all others were.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._held_ms = NEVER_MS  # when it began to hold commands back
        self._asked_ms: dict[str, int] = {}  # of voters only: when each was asked last

    @property
    def holds_commands(self) -> bool:
        """Whether this leader takes no commands for a moment, until another voter leads."""
        return self._core.now_ms() < self._held_ms + HOLD_MS

    def begin(self) -> None:
        """This leader is to be removed: let another lead, in a while again if nobody does."""
        now_ms = self._core.now_ms()
        if now_ms >= self._held_ms + HOLD_MS + PAUSE_MS:
            self._held_ms = now_ms

    def leader_changed(self) -> None:
        """Nothing is held back for an heir of another term."""
        self._held_ms = NEVER_MS

    def turn(self, now_ms: int, *, must_go: bool) -> None:
        """Ask an heir, if this node leads and is to go, and has given the last one its time."""
        engine = self._core.engine
        if engine.role != "leader" or not (must_go or self.holds_commands):
            return
        voters = set(engine.voters)
        self._asked_ms = {heir: ms for heir, ms in self._asked_ms.items() if heir in voters}
        if now_ms - max(self._asked_ms.values(), default=NEVER_MS) < HEIR_MS:
            return
        for heir in self._in_order(engine.live_nodes() & voters - {self._core.config.node_id}):
            # One that does not hold everything yet is passed over: it may in the next turn.
            if engine.transfer(heir):
                self._asked_ms[heir] = now_ms
                return

    def _in_order(self, live: set[str]) -> list[str]:
        matched = self._core.engine.matched
        return sorted(
            live, key=lambda heir: (self._asked_ms.get(heir, NEVER_MS), -matched(heir), heir)
        )

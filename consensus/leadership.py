"""What a replica does while it leads: it brings what waits into the log, and due timers with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import Command, Entry, Proposal

from consensus.ledger import APPLY_VERSION

if TYPE_CHECKING:
    from consensus.core import Core

ENTRIES_UNSYNCED_MAX = 2  # more wait, so that entries grow under load instead of their number
REGULAR, NO_OP, MEMBERSHIP = 0, 1, 2


class Leadership:
    """The leader's part of one replica, over all the terms that it leads.

    `led_ms`: when it surely still led, with a majority that heard it; at first: its start.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self.led_ms = core.now_ms()
        self._led_term = 0
        self._timer_index = 0  # of the last entry appended as this term's leader

    def lead(self, heard_ms: int) -> None:
        """Append what is due; a majority has heard this leader since `heard_ms`."""
        core = self._core
        self.led_ms = max(self.led_ms, heard_ms)
        if self._led_term != core.engine.term:
            self._led_term = core.engine.term
            # What an earlier leadership appended may have been withdrawn, or lost with its buffer.
            self._timer_index = 0
            core.counted.at_least(core.forwarding.last_stamp_ms(core.journal))
        founding = core.config.founding
        if founding is not None and not core.ledger.mesh_id and self._timer_index == 0:
            self._append([Proposal(command=Command(bootstrap=founding))])
        if core.succession.holds_commands:
            return
        while core.engine.unsynced_count < ENTRIES_UNSYNCED_MAX:
            taken = core.forwarding.take_for_entry()
            if not taken:
                break
            self._append(taken)
        due_ms = core.ledger.next_due_ms()
        # One empty entry at a time: the next only when this one has been applied.
        if (
            due_ms is not None
            and due_ms <= core.counted.now_ms()
            and core.engine.last_index == core.applied_index
        ):
            self._append([])

    def _append(self, proposals: Sequence[Proposal]) -> None:
        core = self._core
        entry = Entry(
            apply_version=APPLY_VERSION,
            counted_ms=core.counted.now_ms(),
            wall_ms=core.wall_ms(),
            proposals=proposals,
        )
        if (index := core.engine.append(bytes([REGULAR]) + entry.SerializeToString())) is not None:
            self._timer_index = index


__all__ = ["MEMBERSHIP", "NO_OP", "REGULAR", "Leadership"]

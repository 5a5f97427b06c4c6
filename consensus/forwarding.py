"""How commands reach the leader: own frames, bounded queues, never the library's forwarding."""

from __future__ import annotations

from collections import deque

from quorumesh.v1.ledger_pb2 import Entry, Proposal
from quorumesh.v1.peer_pb2 import Frame, Propose, ProposeReply

from consensus.engine import Engine, Journal
from consensus.ports import Link
from consensus.proposals import ENTRY_BYTES_MAX, ENTRY_UNITS_MAX, Proposals, cost

INBOX_PROPOSALS_MAX = 100_000
FRAMES_PER_TURN_MAX = 16


class Forwarding:
    """The way from `Proposals` into the log, on the leader and elsewhere."""

    def __init__(self, engine: Engine, link: Link, proposals: Proposals) -> None:
        self._engine = engine
        self._link = link
        self._proposals = proposals
        self._inbox: deque[Proposal] = deque()

    def send_to_leader(self) -> None:
        """Send what is unsent to the leader, if one is known and its link has room."""
        leader = self._engine.leader_id
        if not leader or not self._proposals.has_unsent() or not self._link.is_up(leader):
            return
        for _ in range(FRAMES_PER_TURN_MAX):
            taken = self._proposals.take_unsent(
                units_max=ENTRY_UNITS_MAX, bytes_max=ENTRY_BYTES_MAX
            )
            if not taken:
                return
            frame = Frame(term=self._engine.term, propose=Propose(proposals=taken))
            if not self._link.send(leader, frame):
                self._proposals.put_back(proposal.sequence for proposal in taken)
                return

    def receive(self, peer: str, propose: Propose) -> None:
        """Take a peer's proposals in, or tell it that they got nowhere."""
        if self._engine.role == "leader" and len(self._inbox) < INBOX_PROPOSALS_MAX:
            self._inbox.extend(propose.proposals)
            return
        by_incarnation: dict[int, list[int]] = {}
        for proposal in propose.proposals:
            by_incarnation.setdefault(proposal.incarnation, []).append(proposal.sequence)
        for incarnation, sequences in by_incarnation.items():
            reply = ProposeReply(
                incarnation=incarnation, sequences=sequences, refused="not leading"
            )
            self._link.send(peer, Frame(term=self._engine.term, propose_reply=reply))

    def drop_inbox(self) -> None:
        """The leader or term changed: every sender sees that too and sends again."""
        self._inbox.clear()

    def take_for_entry(self) -> list[Proposal]:
        """The proposals of the next entry: peers' first, then our own, within an entry's bounds."""
        taken: list[Proposal] = []
        units = size = 0
        while self._inbox:
            more_units, more_bytes = cost(self._inbox[0])
            if taken and (
                units + more_units > ENTRY_UNITS_MAX or size + more_bytes > ENTRY_BYTES_MAX
            ):
                return taken
            taken.append(self._inbox.popleft())
            units, size = units + more_units, size + more_bytes
        room, space = ENTRY_UNITS_MAX - units, ENTRY_BYTES_MAX - size
        if room > 0 and space > 0 and (not taken or room > ENTRY_UNITS_MAX // 2):
            taken.extend(self._proposals.take_unsent(units_max=room, bytes_max=space))
        return taken

    @staticmethod
    def last_stamp_ms(journal: Journal) -> int:
        """Counted time of the last regular entry that the journal holds; 0 if none."""
        for index in range(
            journal.last_index, max(journal.base_index, journal.last_index - 64), -1
        ):
            command = journal.command_at(index)
            if command[:1] == b"\x00":
                return Entry.FromString(command[1:]).counted_ms
        return 0

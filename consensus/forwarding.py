"""How commands reach the leader: own frames, bounded queues, never the library's forwarding."""

from __future__ import annotations

from collections import deque

from quorumesh.v1.ledger_pb2 import Entry, Proposal
from quorumesh.v1.peer_pb2 import Frame, Propose, ProposeReply

from consensus.engine import Engine, Journal
from consensus.ports import Link
from consensus.proposals import ENTRY_BYTES_MAX, ENTRY_UNITS_MAX, Proposals, cost, cost_of

INBOX_PROPOSALS_MAX = 100_000
INBOX_BYTES_MAX = 128 << 20  # the last frame taken in may go beyond it
FRAMES_PER_TURN_MAX = 16


class Forwarding:
    """The way from `Proposals` into the log, on the leader and elsewhere."""

    def __init__(self, engine: Engine, link: Link, proposals: Proposals) -> None:
        self._engine = engine
        self._link = link
        self._proposals = proposals
        self._inbox: deque[Proposal] = deque()
        self._inbox_bytes = 0
        self._inbox_term = 0  # in which all that is there was sent
        self._own_first = False

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

    def receive(self, peer: str, propose: Propose, *, term: int, is_part: bool = True) -> None:
        """Take a peer's proposals in, or tell it that they got nowhere.

        They get nowhere as well when the peer is no part of the mesh (any more), and when it sent them
        to the leader of another term: later copies may have been appended since.
        """
        refused: list[Proposal] = []
        self.drop_older()
        leads = self._engine.role == "leader" and self._engine.term == term
        if not is_part or not leads or not self._has_room():
            refused.extend(propose.proposals)
        else:
            for proposal in propose.proposals:
                size_bytes = proposal.ByteSize()
                if size_bytes > ENTRY_BYTES_MAX:
                    refused.append(proposal)
                else:
                    self._inbox.append(proposal)
                    self._inbox_bytes += size_bytes
        by_incarnation: dict[int, list[int]] = {}
        for proposal in refused:
            by_incarnation.setdefault(proposal.incarnation, []).append(proposal.sequence)
        for incarnation, sequences in by_incarnation.items():
            reply = ProposeReply(
                incarnation=incarnation, sequences=sequences, refused="not appended here"
            )
            self._link.send(peer, Frame(term=self._engine.term, propose_reply=reply))

    def _has_room(self) -> bool:
        return len(self._inbox) < INBOX_PROPOSALS_MAX and self._inbox_bytes <= INBOX_BYTES_MAX

    def drop_older(self) -> None:
        """If the leader or term changed, every sender sees that too and sends again."""
        if self._engine.role != "leader" or self._inbox_term != self._engine.term:
            self._inbox.clear()
            self._inbox_bytes, self._inbox_term = 0, self._engine.term

    def take_for_entry(self) -> list[Proposal]:
        """The proposals of the next entry, within an entry's bounds.

        Peers' and our own take turns at being first, so that neither starves the other.
        """
        self._own_first = not self._own_first
        if self._own_first:
            taken = self._take_own([])
            return taken + self._take_inbox(taken)
        taken = self._take_inbox([])
        return taken + self._take_own(taken)

    def _take_own(self, before: list[Proposal]) -> list[Proposal]:
        if not self._proposals.has_unsent():
            return []
        units, size = cost_of(before)
        return self._proposals.take_unsent(
            units_max=ENTRY_UNITS_MAX - units,
            bytes_max=ENTRY_BYTES_MAX - size,
            at_least_one=not before,
        )

    def _take_inbox(self, before: list[Proposal]) -> list[Proposal]:
        if not self._inbox:
            return []
        taken: list[Proposal] = []
        units, size = cost_of(before)
        while self._inbox:
            more_units, more_bytes = cost(self._inbox[0])
            is_too_much = (
                units + more_units > ENTRY_UNITS_MAX or size + more_bytes > ENTRY_BYTES_MAX
            )
            if is_too_much and (taken or before):
                break
            taken.append(self._inbox.popleft())
            self._inbox_bytes -= more_bytes
            units, size = units + more_units, size + more_bytes
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

"""The gRPC service `Mesh`: how this node sees the mesh, tokens, joining, digests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quorumesh.v1.mesh_pb2 import (
    CommittedEntry,
    CreateTokenReply,
    CreateTokenRequest,
    DigestReply,
    DigestRequest,
    EntriesReply,
    EntriesRequest,
    JoinReply,
    JoinRequest,
    Member,
    MembersReply,
    MembersRequest,
    ScrubStatus,
    StatusReply,
    StatusRequest,
)
from quorumesh.v1.mesh_pb2_grpc import MeshServicer

from consensus.ledger import Reader
from consensus.replica import Replica
from consensus.scrub import ScrubView
from node.api.errors import Refusal
from node.api.proposing import Context, Proposer
from node.api.reading import LongReads
from node.joining import Joining

ENTRIES_BYTES = 1 << 20  # of one reply; the entry that reaches it is its last
ENTRY_BYTES = 16  # what an entry takes besides its command


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while a node runs."""

    mesh_id: str
    name: str
    loop: str
    version: str


class Roster:
    """The members of the ledger, with how they seem from here."""

    def __init__(self, replica: Replica, is_up: Callable[[str], bool]) -> None:
        self._replica = replica
        self._is_up = is_up

    def members(self) -> Sequence[Member]:
        """Ordered by id."""
        view = self._replica.view()
        members: list[Member] = list(self._replica.reader.members())
        for member in members:
            member.alive = member.node_id == view.node_id or self._is_up(member.node_id)
            member.leader = member.node_id == view.leader_id
        return members


class MeshService(MeshServicer):
    """Serves `Mesh` on any node."""

    def __init__(
        self,
        replica: Replica,
        roster: Roster,
        proposer: Proposer,
        joining: Joining,
        about: About,
        *,
        reads: LongReads,
    ) -> None:
        self._replica = replica
        self._roster = roster
        self._proposer = proposer
        self._joining = joining
        self._about = about
        self._reads = reads

    async def Status(self, request: StatusRequest, context: Context) -> StatusReply:
        """Where this node stands; answered without waiting for anybody."""
        view, about = self._replica.view(), self._about
        reader = self._replica.reader
        counts = reader.counts()
        scrub = self._replica.core.scrubbing.view()
        return StatusReply(
            mesh_id=about.mesh_id,
            node_id=view.node_id,
            name=about.name,
            role=view.role,
            leader_id=view.leader_id,
            writable=view.writable,
            leader_age_ms=view.leader_age_ms,
            term=view.term,
            revision=view.revision,
            commit_index=view.commit_index,
            counted_ms=view.counted_ms,
            digest=view.digest,
            loop=about.loop,
            version=about.version,
            members=self._roster.members(),
            workers=reader.workers(),
            task_count=counts.task_count,
            ready_count=counts.ready_count,
            claimed_count=counts.claimed_count,
            compaction_count=view.compaction_count,
            snapshot_install_count=view.snapshot_install_count,
            journal_bytes=view.journal_bytes,
            ledger_bytes=view.ledger_bytes,
            scrub=_scrub_status(scrub) if scrub.result else None,
            trouble=self._proposer.minority(),
        )

    async def Members(self, request: MembersRequest, context: Context) -> MembersReply:
        """All nodes that were admitted, ordered by id."""
        revision = self._replica.view().revision
        return MembersReply(members=self._roster.members(), revision=revision)

    async def CreateToken(self, request: CreateTokenRequest, context: Context) -> CreateTokenReply:
        """A one-use token with which one more node may join."""
        return await self._joining.create_token(request, context)

    async def Join(self, request: JoinRequest, context: Context) -> JoinReply:
        """Admit the host that holds a token."""
        return await self._joining.join(request, context)

    async def Digest(self, request: DigestRequest, context: Context) -> DigestReply:
        """Digests of this node's ledger; the full one reads all tables, so ask for it sparingly."""
        await self._proposer.catch_up(context, at_least_revision=request.at_least_revision)
        return await self._reads.ask(_digests)

    async def Entries(self, request: EntriesRequest, context: Context) -> EntriesReply:
        """Entries of the log that this node has applied; OUT_OF_RANGE when it no longer holds them."""
        core = self._replica.core
        journal, after = core.journal, request.after_revision
        if after < journal.base_index:
            raise Refusal("OUT_OF_RANGE", f"entries are kept from {journal.base_index + 1}")
        reply, reply_bytes = EntriesReply(), 0
        for index in range(after + 1, core.applied_index + 1):
            command, term = journal.command_at(index), journal.term_at(index)
            assert term is not None
            reply.entries.append(CommittedEntry(index=index, term=term, command=command))
            reply_bytes += len(command) + ENTRY_BYTES
            if reply_bytes >= ENTRIES_BYTES:
                break
        return reply


def _scrub_status(scrub: ScrubView) -> ScrubStatus:
    return ScrubStatus(
        result=scrub.result,
        revision=scrub.revision,
        age_ms=scrub.age_ms,
        round_count=scrub.round_count,
        row_count=scrub.row_count,
    )


def _digests(reader: Reader) -> DigestReply:
    return DigestReply(revision=reader.revision(), chain=reader.digest(), full=reader.full_digest())

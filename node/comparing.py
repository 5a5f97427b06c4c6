"""A stopped node's ledger beside those of its peers: equal at the same index, or not?

A peer has gone on meanwhile. It is asked for its digest and for the entries up to there; applied to
a copy of the ledger they must give the same digest. It speaks with the stopped node's certificate.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import grpc
from quorumesh.v1.mesh_pb2 import DigestReply, DigestRequest, EntriesReply, EntriesRequest
from quorumesh.v1.mesh_pb2_grpc import MeshStub

from consensus.errors import Damaged
from consensus.examining import Check, LedgerCopy, bring_up, full_digest
from mesh.client_errors import MeshError, Unreachable, error_of
from mesh.credentials import CHANNEL_TLS_OPTIONS, NodeCredentials

CALL_S = 60.0  # a peer hashes all its rows
PEERS_MAX = 7  # as many voters as there may be
ENTRIES_MAX = 200_000  # that a ledger is brought up by
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.use_local_subchannel_pool", 1),
)


async def compare(
    copy: LedgerCopy, peers: Mapping[str, str], credentials: NodeCredentials
) -> AsyncIterator[Check]:
    """Compare the copy with each peer (node id to address). The copy is brought up meanwhile.

    The last check says what the answers come to: `ok` is False only when a majority of the voters
    has something else.
    """
    voters = set(copy.voters)
    equal, other = {credentials.node_id}, set[str]()
    digests: dict[str, DigestReply] = {}
    for peer, address in sorted(peers.items())[:PEERS_MAX]:
        try:
            digests[peer] = await _digest(copy, address, credentials)
        except MeshError as error:
            yield Check("peer", None, f"{address} gives no digest: {error}")
    for peer, digest in sorted(digests.items(), key=lambda item: item[1].revision):
        address = peers[peer]
        try:
            is_equal = await _is_equal(copy, address, digest, credentials)
        except MeshError as error:
            yield Check("peer", None, f"{address} cannot be compared with: {error}")
            continue
        except Damaged as error:
            other.add(peer)
            yield Check("peer", None, f"{address} differs: {error}")
            break  # the copy is half-way between two entries' revisions for good
        (equal if is_equal else other).add(peer)
        word = "equal" if is_equal else "DIFFERS"
        yield Check("peer", is_equal or None, f"{address}: {word} at revision {digest.revision}")
    yield judge(equal & voters, other & voters, len(voters))


def judge(equal: set[str], other: set[str], voter_count: int) -> Check:
    """What comparing with some of the voters comes to. The node itself is among the equal ones."""
    majority = voter_count // 2 + 1
    if len(other) >= majority:
        return Check("digest", False, f"{len(other)} of {voter_count} voters have something else")
    if other:
        text = f"{len(other)} of {voter_count} voters differ and {len(equal)} agree"
        return Check("digest", True if len(equal) >= majority else None, text)
    if not equal or (len(equal) < 2 and voter_count > 1):
        return Check("digest", None, "no other voter could be compared with")
    return Check("digest", True, f"{len(equal)} of {voter_count} voters agree")


async def _is_equal(
    copy: LedgerCopy, address: str, digest: DigestReply, credentials: NodeCredentials
) -> bool:
    revision, _ = full_digest(copy)
    if digest.revision - revision > ENTRIES_MAX:
        raise Unreachable(f"it is {digest.revision - revision} entries ahead; start the node")
    async for reply in _entries(address, revision, digest.revision, credentials):
        entries = [
            (entry.index, entry.term, entry.command)
            for entry in reply.entries
            if entry.index <= digest.revision
        ]
        bring_up(copy, entries)
    return full_digest(copy) == (digest.revision, digest.full)


async def _digest(copy: LedgerCopy, address: str, credentials: NodeCredentials) -> DigestReply:
    async with _dialled(address, credentials) as channel:
        try:
            request = DigestRequest(at_least_revision=copy.revision)
            return await MeshStub(channel).Digest(request, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error


async def _entries(
    address: str, after: int, until: int, credentials: NodeCredentials
) -> AsyncIterator[EntriesReply]:
    """Pages of entries after a revision, at least up to another. Raises MeshError."""
    async with _dialled(address, credentials) as channel:
        while after < until:
            try:
                request = EntriesRequest(after_revision=after)
                reply = await MeshStub(channel).Entries(request, timeout=CALL_S)
            except grpc.aio.AioRpcError as error:
                raise error_of(error) from error
            if not reply.entries:
                raise Unreachable("it does not give its entries")
            yield reply
            after = reply.entries[-1].index


def _dialled(address: str, credentials: NodeCredentials) -> grpc.aio.Channel:
    options = (*_OPTIONS, *CHANNEL_TLS_OPTIONS)
    return grpc.aio.secure_channel(address, credentials.channel_credentials(), options=options)

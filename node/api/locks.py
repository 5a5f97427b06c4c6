"""The gRPC service `Locks`: claims of subtasks, seen as the locks they are."""

from __future__ import annotations

from quorumesh.v1.locks_pb2 import ListLocksReply, ListLocksRequest
from quorumesh.v1.locks_pb2_grpc import LocksServicer

from node.api.proposing import Context, ReplicaPort
from node.api.tasks import known_token, page_rows


class LocksService(LocksServicer):
    """Serves `Locks` from this node's ledger."""

    def __init__(self, replica: ReplicaPort) -> None:
        self._replica = replica

    async def List(self, request: ListLocksRequest, context: Context) -> ListLocksReply:
        """A page of the claims held now: what, by whom, fence and lease."""
        with known_token():
            locks, token = self._replica.reader.locks(
                page_size=page_rows(request.page_size), page_token=request.page_token
            )
        view = self._replica.view()
        return ListLocksReply(
            locks=locks, next_page_token=token, revision=view.revision, age_ms=view.leader_age_ms
        )

"""Says what a dead worker would say if it came back: its result, under the fence it once held.

The dead cannot speak, so the demo speaks for one of them, over the Unix socket that the workers of a
surviving node use. The refusal and its record are the ledger's own.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from pathlib import Path

import grpc
from quorumesh.v1.values_pb2 import Reason, Value
from quorumesh.v1.workers_pb2 import Completion, FromWorker, Vote, WorkerHello
from quorumesh.v1.workers_pb2_grpc import WorkersStub

ANSWER_S_MAX = 8.0


def present_late(socket: Path, *, subtask_ref: int, fence: int) -> tuple[str, int]:
    """Complete a subtask under an old fence. Returns (the reason, the lease of the mesh in ms)."""
    said: queue.SimpleQueue[FromWorker | None] = queue.SimpleQueue()
    hello = WorkerHello(session=os.urandom(16), name="late", skills=["demo.late"], slots=0)
    said.put(FromWorker(hello=hello))

    def speaking() -> Iterator[FromWorker]:
        while (message := said.get()) is not None:
            yield message

    with grpc.insecure_channel(f"unix:{socket}") as channel:
        lease_ms = 0
        try:
            for answer in WorkersStub(channel).Work(speaking(), timeout=ANSWER_S_MAX):
                if answer.HasField("welcome"):
                    lease_ms = answer.welcome.lease_ms
                    output = Value(data=b'"too late"')
                    completion = Completion(
                        subtask_ref=subtask_ref, fence=fence, output=output, vote=Vote(label="late")
                    )
                    said.put(FromWorker(completions=[completion]))
                for settled in answer.settled:
                    if settled.fence == fence:
                        return Reason.Name(settled.reason), lease_ms
        except grpc.RpcError as error:
            return str(error), lease_ms
        finally:
            said.put(None)
    return "no answer", lease_ms

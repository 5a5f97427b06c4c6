"""What can go wrong for a program that uses a mesh, built from the `google.rpc.Status` of replies.

MeshError
├── Refused            the mesh said no, and nothing was changed; `reason` is a name of `Reason`
├── Unreachable        no node could be reached, or none could write; waiting may help
├── DeadlineExceeded   time ran out; a submit may be sent again under the same id
├── TaskFailed         the task ended without its output; `code` says why in a word
└── TaskCancelled      the task was cancelled
"""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "quorumesh"
_STATUS_KEY = "grpc-status-details-bin"

_REASON_OF_CODE: dict[grpc.StatusCode, str] = {
    grpc.StatusCode.INVALID_ARGUMENT: "INVALID",
    grpc.StatusCode.ALREADY_EXISTS: "ALREADY_EXISTS",
    grpc.StatusCode.NOT_FOUND: "NOT_FOUND",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "OVERLOADED",
    grpc.StatusCode.OUT_OF_RANGE: "OUT_OF_RANGE",
    grpc.StatusCode.PERMISSION_DENIED: "PERMISSION_DENIED",
    grpc.StatusCode.UNAUTHENTICATED: "PERMISSION_DENIED",
    grpc.StatusCode.UNIMPLEMENTED: "UNIMPLEMENTED",
}


class MeshError(Exception):
    """Anything that a call to the mesh may raise. Its text is one line for people."""


class Refused(MeshError):
    """The mesh refused; nothing was changed. `reason` is a name of `quorumesh.v1.Reason`."""

    def __init__(self, reason: str, message: str = "", *, retry_ms: int | None = None) -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message
        self.retry_ms = retry_ms  # None: sending the same again will not help


class Unreachable(MeshError):
    """No address answered, or no node could write, until the deadline."""

    def __init__(self, message: str, *, retry_ms: int | None = None) -> None:
        super().__init__(message)
        self.retry_ms = retry_ms


class DeadlineExceeded(MeshError):
    """The call's time ran out before its answer came. It may still have taken effect."""


class TaskFailed(MeshError):
    """The task ended as failed. `code` and `message` are those of its `Failure`."""

    def __init__(self, task_id: str, code: str, message: str) -> None:
        super().__init__(f"task {task_id} failed: {code}: {message}")
        self.task_id = task_id
        self.code = code
        self.message = message


class TaskCancelled(MeshError):
    """The task was cancelled."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task {task_id} was cancelled")
        self.task_id = task_id


def error_of(error: grpc.aio.AioRpcError) -> MeshError:
    """Turn a failed call into one of ours: the reason and the waiting time that it carries."""
    reason, message, retry_ms = _details(error)
    text = message or error.details() or error.code().name
    if reason == "DISK_FULL":
        # It is this one node's disk: another node can write.
        return Unreachable(text, retry_ms=retry_ms)
    match error.code():
        case grpc.StatusCode.UNAVAILABLE:
            return Unreachable(text, retry_ms=retry_ms)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(text)
        case code:
            return Refused(reason or _REASON_OF_CODE.get(code, code.name), text, retry_ms=retry_ms)


def _details(error: grpc.aio.AioRpcError) -> tuple[str, str, int | None]:
    """Return (reason, message, retry ms) out of the status details; empty where they are absent."""
    reason, message, retry_ms = "", "", None
    for key, value in error.trailing_metadata() or ():
        if key != _STATUS_KEY or not isinstance(value, bytes):
            continue
        status = status_pb2.Status.FromString(value)
        message = status.message
        for detail in status.details:
            info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                reason = info.reason
            elif detail.Unpack(retry):
                retry_ms = retry.retry_delay.ToMilliseconds()
    return reason, message, retry_ms

"""The one table that turns refusals and failures into gRPC, HTTP and exit codes.

Replies carry `google.rpc.Status` with an `ErrorInfo` (reason: the name in this table, domain
`quorumesh`) and, where waiting helps, a `RetryInfo`. An unknown outcome is UNAVAILABLE as well: all
requests of this API may be sent again, and that is what every client does with this code; its
reason tells the two apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from quorumesh.v1.values_pb2 import Reason

from consensus.errors import (
    ConsensusError,
    Damaged,
    DiskFull,
    OutcomeUnknown,
    StorageFailed,
    Unavailable,
)

DOMAIN = "quorumesh"
MESSAGE_CHARS_MAX = 2_048
EXIT_USAGE, EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_DEADLINE = 2, 3, 4, 5
EXIT_DAMAGED = 66  # the data folder cannot be trusted or used
EXIT_BUG = 70  # a part of the node broke an invariant


@dataclass(frozen=True, slots=True)
class Kind:
    """How one reason is told to each audience. `retry_ms` is None where waiting does not help."""

    grpc_code: grpc.StatusCode
    http_status: int
    exit_code: int
    retry_ms: int | None = None


_Code = grpc.StatusCode

# Exit codes are those of the command line; a node that stops by itself adds the last two.
KINDS: dict[str, Kind] = {
    "INVALID": Kind(_Code.INVALID_ARGUMENT, 400, EXIT_REFUSED),
    "ALREADY_EXISTS": Kind(_Code.ALREADY_EXISTS, 409, EXIT_REFUSED),
    "NOT_FOUND": Kind(_Code.NOT_FOUND, 404, EXIT_REFUSED),
    "STALE_FENCE": Kind(_Code.FAILED_PRECONDITION, 409, EXIT_REFUSED),
    "STALE_EPOCH": Kind(_Code.FAILED_PRECONDITION, 409, EXIT_REFUSED),
    "FINISHED": Kind(_Code.FAILED_PRECONDITION, 409, EXIT_REFUSED),
    "OVERLOADED": Kind(_Code.RESOURCE_EXHAUSTED, 429, EXIT_REFUSED, retry_ms=500),
    "VALUE_TOO_LARGE": Kind(_Code.INVALID_ARGUMENT, 413, EXIT_REFUSED),
    "TOKEN_UNKNOWN": Kind(_Code.PERMISSION_DENIED, 403, EXIT_REFUSED),
    "TOKEN_USED": Kind(_Code.PERMISSION_DENIED, 403, EXIT_REFUSED),
    "TOKEN_EXPIRED": Kind(_Code.PERMISSION_DENIED, 403, EXIT_REFUSED),
    "INTERNAL": Kind(_Code.INTERNAL, 500, EXIT_BUG),
    "VOTERS_FULL": Kind(_Code.FAILED_PRECONDITION, 409, EXIT_REFUSED),
    "OUT_OF_RANGE": Kind(_Code.OUT_OF_RANGE, 410, EXIT_REFUSED),
    "PERMISSION_DENIED": Kind(_Code.PERMISSION_DENIED, 403, EXIT_REFUSED),
    # Failures of the world: they are no Reason, for the ledger never saw the command.
    "UNAVAILABLE": Kind(_Code.UNAVAILABLE, 503, EXIT_UNAVAILABLE, retry_ms=500),
    "OUTCOME_UNKNOWN": Kind(_Code.UNAVAILABLE, 503, EXIT_UNAVAILABLE, retry_ms=200),
    "DISK_FULL": Kind(_Code.RESOURCE_EXHAUSTED, 507, EXIT_UNAVAILABLE, retry_ms=1_000),
    "STORAGE_FAILED": Kind(_Code.UNAVAILABLE, 503, EXIT_UNAVAILABLE, retry_ms=5_000),
    "DAMAGED": Kind(_Code.DATA_LOSS, 500, EXIT_DAMAGED),
    "DEADLINE_EXCEEDED": Kind(_Code.DEADLINE_EXCEEDED, 504, EXIT_DEADLINE),
}


class Refusal(Exception):
    """A request is refused for a reason of the table. Raised inside services, told by the guard."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        assert reason in KINDS, reason
        self.reason = reason
        self.message = message


Failure = Refusal | ConsensusError


def refusal_of(reason: Reason.ValueType, message: str) -> Refusal:
    """The refusal that an outcome stands for."""
    return Refusal(Reason.Name(reason), message)


def kind_of(error: Failure) -> tuple[str, Kind, int | None]:
    """The table's row for an error: its reason, how to tell it, and when to try again (ms)."""
    match error:
        case Refusal():
            name = error.reason
        case DiskFull():
            name = "DISK_FULL"
        case Unavailable():
            return "UNAVAILABLE", KINDS["UNAVAILABLE"], error.retry_ms
        case OutcomeUnknown():
            name = "OUTCOME_UNKNOWN"
        case StorageFailed():
            name = "STORAGE_FAILED"
        case Damaged():
            name = "DAMAGED"
        case _:
            name = "UNAVAILABLE"
    kind = KINDS[name]
    return name, kind, kind.retry_ms


def status_of(error: Failure) -> status_pb2.Status:
    """The `google.rpc.Status` that tells an error to programs."""
    reason, kind, retry_ms = kind_of(error)
    message = str(error)[:MESSAGE_CHARS_MAX]
    status = status_pb2.Status(code=code_pb2.Code.Value(kind.grpc_code.name), message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if retry_ms is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(retry_ms)
        status.details.add().Pack(retry)
    return status


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: Failure) -> NoReturn:
    """End the call with the error's status and details."""
    told = rpc_status.to_status(status_of(error))
    await context.abort(told.code, told.details, told.trailing_metadata)
    raise AssertionError("abort always raises")

"""Exit codes of `mesh`, and the one table from errors to them."""

from __future__ import annotations

from mesh.client_errors import (
    DeadlineExceeded,
    MeshError,
    Refused,
    TaskCancelled,
    TaskFailed,
    Unreachable,
)
from mesh.errors import (
    IdentityError,
    JoinFailed,
    ProfileError,
    TokenError,
    TokenExpired,
    TokenMalformed,
)

OK, TASK_FAILED, BAD_INPUT, REFUSED, UNREACHABLE, DEADLINE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
DAMAGED = 66

EXITS_HELP = """\b
Exit codes:
  0    done
  1    the task failed or was cancelled, or doctor found something wrong
  2    wrong usage or bad input: a file, a token, a profile
  3    the mesh refused; nothing was changed
  4    no node could be reached, or none can write now
  5    the deadline passed first
  66   a node's folder is damaged: it must come back with --rejoin
  130  interrupted by Ctrl-C"""

_NEXT_OF_REASON = {
    "INVALID": "correct the task and submit it again",
    "NOT_FOUND": "see the ids with: mesh tasks",
    "FINISHED": "see how it ended with: mesh task show ID",
    "OVERLOADED": "try again later",
    "VALUE_TOO_LARGE": "an input or output has at most 65,536 bytes, a whole task 850,000",
    "PERMISSION_DENIED": "use a certificate of this mesh (--profile)",
    "TOKEN_USED": "make a new one with: mesh join-token",
    "TOKEN_EXPIRED": "make a new one with: mesh join-token",
    "TOKEN_UNKNOWN": "make one with: mesh join-token",
}


def exit_of(error: MeshError) -> int:
    """Return the exit code for an error of the client."""
    match error:
        case TaskFailed() | TaskCancelled():
            return TASK_FAILED
        case Unreachable():
            return UNREACHABLE
        case DeadlineExceeded():
            return DEADLINE
        case TokenMalformed() | TokenExpired() | ProfileError() | IdentityError():
            return BAD_INPUT
        case JoinFailed():
            return UNREACHABLE
    return REFUSED


def advice_on(error: MeshError) -> str:
    """Say in a few words what to do next; empty when there is nothing to say."""
    match error:
        case TaskFailed() | TaskCancelled():
            return f"see why with: mesh task show {error.task_id}"
        case Unreachable():
            return "check that a node runs there, or name another with --address HOST:PORT"
        case DeadlineExceeded():
            return "it may still be running: mesh tasks"
        case Refused():
            return _NEXT_OF_REASON.get(error.reason, "")
        case TokenError():
            return "make a new one on a node of the mesh with: mesh join-token"
    return ""

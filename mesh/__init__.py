"""What a user's program imports: agents, and clients of a mesh."""

from mesh.agent import (
    Agent,
    AgentError,
    Ballot,
    Context,
    Final,
    NeedFailure,
    NeedOutput,
    Spawn,
    Subtask,
    Vote,
)
from mesh.aio import AsyncClient
from mesh.client import Client
from mesh.client_errors import (
    DeadlineExceeded,
    MeshError,
    Refused,
    TaskCancelled,
    TaskFailed,
    Unreachable,
)
from mesh.specs import BadSpec, parse_spec, spec_of

__all__ = [
    "Agent",
    "AgentError",
    "AsyncClient",
    "BadSpec",
    "Ballot",
    "Client",
    "Context",
    "DeadlineExceeded",
    "Final",
    "MeshError",
    "NeedFailure",
    "NeedOutput",
    "Refused",
    "Spawn",
    "Subtask",
    "TaskCancelled",
    "TaskFailed",
    "Unreachable",
    "Vote",
    "parse_spec",
    "spec_of",
]

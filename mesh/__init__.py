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

__all__ = [
    "Agent",
    "AgentError",
    "Ballot",
    "Context",
    "Final",
    "NeedFailure",
    "NeedOutput",
    "Spawn",
    "Subtask",
    "Vote",
]

"""From a grant to a function's arguments, and from what it returned or raised to a report.

Plain functions of their arguments: no loop, no stream, no clock.
"""

from __future__ import annotations

from typing import Any

import msgspec
from quorumesh.v1.values_pb2 import Failure, Value
from quorumesh.v1.workers_pb2 import Completion, FailureReport, Grant
from quorumesh.v1.workers_pb2 import Spawn as SpawnMessage
from quorumesh.v1.workers_pb2 import Vote as VoteMessage

from mesh.agent import (
    LABEL_CHARS_MAX,
    MESSAGE_CHARS_MAX,
    AgentError,
    Context,
    Final,
    Skill,
    Spawn,
    Vote,
    encode_value,
)

VALUE_BYTES_MAX = 65_536
CODE_CHARS_MAX = 64


def arguments(skill: Skill, grant: Grant, context: Context) -> dict[str, Any]:
    """The keyword arguments of a skill's function. Final BAD_INPUT: the input does not fit."""
    named: dict[str, Any] = {}
    if skill.context_name is not None:
        named[skill.context_name] = context
    if skill.needs_name is not None:
        named[skill.needs_name] = dict(context.needs)
    if skill.input_name is not None:
        is_given = bool(grant.input.data)
        if is_given or not skill.input_has_default:
            named[skill.input_name] = _decoded(skill, grant.input)
    return named


def completion_of(grant: Grant, context: Context, result: Any) -> Completion:
    """The completion that a function's result means. Raises Final BAD_OUTPUT or VALUE_TOO_LARGE."""
    completion = Completion(subtask_ref=grant.subtask_ref, fence=grant.fence)
    if isinstance(result, Vote):
        context.vote(result.label, result.weight)
        result = result.output
    if isinstance(result, Spawn):
        completion.spawn.CopyFrom(_spawn_message(result))
    else:
        completion.output.CopyFrom(_bounded(_encoded(result)))
    if context.vote_cast is not None:
        label, weight = context.vote_cast
        completion.vote.CopyFrom(VoteMessage(label=label[:LABEL_CHARS_MAX], weight=weight))
    return completion


def failure_of(grant: Grant, error: BaseException) -> FailureReport:
    """The report that an agent's exception means, with a bounded message."""
    if isinstance(error, AgentError):
        return failure_report(grant, error.code, error.message, final=error.final)
    return failure_report(grant, "AGENT_ERROR", f"{type(error).__name__}: {error}")


def failure_report(grant: Grant, code: str, message: str, *, final: bool = False) -> FailureReport:
    """A failure report with every text bounded, and clean of what UTF-8 cannot carry."""
    return FailureReport(
        subtask_ref=grant.subtask_ref,
        fence=grant.fence,
        failure=Failure(code=_text(code, CODE_CHARS_MAX), message=_text(message)),
        final=final,
    )


def _text(text: object, chars_max: int = MESSAGE_CHARS_MAX) -> str:
    return str(text)[:chars_max].encode("utf-8", "replace").decode("utf-8")


def _decoded(skill: Skill, value: Value) -> Any:
    if skill.input_type is Value:
        return value
    if skill.input_type is bytes:
        return value.data
    if value.content_type not in ("", "application/json"):
        raise Final(f"{skill.name} takes JSON, not {value.content_type}", code="BAD_INPUT")
    if skill.decoder is None:
        return None
    try:
        return skill.decoder.decode(value.data or b"null")
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Final(f"the input does not fit {skill.name}: {error}", code="BAD_INPUT") from error


def _encoded(result: Any) -> Value:
    try:
        return encode_value(result)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        message = f"the output is not JSON: {type(error).__name__}: {error}"
        raise Final(message, code="BAD_OUTPUT") from error


def _bounded(value: Value) -> Value:
    if len(value.data) > VALUE_BYTES_MAX:
        message = f"the output has {len(value.data):,} bytes; at most {VALUE_BYTES_MAX:,} are kept"
        raise Final(message, code="VALUE_TOO_LARGE")
    return value


def _spawn_message(spawn: Spawn) -> SpawnMessage:
    try:
        message = spawn.to_proto()
    except (TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise Final(f"the spawn is not well formed: {error}", code="BAD_OUTPUT") from error
    for subtask in message.subtasks:
        _bounded(subtask.input)
    return message

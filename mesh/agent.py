"""What a user's program needs to be an agent: `Agent`, its skills, the `Context` of an attempt.

Nothing here talks to a node: `python -m mesh.worker --agents your.module` does.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import msgspec
from quorumesh.v1 import tasks_pb2, values_pb2, workers_pb2

LABEL_CHARS_MAX = 256
PROGRESS_CHARS_MAX = 1_024
MESSAGE_CHARS_MAX = 2_048
RAW_TYPES = (bytes, values_pb2.Value)  # handed over undecoded

_UNSET = object()

Function = TypeVar("Function", bound=Callable[..., Any])


class AgentError(Exception):
    """Raise it to fail this attempt with a code of your own. Retried as the task's policy says."""

    final = False

    def __init__(self, message: str, *, code: str = "AGENT_ERROR") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Final(AgentError):
    """Raise it when another attempt cannot help: the subtask fails at once."""

    final = True


class NeedFailure(NamedTuple):
    """Why an optional need gave nothing."""

    code: str
    message: str


class NeedOutput:
    """What one need gave: a value or a failure; for a ballot the winning label and tallies too."""

    __slots__ = ("_message", "_value")

    def __init__(self, message: workers_pb2.NeedOutput) -> None:
        self._message = message
        self._value: Any = _UNSET

    @property
    def id(self) -> str:
        return self._message.id

    @property
    def value(self) -> Any:
        """The need's output: decoded JSON, or bytes of another content type. None if it failed."""
        if self._value is _UNSET:
            self._value = decode_value(self._message.output)
        return self._value

    @property
    def failure(self) -> NeedFailure | None:
        if not self._message.HasField("failure"):
            return None
        return NeedFailure(self._message.failure.code, self._message.failure.message)

    @property
    def label(self) -> str:
        """The label that won, when the need is a ballot."""
        return self._message.label

    @property
    def tallies(self) -> dict[str, int]:
        """Votes per label, when the need is a ballot."""
        return {tally.label: tally.votes for tally in self._message.tallies}

    def __repr__(self) -> str:
        return f"NeedOutput({self.id!r}, value={self.value!r}, failure={self.failure!r})"


@dataclass(frozen=True, slots=True)
class Subtask:
    """A subtask to add at run time. Ids and needs are local to the spawning subtask."""

    id: str
    skill: str
    input: Any = None
    needs: Sequence[str] = ()
    where: Mapping[str, str] = field(default_factory=dict)
    timeout_ms: int = 0
    max_attempts: int = 0
    ballot: str = ""
    optional: bool = False

    def to_proto(self) -> tasks_pb2.SubtaskSpec:
        return tasks_pb2.SubtaskSpec(
            id=self.id,
            skill=self.skill,
            input=encode_value(self.input),
            needs=self.needs,
            where=[values_pb2.Label(key=k, value=v) for k, v in sorted(self.where.items())],
            retry=tasks_pb2.RetryPolicy(max_attempts=self.max_attempts),
            timeout_ms=self.timeout_ms,
            ballot=self.ballot,
            optional=self.optional,
        )


@dataclass(frozen=True, slots=True)
class Ballot:
    """A vote among the subtasks that name it; others may need it like a subtask."""

    id: str
    hear_all: bool = False
    plurality: bool = False

    def to_proto(self) -> tasks_pb2.BallotSpec:
        return tasks_pb2.BallotSpec(id=self.id, hear_all=self.hear_all, plurality=self.plurality)


@dataclass(frozen=True, slots=True)
class Spawn:
    """Return it from a skill: the subtasks join the task, and the output of `join` becomes its own.

    Spawning and completing are one command in the ledger: either all of it happens, or none.
    """

    subtasks: Sequence[Subtask | tasks_pb2.SubtaskSpec]
    join: str
    ballots: Sequence[Ballot | tasks_pb2.BallotSpec] = ()

    def to_proto(self) -> workers_pb2.Spawn:
        return workers_pb2.Spawn(
            subtasks=[s.to_proto() if isinstance(s, Subtask) else s for s in self.subtasks],
            ballots=[b.to_proto() if isinstance(b, Ballot) else b for b in self.ballots],
            join=self.join,
        )


@dataclass(frozen=True, slots=True)
class Vote:
    """Return it from a skill to give an output and a ballot paper together."""

    output: Any
    label: str
    weight: int = 1


class Context:
    """One attempt at one subtask, as its agent sees it. Methods may be called from any thread."""

    __slots__ = (
        "_cancelled",
        "_lock",
        "_needs",
        "_report",
        "_wakers",
        "grant",
        "task_id",
        "vote_cast",
    )

    def __init__(
        self, grant: workers_pb2.Grant, report: Callable[[Context, float, str], None] | None = None
    ) -> None:
        self.grant = grant
        self.task_id = str(uuid.UUID(bytes=grant.task_id)) if len(grant.task_id) == 16 else ""
        self.vote_cast: tuple[str, int] | None = None
        self._report = report
        self._needs: dict[str, NeedOutput] | None = None
        self._cancelled = False
        self._lock = threading.Lock()
        self._wakers: list[Callable[[], object]] = []

    @property
    def subtask(self) -> str:
        return self.grant.subtask

    @property
    def skill(self) -> str:
        return self.grant.skill

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return self.grant.attempt

    @property
    def fence(self) -> int:
        """The number of this claim. It only grows: pass it on to what must refuse a late writer."""
        return self.grant.fence

    @property
    def needs(self) -> Mapping[str, NeedOutput]:
        """What the needs of this subtask gave, by id."""
        if self._needs is None:
            self._needs = {need.id: NeedOutput(need) for need in self.grant.needs}
        return self._needs

    def progress(self, fraction: float, text: str = "") -> None:
        """Say how far it is, from 0 to 1. Soft: shown to watchers, may be lost, never stored."""
        if self._report is not None and not self._cancelled:
            bounded = min(1.0, max(0.0, float(fraction)))
            self._report(self, bounded, str(text)[:PROGRESS_CHARS_MAX])

    def vote(self, label: str, weight: int = 1) -> None:
        """Vote for a label in this subtask's ballot; it counts when the subtask completes."""
        if not label or len(label) > LABEL_CHARS_MAX:
            raise Final(f"a vote's label has 1 to {LABEL_CHARS_MAX} characters", code="BAD_OUTPUT")
        if weight < 1:
            raise Final("a vote's weight is at least 1", code="BAD_OUTPUT")
        self.vote_cast = (label, weight)

    def spawn(
        self,
        *,
        subtasks: Sequence[Subtask | tasks_pb2.SubtaskSpec],
        join: str,
        ballots: Sequence[Ballot | tasks_pb2.BallotSpec] = (),
    ) -> Spawn:
        """Build the `Spawn` to return from the skill. Nothing is spawned before it is returned."""
        return Spawn(subtasks=subtasks, join=join, ballots=ballots)

    @property
    def cancelled(self) -> bool:
        """True once the claim is lost: what is returned now is thrown away. Look often and stop."""
        return self._cancelled

    async def wait_cancelled(self) -> None:
        """Return when the claim is lost."""
        loop = asyncio.get_running_loop()
        event = asyncio.Event()
        self._on_cancel(lambda: loop.call_soon_threadsafe(event.set))
        await event.wait()

    def pause(self, seconds: float) -> bool:
        """For functions in threads: sleep so long or until the claim is lost; True if lost."""
        event = threading.Event()
        self._on_cancel(event.set)
        event.wait(seconds)
        with self._lock:
            if event.set in self._wakers:
                self._wakers.remove(event.set)
        return self._cancelled

    def cancel(self) -> None:
        """Used by the worker: the claim is lost."""
        with self._lock:
            self._cancelled = True
            wakers, self._wakers = self._wakers, []
        for wake in wakers:
            wake()

    def _on_cancel(self, wake: Callable[[], object]) -> None:
        with self._lock:
            if not self._cancelled:
                self._wakers.append(wake)
                return
        wake()


@dataclass(frozen=True, slots=True)
class Skill:
    """A function and how its arguments are made. `is_async` functions run on the worker's loop."""

    name: str
    function: Callable[..., Any]
    is_async: bool
    input_name: str | None
    input_has_default: bool
    input_type: Any
    decoder: msgspec.json.Decoder[Any] | None  # None: the input is handed over undecoded
    context_name: str | None
    needs_name: str | None


class Agent:
    """A named set of skills, in a module that workers load. Subtasks may ask for its labels."""

    def __init__(self, name: str, *, labels: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.labels: dict[str, str] = dict(labels or {})
        self.skills: dict[str, Skill] = {}

    def skill(self, name: str) -> Callable[[Function], Function]:
        """Make a function a skill, under a name that tasks ask for. The function stays as it was.

        By annotation `Context` it gets the context; by the name `needs` a dict of `NeedOutput`; its
        other parameter is the input, decoded from JSON to its annotation. Coroutine functions run
        on the worker's loop, plain ones in a thread each.
        """

        def register(function: Function) -> Function:
            if name in self.skills:
                raise ValueError(f"agent {self.name} has two skills named {name}")
            self.skills[name] = describe_skill(name, function)
            return function

        return register

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, skills={sorted(self.skills)})"


def describe_skill(name: str, function: Callable[..., Any]) -> Skill:
    """Read a function's annotations once: what is its input, its context, its needs.

    Raises TypeError for a function that asks for more than a worker can give.
    """
    hints = typing.get_type_hints(function, include_extras=True)
    input_parameter: inspect.Parameter | None = None
    context_name = needs_name = None
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise TypeError(f"skill {name}: parameter {parameter.name} must not be positional-only")
        if hints.get(parameter.name) is Context:
            context_name = parameter.name
        elif parameter.name == "needs":
            needs_name = parameter.name
        elif input_parameter is None:
            input_parameter = parameter
        elif parameter.default is parameter.empty:
            raise TypeError(f"skill {name}: a skill has one input; {parameter.name} is a second")
    input_type = hints.get(input_parameter.name, Any) if input_parameter else Any
    return Skill(
        name=name,
        function=function,
        is_async=inspect.iscoroutinefunction(function),
        input_name=input_parameter.name if input_parameter else None,
        input_has_default=input_parameter is not None
        and input_parameter.default is not inspect.Parameter.empty,
        input_type=input_type,
        decoder=None if input_type in RAW_TYPES else msgspec.json.Decoder(input_type),
        context_name=context_name,
        needs_name=needs_name,
    )


def decode_value(value: values_pb2.Value) -> Any:
    """Decoded JSON; bytes when the content type says something else; None when there is nothing."""
    if value.content_type not in ("", "application/json"):
        return value.data
    return msgspec.json.decode(value.data) if value.data else None


def encode_value(value: Any) -> values_pb2.Value:
    """A ledger value: JSON, or as it is for bytes and Value. TypeError, ValueError: not JSON."""
    if isinstance(value, values_pb2.Value):
        return value
    if isinstance(value, bytes):
        return values_pb2.Value(data=value, content_type="application/octet-stream")
    return values_pb2.Value(data=msgspec.json.encode(value))

"""Small skills for plumbing: echo, sleep, and putting the outputs of needs together."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import msgspec
from quorumesh.v1.values_pb2 import Value

from mesh.agent import Agent, Final, NeedOutput

SLEEP_MS_MAX = 86_400_000

builtin = Agent("builtin")


class SleepInput(msgspec.Struct, forbid_unknown_fields=True):
    ms: int


@builtin.skill("echo")
async def echo(value: Value) -> Value:
    """Give back the input, byte for byte."""
    return value


@builtin.skill("sleep")
async def sleep(wish: SleepInput) -> dict[str, int]:
    """Hold a slot for so many milliseconds."""
    if not 0 <= wish.ms <= SLEEP_MS_MAX:
        raise Final(f"ms is 0 to {SLEEP_MS_MAX:,}", code="BAD_INPUT")
    await asyncio.sleep(wish.ms / 1_000)
    return {"slept_ms": wish.ms}


@builtin.skill("combine.concat")
async def concat(wish: dict[str, str] | None, needs: dict[str, NeedOutput]) -> str:
    """Join the needs' texts in order; input {"separator": TEXT}, default a newline."""
    separator = (wish or {}).get("separator", "\n")
    return separator.join(
        v if isinstance(v, str) else msgspec.json.encode(v).decode() for v in _values(needs)
    )


@builtin.skill("combine.list")
async def as_list(needs: dict[str, NeedOutput]) -> list[Any]:
    """The needs' outputs in order; failed optional ones are left out."""
    return _values(needs)


@builtin.skill("combine.merge")
async def merge(needs: dict[str, NeedOutput]) -> dict[str, Any]:
    """One object of all needs' objects; of equal keys the later need wins."""
    merged: dict[str, Any] = {}
    for value in _values(needs):
        if not isinstance(value, dict):
            raise Final("combine.merge takes objects only", code="BAD_INPUT")
        merged.update(value)
    return merged


@builtin.skill("combine.majority")
async def majority(needs: dict[str, NeedOutput]) -> Any:
    """The output that most needs gave, compared as JSON; of a tie, the one met first."""
    texts = [msgspec.json.encode(value, order="deterministic") for value in _values(needs)]
    if not texts:
        raise Final("there is nothing to choose from", code="BAD_INPUT")
    [(winner, _)] = Counter(texts).most_common(1)
    return msgspec.json.decode(winner)


@builtin.skill("combine.sum")
async def total(needs: dict[str, NeedOutput]) -> int | float:
    """The sum of the needs' numbers."""
    return sum(_numbers(needs))


@builtin.skill("combine.mean")
async def mean(needs: dict[str, NeedOutput]) -> float:
    """The mean of the needs' numbers."""
    numbers = _numbers(needs)
    if not numbers:
        raise Final("there is nothing to take the mean of", code="BAD_INPUT")
    return sum(numbers) / len(numbers)


def _values(needs: dict[str, NeedOutput]) -> list[Any]:
    return [need.value for need in needs.values() if need.failure is None]


def _numbers(needs: dict[str, NeedOutput]) -> list[int | float]:
    values = _values(needs)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Final(f"{value!r:.80} is not a number", code="BAD_INPUT")
    return values

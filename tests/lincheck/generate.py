"""Makes histories as good meshes leave them: many clients at once, losses, answers that never came.

Each operation takes effect at one moment on a real task or claim, and its call and return lie around
that moment. So the history is linearizable by construction, and the checker must say so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

STEP_NS = 1_000_000  # between the moments of two operations of one key
UNKNOWN_SHARE = 0.04
Answer = tuple[str, dict[str, Any]]
NODES = ("n1", "n2", "n3", "n4", "n5")


@dataclass
class _Clients:
    """Gives each operation a client that is free, and retires those whose answer never came."""

    free_at_ns: dict[int, int] = field(default_factory=dict)
    made_count: int = 0

    def take(self, call_ns: int, return_ns: int | None) -> int:
        free = (one for one, free_ns in self.free_at_ns.items() if free_ns < call_ns)
        process = next(free, self.made_count)
        self.made_count += process == self.made_count
        if return_ns is None:
            self.free_at_ns.pop(process, None)
        else:
            self.free_at_ns[process] = return_ns
        return process


def history_lines(
    rng: Random, *, operation_count: int, per_key: int = 20, overlap: int = 6
) -> list[str]:
    """JSON lines in the order in which the operations ended; half of the keys are claims.

    overlap: about so many operations of one key run at once at most, half as many on average.
    """
    clients, rows = _Clients(), []
    key_count = max(1, operation_count // per_key)
    fences = iter(range(1, operation_count + 2))
    drafts: list[tuple[int, int, str, Draft]] = []
    for number in range(key_count):
        is_claim = number % 2 == 1
        key = f"claim:t{number}/s" if is_claim else f"task:t{number}"
        acts = _claim_acts(rng, fences) if is_claim else _task_acts(rng)
        moment_ns = number % 50 * STEP_NS * per_key // 10 + rng.randrange(STEP_NS)
        for _, draft in zip(range(per_key), acts, strict=False):
            moment_ns += rng.randrange(1, 2 * STEP_NS)
            before_ns, after_ns = _spread_ns(rng, overlap), _spread_ns(rng, overlap)
            drafts.append((moment_ns - before_ns, moment_ns + after_ns, key, draft))
    drafts.sort(key=lambda one: one[:3])
    for call_ns, end_ns, key, draft in drafts:
        is_unknown = draft.result == "unknown"
        return_ns = None if is_unknown else end_ns
        process = clients.take(call_ns, return_ns)
        rows.append((end_ns, draft.line(process, rng.choice(NODES), key, (call_ns, return_ns))))
    return [line for _, line in sorted(rows, key=lambda row: row[0])]


def _spread_ns(rng: Random, overlap: int) -> int:
    return rng.randrange(1, max(2, overlap * STEP_NS // 2))


@dataclass(frozen=True, slots=True)
class Draft:
    """An operation with its true answer, before it has a place in time."""

    op: str
    args: dict[str, Any]
    result: str
    value: dict[str, Any]

    def line(self, process: int, node: str, key: str, times_ns: tuple[int, int | None]) -> str:
        fields = {"process": process, "node": node, "op": self.op, "key": key, "args": self.args}
        call_ns, return_ns = times_ns
        ended = {"result": self.result, "value": self.value}
        return json.dumps(fields | ended | {"call_ns": call_ns, "return_ns": return_ns})


def _draft(
    rng: Random, op: str, args: dict[str, Any], effect: Callable[[], Answer], *, sure: bool = False
) -> Draft:
    """Let it take effect, or, where nobody learns of it, perhaps not."""
    if not sure and rng.random() < UNKNOWN_SHARE:
        if rng.random() < 0.5:
            effect()
        return Draft(op, args, "unknown", {})
    result, value = effect()
    return Draft(op, args, result, value)


class _Task:
    def __init__(self) -> None:
        self.spec, self.state, self.output = "", "absent", ""

    def submit(self, spec: str) -> Answer:
        if self.state == "absent":
            self.spec, self.state = spec, "running"
        return ("ok", {}) if spec == self.spec else ("refused", {"reason": "ALREADY_EXISTS"})

    def cancel(self) -> Answer:
        match self.state:
            case "absent":
                return "refused", {"reason": "NOT_FOUND"}
            case "running" | "cancelled":
                self.state = "cancelled"
                return "ok", {}
        return "refused", {"reason": "FINISHED"}

    def get(self) -> Answer:
        return "ok", {"state": self.state, "output": self.output or None}

    def work(self, rng: Random) -> None:
        """The mesh works, when it likes."""
        if self.state == "running" and rng.random() < 0.08:
            self.state = rng.choice(("succeeded", "succeeded", "failed"))
            self.output = f"d{rng.randrange(100)}" if self.state == "succeeded" else ""


def _task_acts(rng: Random) -> Iterator[Draft]:
    task = _Task()
    while True:
        task.work(rng)
        match rng.choices(("submit", "get", "cancel"), (25, 70, 5))[0]:
            case "submit":
                spec = "a" if rng.random() < 0.9 else "b"
                yield _draft(rng, "submit", {"spec": spec}, partial(task.submit, spec))
            case "get":
                yield _draft(rng, "get", {}, task.get)
            case _:
                yield _draft(rng, "cancel", {}, task.cancel)


class _Claim:
    def __init__(self) -> None:
        self.fence, self.is_held = 0, False
        self.done: tuple[int, str] | None = None

    def grant(self, fence: int) -> Answer:
        self.fence, self.is_held = fence, True
        return "ok", {"fence": fence}

    def complete(self, fence: int, output: str) -> Answer:
        if self.done == (fence, output):
            return "ok", {}
        if self.done is not None and self.done[0] == fence:
            return "refused", {"reason": "FINISHED"}
        if fence != self.fence or not self.is_held:
            return "refused", {"reason": "STALE_FENCE"}
        self.done, self.is_held = (fence, output), False
        return "ok", {}


def _claim_acts(rng: Random, fences: Iterator[int]) -> Iterator[Draft]:
    """Grants until one is completed, late completions in between, repeats for ever after."""
    claim, known = _Claim(), [next(fences)]
    yield _draft(rng, "grant", {"session": "w0"}, lambda: claim.grant(known[0]), sure=True)
    while True:
        if claim.is_held and rng.random() < 0.15:
            claim.is_held = False  # the lease lapsed
        if claim.done is None and rng.random() < 0.35:
            known.append(next(fences))
            session = {"session": f"w{len(known)}"}
            yield _draft(rng, "grant", session, lambda: claim.grant(known[-1]), sure=True)
            continue
        fence = rng.choice(known[-3:])
        args: dict[str, Any] = {"fence": fence, "output": "x" if rng.random() < 0.9 else "y"}
        yield _draft(rng, "complete", args, partial(claim.complete, **args))

"""The verdict on a history: is there, for each key, an order that explains what everybody saw?

Linearizability is local (Herlihy and Wing, 1990), so each key is searched alone. One promise spans
keys and is checked beside: a fence is granted once in the whole mesh.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.lincheck.history import Malformed, Operation, read_operations
from tests.lincheck.models import model_of
from tests.lincheck.search import Answer, Found, find_order

SECONDS_MAX = 60.0
COUNTEREXAMPLE_OPERATIONS_MAX = 60

__all__ = ["Malformed", "Verdict", "check_history"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """True: linearizable. False: not, and the counterexample shows it. None: not known."""

    ok: bool | None
    operations: int
    keys: int
    seconds: float
    counterexample: str  # or why it is not known; empty if all is well
    key: str = ""  # where it was found

    def __str__(self) -> str:
        word = {True: "linearizable", False: "NOT linearizable", None: "UNKNOWN"}[self.ok]
        size = f"{self.operations} operations on {self.keys} keys in {self.seconds:.1f} s"
        return f"{word}: {size}" + (f"\n{self.counterexample}" if self.counterexample else "")


def check_history(
    source: str | Path | Iterable[str], *, seconds_max: float = SECONDS_MAX
) -> Verdict:
    """Judge a file (by its path) or lines. A verdict of None must be taken for a failure.

    Raises Malformed with the line that breaks the format.
    """
    began_s = time.monotonic()
    if isinstance(source, str | Path):
        with open(source, encoding="utf-8", errors="surrogateescape") as lines:
            operations = read_operations(lines)
    else:
        operations = read_operations(source)
    of_key: dict[str, list[Operation]] = {}
    for each in operations:
        of_key.setdefault(each.key, []).append(each)
    ok, key, words = _judge(of_key, began_s + seconds_max)
    return Verdict(ok, len(operations), len(of_key), time.monotonic() - began_s, words, key)


def _judge(of_key: dict[str, list[Operation]], until_s: float) -> tuple[bool | None, str, str]:
    key, words = _fence_granted_twice(of_key)
    if words:
        return False, key, words
    unknown: tuple[bool | None, str, str] = (True, "", "")
    for key, operations in of_key.items():
        found = search_key(operations, until_s=until_s)
        if found.answer is Answer.NONE:
            return False, key, _counterexample(key, operations, until_s)
        if found.answer is not Answer.FOUND and unknown[0]:
            unknown = (None, key, f"{key}: {found.answer.value}, {len(operations)} operations")
    return unknown


def search_key(
    operations: list[Operation], *, up_to_ns: int | None = None, until_s: float
) -> Found:
    """Search one key's history, or its beginning: what had not returned by then is optional."""
    if up_to_ns is not None:
        operations = [each for each in operations if each.call_ns <= up_to_ns]
    optional = [
        each.return_ns is None or (up_to_ns is not None and each.return_ns > up_to_ns)
        for each in operations
    ]
    return find_order(operations, optional, until_s=until_s)


def _fence_granted_twice(of_key: dict[str, list[Operation]]) -> tuple[str, str]:
    granted: dict[int, Operation] = {}
    for key, operations in of_key.items():
        for each in operations:
            if each.op != "grant" or not isinstance(each.subject, int):
                continue
            other = granted.setdefault(each.subject, each)
            if other.key != key:
                head = f"{key}: a fence was used again: {each.subject}, also granted on {other.key}"
                start_ns = min(other.call_ns, each.call_ns)
                return key, "\n".join([head, _line(other, start_ns), _line(each, start_ns)])
    return "", ""


def _counterexample(key: str, operations: list[Operation], until_s: float) -> str:
    """The shortest beginning of the key's history that has no order. Beginnings of a good one do.

    So the length can be halved towards; where the time runs out, the shortest one found is shown.
    """
    ends_ns = sorted(each.return_ns for each in operations if each.return_ns is not None)
    least, most = 0, len(ends_ns) - 1
    while least < most:
        middle = (least + most) // 2
        found = search_key(operations, up_to_ns=ends_ns[middle], until_s=until_s)
        if found.answer is Answer.NONE:
            most = middle
        else:
            least = middle + 1
    up_to_ns = ends_ns[most]
    found = search_key(operations, up_to_ns=up_to_ns, until_s=until_s)
    return _explain(key, operations, up_to_ns, found)


def _explain(key: str, operations: list[Operation], up_to_ns: int, found: Found) -> str:
    model = model_of(key)
    shown = sorted(
        (each for each in operations if each.call_ns <= up_to_ns), key=lambda one: one.call_ns
    )
    start_ns = shown[0].call_ns
    lines = [f"{key}: {found.answer.value}"]
    if found.stuck is not None:
        lines = [f"{key}: {model.misfit(found.state, found.stuck)}"]
        lines.append(f"  no place for line {found.stuck.line_number}; at best the state before it")
        lines.append(f"  was: {model.describe(found.state)}. Times in ms from the first call:")
    left_out = len(shown) - COUNTEREXAMPLE_OPERATIONS_MAX
    if left_out > 0:
        lines.append(f"  … {left_out} operations before")
    for each in shown[max(left_out, 0) :]:
        mark = "  <== here" if each is found.stuck else ""
        lines.append(_line(each, start_ns) + mark)
    return "\n".join(lines)


def _line(each: Operation, start_ns: int) -> str:
    called = f"{(each.call_ns - start_ns) / 1e6:.3f}"
    returned = "…" if each.return_ns is None else f"{(each.return_ns - start_ns) / 1e6:.3f}"
    about = " ".join(str(part) for part in (each.subject, each.output) if part is not None)
    how = " ".join(part for part in (each.result, each.reason) if part)
    who = f"line {each.line_number} p{each.process}@{each.node}"
    return f"  {called:>12} – {returned:>12}  {each.op} {about} -> {how}  ({who})"

"""Reads a recorded history: one operation a line, checked before anything is concluded from it.

A line that does not say what an operation was, when it ran and how it ended is an error that names
the line. A history that cannot be read is never taken for a good one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TASK_PREFIX, CLAIM_PREFIX = "task:", "claim:"
LINE_CHARS_MAX = 65_536
OPERATIONS_MAX = 5_000_000
FIELDS = frozenset(
    ("process", "node", "op", "key", "args", "result", "value", "call_ns", "return_ns")
)
TASK_STATES = frozenset(("absent", "running", "succeeded", "failed", "cancelled"))
# A refusal for one of these says that nothing was done, whatever the state.
NOTHING_DONE = frozenset(
    ("UNAVAILABLE", "OVERLOADED", "RESOURCE_EXHAUSTED", "INVALID", "VALUE_TOO_LARGE")
)
# What each operation may be refused for because of the state it met.
REFUSALS: Mapping[str, frozenset[str]] = {
    "submit": frozenset(("ALREADY_EXISTS",)),
    "get": frozenset(),
    "cancel": frozenset(("FINISHED", "NOT_FOUND")),
    "grant": frozenset(),
    "complete": frozenset(("STALE_FENCE", "FINISHED", "NOT_FOUND", "STALE_EPOCH")),
}
OPS_OF_KEY = {TASK_PREFIX: ("submit", "get", "cancel"), CLAIM_PREFIX: ("grant", "complete")}


class Malformed(Exception):
    """A line of the history does not keep to the format; `line_number` counts from 1."""

    def __init__(self, line_number: int, problem: str) -> None:
        super().__init__(f"line {line_number}: {problem}")
        self.line_number = line_number


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation on one key, with what it asked for and what came back.

    `subject` is the spec of a submit, the state of a get, the fence of a grant or a completion.
    """

    line_number: int
    process: int
    node: str
    op: str
    key: str
    result: str  # ok, refused, unknown
    reason: str  # of a refusal
    subject: str | int | None
    output: str | None  # of a get or a completion
    call_ns: int
    return_ns: int | None  # Invariant: None exactly if the result is unknown.

    @property
    def is_unknown(self) -> bool:
        return self.result == "unknown"


def read_operations(lines: Iterable[str]) -> list[Operation]:
    """All operations, in the order of the lines; empty lines are passed over. Raises Malformed."""
    operations: list[Operation] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if len(operations) >= OPERATIONS_MAX:
            raise Malformed(number, f"more than {OPERATIONS_MAX} operations")
        operations.append(_operation_of(number, line))
    _check_clients_are_sequential(operations)
    return operations


def _operation_of(number: int, line: str) -> Operation:
    fields = _fields_of(number, line)
    op, key, result = fields["op"], fields["key"], fields["result"]
    prefix = next((p for p in OPS_OF_KEY if key.startswith(p)), "")
    if not prefix or op not in OPS_OF_KEY[prefix]:
        raise Malformed(number, f"no operation {op!r} is known of key {key!r}")
    if result not in ("ok", "refused", "unknown"):
        raise Malformed(number, f"no result {result!r} is known")
    call_ns, return_ns = fields["call_ns"], fields["return_ns"]
    if (return_ns is None) != (result == "unknown"):
        raise Malformed(number, "return_ns is null exactly if the result is unknown")
    if return_ns is not None and return_ns < call_ns:
        raise Malformed(number, "it returned before it was called")
    subject, output = _subject_of(number, op, result, fields)
    return Operation(
        line_number=number,
        process=fields["process"],
        node=fields["node"],
        op=op,
        key=key,
        result=result,
        reason=_reason_of(number, op, fields["value"]) if result == "refused" else "",
        subject=subject,
        output=output,
        call_ns=call_ns,
        return_ns=return_ns,
    )


def _fields_of(number: int, line: str) -> dict[str, Any]:
    if len(line) > LINE_CHARS_MAX:
        raise Malformed(number, f"longer than {LINE_CHARS_MAX} characters")
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(number, f"not JSON: {error}") from None
    if not isinstance(fields, dict) or set(fields) != FIELDS:
        raise Malformed(number, f"not an object with exactly the fields {sorted(FIELDS)}")
    for name in ("node", "op", "key", "result"):
        if not isinstance(fields[name], str):
            raise Malformed(number, f"{name} is no text")
    for name in ("process", "call_ns"):
        if type(fields[name]) is not int:
            raise Malformed(number, f"{name} is no whole number")
    if fields["return_ns"] is not None and type(fields["return_ns"]) is not int:
        raise Malformed(number, "return_ns is neither a whole number nor null")
    if not isinstance(fields["args"], dict):
        raise Malformed(number, "args is no object")
    if fields["value"] is None:
        fields["value"] = {}
    if not isinstance(fields["value"], dict):
        raise Malformed(number, "value is neither an object nor null")
    return fields


def _reason_of(number: int, op: str, value: dict[str, Any]) -> str:
    reason = value.get("reason")
    if not isinstance(reason, str) or reason not in REFUSALS[op] | NOTHING_DONE:
        raise Malformed(
            number,
            f"{op} cannot be refused for {reason!r}; "
            "if it may have been done all the same, its result is unknown",
        )
    return reason


def _subject_of(
    number: int, op: str, result: str, fields: dict[str, Any]
) -> tuple[str | int | None, str | None]:
    args, value = fields["args"], fields["value"]
    match op:
        case "submit":
            return _text(number, args, "spec"), None
        case "get" if result == "ok":
            if value.get("state") not in TASK_STATES:
                raise Malformed(number, f"no state {value.get('state')!r} is known")
            output = value.get("output")
            if output is not None and not isinstance(output, str):
                raise Malformed(number, "output is neither a digest nor null")
            return value["state"], output
        case "grant":
            _text(number, args, "session")
            return (_fence(number, value) if result == "ok" else None), None
        case "complete":
            return _fence(number, args), _text(number, args, "output")
        case _:
            return None, None


def _text(number: int, fields: dict[str, Any], name: str) -> str:
    text = fields.get(name)
    if not isinstance(text, str):
        raise Malformed(number, f"{name} is missing or no text")
    return text


def _fence(number: int, fields: dict[str, Any]) -> int:
    fence = fields.get("fence")
    if type(fence) is not int or fence < 1:
        raise Malformed(number, "fence is missing or no number from 1 on")
    return fence


def _check_clients_are_sequential(operations: list[Operation]) -> None:
    """A client waits for one answer before it asks again, and stops for good at an unknown one.

    Claims are left out: one session may hold several at once, on one offer.
    """
    free_ns: dict[int, int | None] = {}
    asked = [each for each in operations if each.key.startswith(TASK_PREFIX)]
    for each in sorted(asked, key=lambda one: (one.call_ns, one.line_number)):
        if each.process in free_ns:
            previous_ns = free_ns[each.process]
            if previous_ns is None:
                problem = "had an operation of unknown outcome before and must not go on"
                raise Malformed(each.line_number, f"process {each.process} {problem}")
            if each.call_ns < previous_ns:
                problem = "had not yet returned from its operation before"
                raise Malformed(each.line_number, f"process {each.process} {problem}")
        free_ns[each.process] = each.return_ns

"""Writes histories by hand, one call an operation: `task("submit", "a", at=(1, 2))`, times in ms."""

from __future__ import annotations

import json
from typing import Any

Row = dict[str, Any]
Times = tuple[float, float | None]


def submit(spec: str, at: Times, **more: Any) -> Row:
    return _row("submit", "task:t", {"spec": spec}, {}, at, more)


def get(state: str, at: Times, *, output: str | None = None, **more: Any) -> Row:
    return _row("get", "task:t", {}, {"state": state, "output": output}, at, more)


def cancel(at: Times, **more: Any) -> Row:
    return _row("cancel", "task:t", {}, {}, at, more)


def grant(fence: int, at: Times, *, session: str = "w", **more: Any) -> Row:
    return _row("grant", "claim:t/s", {"session": session}, {"fence": fence}, at, more)


def complete(fence: int, at: Times, *, output: str = "x", **more: Any) -> Row:
    return _row("complete", "claim:t/s", {"fence": fence, "output": output}, {}, at, more)


def lines_of(*rows: Row) -> list[str]:
    """As a file has them; each operation has a client of its own unless it says another."""
    return [json.dumps({"process": number} | row) for number, row in enumerate(rows)]


def _row(op: str, key: str, args: Row, value: Row, at: Times, more: Row) -> Row:
    """more: `reason` makes it refused; no return time makes it unknown; other keys as they are."""
    call_ms, return_ms = at
    reason = more.pop("reason", None)
    result = "unknown" if return_ms is None else "refused" if reason else "ok"
    row: Row = {"node": "n1", "op": op, "key": key, "args": args, "result": result}
    row["value"] = {"reason": reason} if reason else {} if return_ms is None else value
    row["call_ns"] = int(call_ms * 1_000_000)
    row["return_ns"] = None if return_ms is None else int(return_ms * 1_000_000)
    return row | more

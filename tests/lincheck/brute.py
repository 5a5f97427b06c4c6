"""A second judge for tiny histories: tries every order of everything, with inner steps spelt out.

Shares nothing with the models or the search: its machines take the mesh's own steps one by one,
and it keeps the whole set of states that an order may lead to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Row = dict[str, Any]
World = tuple[Any, ...]


def is_linearizable(rows: list[Row]) -> bool:
    """For rows of one key. Unknown ones may stand anywhere after their call, or nowhere."""
    claims = rows[0]["key"].startswith("claim:")
    outputs = sorted({str(row["value"].get("output")) for row in rows})
    start: World = ("claim", 0, False, None, False) if claims else ("task", None, "absent", "")
    return _can_finish(rows, frozenset(_wander({start}, outputs)), outputs)


def _can_finish(rows: list[Row], worlds: frozenset[World], outputs: list[str]) -> bool:
    due = [row for row in rows if row["return_ns"] is not None]
    if not due:
        return bool(worlds)
    first_end_ns = min(row["return_ns"] for row in due)
    for position, row in enumerate(rows):
        if row["call_ns"] > first_end_ns:
            continue
        after = {new for world in worlds for new in _effects(world, row)}
        rest = rows[:position] + rows[position + 1 :]
        if after and _can_finish(rest, frozenset(_wander(after, outputs)), outputs):
            return True
    return False


def _wander(worlds: Iterable[World], outputs: list[str]) -> set[World]:
    """All that the mesh may do by itself from here, in any number of steps."""
    seen: set[World] = set()
    waiting = list(worlds)
    while waiting:
        world = waiting.pop()
        if world not in seen:
            seen.add(world)
            waiting.extend(_inner_steps(world, outputs))
    return seen


def _inner_steps(world: World, outputs: list[str]) -> Iterator[World]:
    if world[0] == "task":
        _, spec, state, _ = world
        if state == "running":
            for output in outputs:
                yield ("task", spec, "succeeded", output)
                yield ("task", spec, "failed", output)
        return
    _, fence, _, done, closed = world
    if done is None and not closed:
        yield ("claim", fence, False, None, False)  # the lease lapses
        yield ("claim", fence, False, None, True)  # its task ends


def _effects(world: World, row: Row) -> Iterator[World]:
    """The worlds after the operation, where its answer is the one that came back."""
    answers = list(_submit_get_cancel(world, row) if world[0] == "task" else _claim(world, row))
    for answer, after in answers:
        if row["result"] == "unknown" or answer == _answer_of(row):
            yield after


def _answer_of(row: Row) -> Any:
    if row["result"] == "refused":
        return row["value"]["reason"]
    if row["op"] == "get":
        output = row["value"]["output"]
        is_final = row["value"]["state"] in ("succeeded", "failed")
        return (row["value"]["state"], str(output) if is_final else "")
    return "ok"


def _submit_get_cancel(world: World, row: Row) -> Iterator[tuple[Any, World]]:
    _, spec, state, output = world
    match row["op"]:
        case "submit":
            wanted = row["args"]["spec"]
            if state == "absent":
                yield "ok", ("task", wanted, "running", "")
            else:
                yield "ok" if spec == wanted else "ALREADY_EXISTS", world
        case "get":
            yield (state, output), world
        case _:
            if state == "absent":
                yield "NOT_FOUND", world
            elif state in ("running", "cancelled"):
                yield "ok", ("task", spec, "cancelled", "")
            else:
                yield "FINISHED", world


def _claim(world: World, row: Row) -> Iterator[tuple[Any, World]]:
    _, fence, held, done, closed = world
    if row["op"] == "grant":
        given = row["value"].get("fence")
        if given is not None and given > fence and done is None and not closed:
            yield "ok", ("claim", given, True, None, False)
        return
    mine, output = row["args"]["fence"], row["args"]["output"]
    if done == (mine, output):
        yield "ok", world
        return
    if held and fence == mine:
        yield "ok", ("claim", fence, False, (mine, output), False)
    else:
        yield "STALE_FENCE", world
    if done is not None or closed:
        yield "FINISHED", world

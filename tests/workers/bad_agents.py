"""Agents that misbehave, each in its own way."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from mesh import Agent, Context, Final, Spawn, Subtask, Vote

agent = Agent("bad", labels={"kind": "bad"})
ONCE = set[str]()


@agent.skill("raises")
async def raises(_: object) -> None:
    raise ValueError("x" * 10_000)


@agent.skill("raises_final")
def raises_final(_: object) -> None:
    raise Final("no use", code="NO_USE")


@agent.skill("exits")
def exits(marker: str) -> str:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "second time"
    os._exit(3)


@agent.skill("sys_exits")
async def sys_exits() -> None:
    sys.exit(4)


@agent.skill("hangs_async")
async def hangs_async() -> None:
    await asyncio.Event().wait()


@agent.skill("hangs_sync")
def hangs_sync() -> None:
    threading.Event().wait()


@agent.skill("stops_when_cancelled")
def stops_when_cancelled(marker: str, ctx: Context) -> None:
    while not ctx.pause(0.05):
        pass
    with open(marker, "w") as file:
        file.write("stopped")


@agent.skill("not_json")
async def not_json() -> object:
    return object()


@agent.skill("too_large")
async def too_large() -> str:
    return "x" * 70_000


@agent.skill("prints")
def prints() -> str:
    for _ in range(80):
        print("y" * 65_536)
    return "printed"


@agent.skill("typed")
async def typed(count: int, ctx: Context) -> int:
    return count + 1


@agent.skill("votes")
async def votes(label: str) -> Vote:
    return Vote({"answer": label}, label=label, weight=2)


@agent.skill("spawns_badly")
async def spawns_badly() -> Spawn:
    return Spawn(subtasks=[Subtask("a", "echo", 1)], join="b")


@agent.skill("progresses")
async def progresses(ctx: Context) -> str:
    ctx.progress(0.5, "half")
    await asyncio.sleep(0.2)
    return "done"

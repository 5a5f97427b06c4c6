"""What a run is held to when all faults are mended: the ledger's word against what was promised."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quorumesh.v1.tasks_pb2 import ListTasksRequest, TaskEvent, TaskInfo
from quorumesh.v1.values_pb2 import (
    TASK_CANCELLED,
    TASK_FAILED,
    TASK_RUNNING,
    TASK_SUCCEEDED,
)

from consensus.ledger import Reader
from mesh.ids import id_text
from tests.e2e.mesh_process import LocalMesh, NodeProcess, NotInTime, wait_for
from tests.lincheck.checking import check_history
from tests.torture.clients import SUBTASK, Promises, digest_of
from tests.torture.worker import Effects

EQUAL_WAIT_S = 40.0  # how long to look, so that a late one is told from one that never comes
ENDED_S = 40.0
STORY_EVENTS_MAX = 1_000
SHOWN_MAX = 5
CHECK_S_MAX = 60.0
_LAST = (TaskEvent.TASK_SUCCEEDED, TaskEvent.TASK_FAILED, TaskEvent.TASK_CANCELLED)


@dataclass(frozen=True, slots=True)
class Ledgers:
    """What the stopped nodes' ledgers say, held against promises and effects."""

    lost: list[str]
    undone: list[str]
    wrong: list[str]
    double: list[str]
    broken: list[str]


def wait_equal(mesh: LocalMesh, since_s: float, *, within_s: float = EQUAL_WAIT_S) -> float | None:
    """Seconds since `since_s` until all nodes had one full digest; None: never seen."""
    try:
        mesh.equal_digests(within_s=within_s)
    except NotInTime:
        return None
    return time.monotonic() - since_s


def wait_all_ended(node: NodeProcess) -> str:
    """Wait until no task runs. What still does, in words; empty: none."""

    def none_runs() -> bool:
        request = ListTasksRequest(state=TASK_RUNNING, page_size=1)
        return not node.tasks().List(request, timeout=5).tasks

    try:
        wait_for(none_runs, "every task has ended", within_s=ENDED_S)
    except NotInTime as error:
        return str(error)
    return ""


def read_ledgers(nodes: Sequence[NodeProcess], promises: Promises, effects: Effects) -> Ledgers:
    """Read the ledgers of stopped nodes."""
    lost: list[str] = []
    not_done: list[str] = []
    wrong: list[str] = []
    double: list[str] = []
    broken: list[str] = []
    for node in nodes:
        broken += [f"{node.name}: {one}" for one in node.violations()]
    with contextlib.closing(Reader.open(str(ledger_of(nodes[0])))) as reader:
        for task_id, task in promises.submitted.items():
            name = id_text(task_id)
            info = reader.task(task_id, with_outputs=True)
            if info is None:
                lost.append(f"{name} was acknowledged and is not there")
                continue
            not_done += undone(name, info, was_cancelled=task_id in promises.cancelled)
            wrong += wrong_results(name, info, task.output, effects)
            events, _ = reader.story(task_id, after_revision=0, page_size=STORY_EVENTS_MAX)
            double += double_effects(name, events)
    double += [
        f"{subtask}: {len(accepted)} completions were accepted"
        for subtask, accepted in effects.accepted.items()
        if len(accepted) > 1
    ]
    return Ledgers(lost, not_done, wrong, double, broken)


def ledger_of(node: NodeProcess) -> Path:
    state = node.data / "state"
    return state / (state / "CURRENT").read_text(encoding="ascii").strip() / "ledger.db"


def check(path: Path) -> tuple[bool, str, int]:
    """The checker's verdict on a history: whether it is good, in words, and its operations."""
    verdict = check_history(path, seconds_max=CHECK_S_MAX)
    return verdict.ok is True, str(verdict), verdict.operations


def undone(name: str, info: TaskInfo, *, was_cancelled: bool) -> list[str]:
    if was_cancelled:
        return [] if info.state == TASK_CANCELLED else [f"{name} was cancelled and is not"]
    if info.state == TASK_RUNNING:
        return [f"{name} has not ended"]
    if info.state == TASK_FAILED:
        return [f"{name} failed: {info.failure.code} {info.failure.message}"]
    return []


def wrong_results(name: str, info: TaskInfo, output: bytes | None, effects: Effects) -> list[str]:
    accepted = effects.accepted.get(f"{name}/{SUBTASK}", set())
    if info.state != TASK_SUCCEEDED:
        # The only subtask was completed, so the task has ended by that and by nothing else.
        return [f"{name}: a completion was accepted, and it has not succeeded"] if accepted else []
    found = digest_of(info.output.data)
    if output is not None and info.output.data != output:
        return [f"{name}: the result is not the result"]
    if accepted and found not in {each for _, each in accepted}:
        return [f"{name}: the result is not the one that was accepted"]
    return []


def double_effects(name: str, events: Sequence[TaskEvent]) -> list[str]:
    done = [event.subtask for event in events if event.kind == TaskEvent.SUBTASK_SUCCEEDED]
    last = [event for event in events if event.kind in _LAST]
    found = [f"{name}/{one} succeeded {done.count(one)} times" for one in set(done)
             if done.count(one) > 1]  # fmt: skip
    return [*found, *([f"{name} ended {len(last)} times"] if len(last) > 1 else [])]

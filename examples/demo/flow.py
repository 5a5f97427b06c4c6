"""What the demo does, step by step: start, join, ask, kill, prove, stop."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from quorumesh.v1.mesh_pb2 import DigestReply, StatusReply
from quorumesh.v1.tasks_pb2 import TaskEvent, TaskInfo
from quorumesh.v1.values_pb2 import TaskState
from rich.console import Console

from examples.demo import show
from examples.demo.batch import Failover, Kill, follow
from examples.demo.late import present_late
from examples.demo.nodes import READY_S_MAX, DemoFailed, Mesh, Node, wait_for
from examples.demo.proof import Bar, Killed, bars, takeover_s, takeovers_of
from examples.support_desk.facts import (
    Answered,
    Story,
    accuracy,
    answers,
    part_rows,
    read_story,
    verdict,
)
from examples.support_desk.questions import load_questions
from mesh import Client, MeshError

COMPOUND = (
    "What is the difference between is and ==, when does the finally clause run, "
    "and how do I raise an exception and keep the original cause?"
)
COMPOUND_THINK_MS = {"bm25": 300, "names": 500, "tfidf": 2_500}
BATCH_THINK_MS = {"bm25": 300, "tfidf": 300, "names": 300}
RESULT_S_MAX = 40.0
DIGEST_S_MAX = 15.0
SUBTASKS_PER_QUESTION = 5  # desk.answer, three voters, desk.write
LEASE_MS_SHOWN = 3_000  # until the mesh has said what its lease is


@dataclass(slots=True)
class Run:
    """What one run of the demo has found so far."""

    console: Console
    mesh: Mesh
    began_s: float = field(default_factory=time.monotonic)
    bars: list[Bar] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)

    def stop(self) -> None:
        """Stop all nodes in order; that they do is a promise too."""
        clean = self.mesh.stop()
        self.bars.append(Bar("all nodes stop when asked", "yes", "yes" if clean else "no", clean))
        show.stopped(self.console, clean, time.monotonic() - self.began_s)


def start_mesh(run: Run) -> None:
    """Start the first node, join the others by token, wait for three voters and their workers."""
    first, *others = run.mesh.nodes
    show.step(run.console, "Three nodes, three processes, mutual TLS")
    first.start()
    wait_for("the first node leads", run.mesh.leader, [first], READY_S_MAX)
    show.started(run.console, first, "begins the mesh, makes its CA")
    for node in others:
        with first.client() as client:
            token = client.create_token().token
        node.start(token)
        count = run.mesh.nodes.index(node) + 1
        look = partial(_voters, run.mesh, count)
        wait_for(f"{node.name} votes", look, run.mesh.running, READY_S_MAX)
        show.started(run.console, node, f"joins with --join {token[:14]}…")
    wait_for("a worker on each node", lambda: _workers(run.mesh), run.mesh.nodes, READY_S_MAX)
    _, status = wait_for("a leader", run.mesh.leader, run.mesh.nodes, READY_S_MAX)
    show.members(run.console, run.mesh, status)
    run.summary["start_s"] = round(time.monotonic() - run.began_s, 2)


def ask_compound(run: Run, question: str) -> tuple[Answered, ...]:
    """Submit one question through a follower; draw how it was split, voted on and answered."""
    _, follower = _leader_and_follower(run.mesh)
    show.step(run.console, f"A question, submitted through {follower.name}, a follower")
    ask = {"question": question, "think_ms": COMPOUND_THINK_MS}
    spec = {"name": "compound", "subtasks": [{"id": "ask", "skill": "desk.split", "input": ask}]}
    with follower.client() as client:
        began_s = time.monotonic()
        task_id = client.submit(spec)
        _succeeded(client.ended(task_id, RESULT_S_MAX))
        took_s = time.monotonic() - began_s
        task = client.get(task_id, outputs=True)
        story = read_story(client.story(task_id), run.mesh.names())
    rows = part_rows(task, run.mesh.names())
    show.compound(run.console, question, rows, story, took_s)
    run.summary["compound"] = {"task_id": task_id, "parts": len(rows), "took_s": round(took_s, 2)}
    return rows


def run_batch(run: Run) -> None:
    """Submit the batch through a follower, kill the leader half-way, and prove what happened."""
    questions = load_questions()
    count = 2 + SUBTASKS_PER_QUESTION * len(questions)
    leader, follower = _leader_and_follower(run.mesh)
    title = f"{len(questions)} questions, {count} subtasks, submitted through {follower.name}, a follower"
    show.step(run.console, title)
    show.pace(run.console, BATCH_THINK_MS["bm25"])
    asked = {"questions": [question.text for question in questions], "think_ms": BATCH_THINK_MS}
    spec = {"name": "batch", "subtasks": [{"id": "batch", "skill": "desk.batch", "input": asked}]}
    late = _Late(run, follower)
    with follower.client() as client:
        began_s = time.monotonic()
        task_id = client.submit(spec)
        kill, failover = follow(
            client,
            task_id,
            mesh=run.mesh,
            leader=leader,
            subtask_count=count,
            console=run.console,
            on_taken_over=late.present,
        )
        _succeeded(client.ended(task_id, RESULT_S_MAX))
        took_s = time.monotonic() - began_s
        if kill is None or failover is None or not failover.wait(5):
            raise DemoFailed("the batch ended before its leader could be killed")
        show.finished(run.console, failover, took_s)
        leader.start()  # its folder knows the mesh: no token this time
        restarted_s = time.monotonic()
        show.restarted(run.console, leader)
        task = client.get(task_id, outputs=True)
        story = read_story(client.story(task_id), run.mesh.names())
    digests = equal_digests(run)
    show.caught_up(run.console, leader, time.monotonic() - restarted_s)
    killed = _killed(kill, failover, late.lease_ms)
    _report(run, task, story, killed, digests, took_s)


def equal_digests(run: Run) -> dict[str, str]:
    """Full hashes of all running nodes at one revision, once they stand at the same one."""

    def look() -> dict[str, DigestReply] | None:
        found = {}
        for node in run.mesh.nodes:
            reply = _digest(node)
            if reply is None:
                return None
            found[node.name] = reply
        return found if len({reply.revision for reply in found.values()}) == 1 else None

    replies = wait_for("all at the same revision", look, run.mesh.nodes, DIGEST_S_MAX)
    show.digests(run.console, replies)
    return {name: reply.full.hex() for name, reply in replies.items()}


class _Late:
    """Presents one dead worker's result again, and keeps what came of it."""

    def __init__(self, run: Run, through: Node) -> None:
        self.lease_ms = LEASE_MS_SHOWN
        self._run, self._through, self._done = run, through, False

    def present(self, lost: TaskEvent, taken: TaskEvent) -> None:
        """Once: complete `lost` again, now that `taken` has replaced it."""
        if self._done:
            return
        self._done = True
        socket = self._through.folder / "worker.sock"
        reason, lease_ms = present_late(socket, subtask_ref=lost.subtask_ref, fence=lost.fence)
        self.lease_ms = lease_ms or self.lease_ms
        show.late(self._run.console, lost, self._run.mesh.names(), reason)


def _report(
    run: Run,
    task: TaskInfo,
    story: Story,
    killed: Killed,
    digests: Mapping[str, str],
    took_s: float,
) -> None:
    questions = load_questions()
    paths = {f"batch/{question.id}": question.text for question in questions}
    rows = answers(task, paths, run.mesh.names())
    answered = sum(bool(row.topic and row.quote) for row in rows)
    show.step(run.console, "What was answered, by whom")
    show.batch(run.console, rows, questions)
    show.step(run.console, "What the ledger recorded")
    show.proof(run.console, story, killed)
    run.bars += bars(
        story=story,
        subtask_count=2 + SUBTASKS_PER_QUESTION * len(questions),
        answered=answered,
        asked=len(questions),
        killed=killed,
        digests=digests,
    )
    show.bars(run.console, run.bars)
    right = accuracy(rows, questions)
    run.summary["batch"] = {
        "took_s": round(took_s, 2),
        "answered": answered,
        "right": right,
        "verdict": verdict(right, len(rows)),
        "failover_s": round(killed.failover_s, 2),
        "takeover_s": round(takeover_s(takeovers_of(story, killed), killed), 2),
        "takeovers": len(takeovers_of(story, killed)),
        "stale_refused": len(story.stale),
        "digests": dict(digests),
    }


def _killed(kill: Kill, failover: Failover, lease_ms: int) -> Killed:
    return Killed(
        node=kill.node.name,
        wall_ms=kill.wall_ms,
        failover_s=failover.seconds,
        lease_s=lease_ms / 1_000,
    )


def _leader_and_follower(mesh: Mesh) -> tuple[Node, Node]:
    leader, _ = wait_for("a leader", mesh.leader, mesh.nodes, READY_S_MAX)
    return leader, next(node for node in mesh.running if node is not leader)


def _succeeded(task: TaskInfo) -> TaskInfo:
    if task.state != TaskState.TASK_SUCCEEDED:
        raise DemoFailed(f"task {task.name} has failed: {task.failure.code} {task.failure.message}")
    return task


def _voters(mesh: Mesh, count: int) -> StatusReply | None:
    found = mesh.leader()
    voters = sum(member.voter for member in found[1].members) if found else 0
    return found[1] if found and voters >= count else None


def _workers(mesh: Mesh) -> bool | None:
    """True once each node has an open worker that can answer questions."""
    found = mesh.leader()
    if found is None:
        return None
    able = {w.node_id for w in found[1].workers if w.open and "desk.answer" in w.skills}
    return True if len(able) >= len(mesh.nodes) else None


def _digest(node: Node) -> DigestReply | None:
    if node.status() is None:
        return None
    try:
        with Client([node.address], profile=node.profile, timeout_s=5) as client:
            return client.digest()
    except MeshError:
        return None

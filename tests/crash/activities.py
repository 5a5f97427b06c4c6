"""What a mesh of three does while a crash waits for it: each activity ends when its work is done.

Real cores over virtual time, all in one process and on one folder, so that a crash of the process is
a crash of the whole mesh. What was promised to anybody is told to `Promises` at the moment of saying.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from quorumesh.v1.ledger_pb2 import AddToken, Admit, Claim, Command, Complete, OpenSession, Submit
from quorumesh.v1.peer_pb2 import Frame
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Value
from quorumesh.v1.workers_pb2 import Completion

from consensus.core import Core
from consensus.errors import ConsensusError
from consensus.ledger import Applied
from tests.consensus.cluster import Cluster, Wires, World

NODES = ("n1", "n2", "n3")
WORKER = b"w0"
SEGMENT_BYTES_MAX = 1_024
FIRST_TASK = 1_000  # of an activity; those of its preparation come before


class Promises:
    """A file to which each promise goes before it is heard, by a descriptor that no fault meets."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def tell(self, **promise: str | int) -> None:
        os.write(self._fd, json.dumps(promise).encode() + b"\n")


def read_promises(path: Path) -> list[dict[str, str | int]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class TellingWires(Wires):
    """Wires that note what nodes promise to each other: votes, and entries that they hold."""

    def __init__(self, world: World, promises: Promises) -> None:
        super().__init__(world)
        self._promises = promises

    def send(self, source: str, target: str, frame: Frame) -> bool:
        match frame.WhichOneof("kind"):
            case "vote_reply":
                self._promises.tell(kind="vote", node=source, term=frame.term, name=target)
            case "request_vote":
                self._promises.tell(kind="vote", node=source, term=frame.term, name=source)
            case "append_reply" if frame.append_reply.success:
                index = frame.append_reply.next_index - 1
                self._promises.tell(kind="holds", node=source, term=frame.term, index=index)
            case _:
                pass
        return super().send(source, target, frame)


class Stage:
    """A mesh on a folder, with a client and a worker that write down what they were promised."""

    def __init__(self, root: Path, promises: Promises, *, incarnation: int, seed: int) -> None:
        self.promises = promises
        self.cluster = Cluster(
            root,
            seed=seed,
            compact_entries=6,
            keep_entries=4,
            segment_bytes_max=SEGMENT_BYTES_MAX,
        )
        # A process that starts anew never takes an incarnation that an older one had.
        self.cluster._incarnations = itertools.count(incarnation)
        self.cluster.wires = TellingWires(self.cluster.world, promises)
        self.gone: list[Core] = []  # kept, so that nothing tidies up after the dead
        self._completed: set[int] = set()

    def start(self, *nodes: str) -> None:
        """Start these nodes, and wait until one leads and all live ones agree."""
        for node_id in nodes:
            self.begin(node_id)
        self.settle()

    def begin(self, node_id: str) -> Core:
        """Start a node; it is not waited for. Raises Damaged when its folder is."""
        core = self.cluster.start(node_id, joined_voters={name: name for name in NODES})
        core.observe(self)
        return core

    def close(self) -> None:
        """Stop all nodes, those that were killed too."""
        for core in [*self.cluster.cores.values(), *self.gone]:
            core.close()

    def settle(self) -> None:
        self.cluster.wait_leader()
        self.cluster.world.run(self.cluster.agree)

    def leader(self) -> Core:
        return self.cluster.wait_leader()

    def ask(self, node_id: str, *commands: Command) -> bool:
        """Propose and wait; True when all were accepted."""
        result = self.cluster.propose(node_id, *commands)
        return not isinstance(result, ConsensusError) and all(o.reason == 0 for o in result)

    def submit(self, number: int, *, through: str | None = None) -> None:
        """Submit a task, again until it is accepted, and note that it was."""
        spec = TaskSpec(name=f"t{number}", subtasks=[SubtaskSpec(id="a", skill="s")])
        task_id = number.to_bytes(16, "big")
        command = Command(submit=Submit(task_id=task_id, spec=spec.SerializeToString()))
        while not self.ask(through or self.leader().config.node_id, command):
            pass
        self.promises.tell(kind="task", number=number)

    # The worker: completes whatever it is granted.

    def open_worker(self) -> None:
        opening = OpenSession(session=WORKER, node_id="n1", name="w0", skills=["s"], nonce=7)
        assert self.ask("n1", Command(open_session=opening))
        assert self.ask("n1", Command(claim=Claim(session=WORKER, epoch=1, sequence=1, slots=4)))

    def entry_applied(self, applied: Applied) -> None:
        for grant in applied.grants:
            if grant.fence not in self._completed:
                self._completed.add(grant.fence)
                self._complete(grant.subtask_ref, grant.fence)

    def ledger_replaced(self) -> None:
        pass

    def _complete(self, subtask_ref: int, fence: int) -> None:
        output = Value(data=fence.to_bytes(8, "big"))
        completion = Completion(subtask_ref=subtask_ref, fence=fence, output=output)
        command = Command(complete=Complete(completion=completion))
        world = self.cluster.world

        def done(result: object) -> None:
            if isinstance(result, list) and result[0].reason == 0:
                self.promises.tell(kind="done", ref=subtask_ref, fence=fence)

        def ask() -> None:
            core = self.cluster.leader()
            if core is not None:
                core.propose([command], deadline_ms=world.monotonic_ms() + 2_000, done=done)

        world.after(1_000, ask)


def found_mesh(stage: Stage) -> None:
    """Three voters, a worker, and a few tasks done."""
    cluster = stage.cluster
    cluster.start("n1").observe(stage)
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    for node_id in NODES[1:]:
        token = node_id.encode().ljust(16, b".")
        adding = AddToken(token_id=token, secret_digest=b"d" * 32, ttl_ms=60_000)
        admitting = Admit(token_id=token, secret_digest=b"d" * 32, node_id=node_id, address=node_id)
        assert stage.ask("n1", Command(add_token=adding), Command(admit=admitting))
        stage.begin(node_id)
        cluster.world.run(lambda at=node_id: at in cluster.cores["n1"].ledger.voters())  # type: ignore[misc]
    stage.open_worker()
    for number in range(1, 4):
        stage.submit(number)
    stage.settle()


@dataclass(frozen=True, slots=True)
class Activity:
    """Crashes are counted from after `prepare` (and a start of `nodes`) to the end of `act`."""

    name: str
    prepare: Callable[[Stage], None]
    act: Callable[[Stage], None]
    nodes: tuple[str, ...] = NODES  # that are running when `act` begins


def _append(stage: Stage) -> None:
    for number in range(FIRST_TASK, FIRST_TASK + 2):
        stage.submit(number, through=NODES[number % 3])
    stage.settle()


def _compact(stage: Stage) -> None:
    """Until every node has dropped what it applied since its start, and a little longer.

    Only then would be lost what a checkpoint did not make durable before.
    """
    before = {name: core.applied_index for name, core in stage.cluster.cores.items()}
    for number in range(FIRST_TASK, FIRST_TASK + 40):
        stage.submit(number)
        if all(c.journal.base_index > before[n] for n, c in stage.cluster.cores.items()):
            stage.submit(number + 1)
            return
    raise AssertionError("no segment was dropped")


def _copy(stage: Stage) -> None:
    snapshots = stage.leader().snapshots
    snapshots.request()
    stage.submit(FIRST_TASK)
    stage.cluster.world.run(lambda: snapshots.made_count > 0)
    snapshots.request()
    stage.submit(FIRST_TASK + 1)
    stage.cluster.world.run(lambda: snapshots.made_count > 1)


def _leave_one_behind(stage: Stage) -> None:
    """The third node misses more than the others keep."""
    found_mesh(stage)
    if stage.leader().config.node_id == "n3":
        stage.leader().engine.transfer("n1")
        stage.cluster.world.run(lambda: stage.cluster.cores["n1"].engine.role == "leader")
    stage.gone.append(stage.cluster.cores["n3"])
    stage.cluster.kill("n3")
    missed = stage.gone[0].journal.last_index

    def is_out_of_reach() -> bool:
        return all(core.journal.base_index > missed for core in stage.cluster.cores.values())

    for number in range(10, 400):
        if is_out_of_reach():
            break
        stage.submit(number)
        # A peer that was heard a moment ago still holds up what may be dropped.
        stage.cluster.world.run_for(200)
    assert is_out_of_reach()
    stage.settle()


def _install(stage: Stage) -> None:
    core = stage.begin("n3")
    stage.submit(FIRST_TASK)
    stage.cluster.world.run(lambda: core.snapshots.installed_count > 0)
    stage.submit(FIRST_TASK + 1)
    stage.settle()


def _vote(stage: Stage) -> None:
    for turn in range(2):
        leader = stage.leader()
        stage.gone.append(leader)
        stage.cluster.kill(leader.config.node_id)
        stage.submit(FIRST_TASK + turn)
        stage.begin(leader.config.node_id)
        stage.settle()


def _open(stage: Stage) -> None:
    stage.start(*NODES)
    stage.submit(FIRST_TASK)


ACTIVITIES = (
    Activity("append", found_mesh, _append),
    Activity("compaction", found_mesh, _compact),
    Activity("snapshot", found_mesh, _copy),
    Activity("install", _leave_one_behind, _install, nodes=("n1", "n2")),
    Activity("vote", found_mesh, _vote),
    Activity("open", found_mesh, _open, nodes=()),
)
BY_NAME = {activity.name: activity for activity in ACTIVITIES}

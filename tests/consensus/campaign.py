"""Random lives of a mesh of real cores: what happens is chosen by the seed alone.

While it runs: nodes at one revision have one digest, and fences only grow. After everything has
healed: nothing acknowledged is missing, nothing refused as unwritten is there, all work has ended,
and every ledger is sound.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass, field
from pathlib import Path

from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Claim,
    Command,
    Complete,
    OpenSession,
    Outcome,
    Renew,
    SessionEpoch,
    Submit,
)
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Value
from quorumesh.v1.workers_pb2 import Completion

from consensus.core import Core
from consensus.errors import ConsensusError, Unavailable
from consensus.ledger import Applied, GrantRef
from tests.consensus.cluster import Cluster, Result

ANSWER_MS_MAX = 1_500
SLOTS = 3
FAULTS = ("kill", "cut", "isolate", "blip", "kill_all", "join", "slow", "full")
WEIGHTS = (6, 5, 4, 6, 1, 3, 3, 3)
PAGES_MAX = 1_000_000


class Witness:
    """Observes one node, and compares what it applied with what all others did."""

    def __init__(self, campaign: Campaign, core: Core) -> None:
        self.campaign, self.core = campaign, core

    def entry_applied(self, applied: Applied) -> None:
        self.campaign.saw(self.core, applied)

    def ledger_replaced(self) -> None:
        self.campaign.saw_digest(self.core)


@dataclass(slots=True)
class Worker:
    """A worker that outlives nodes: it goes on through any of them under the same session."""

    name: str
    epoch: int = 0
    sequence: int = 0
    seen: set[int] = field(default_factory=set)


class Campaign:
    """One life of a mesh. `run()` raises AssertionError at what must not be."""

    def __init__(self, root: Path, seed: int, *, fault_ms: int = 3_500) -> None:
        self.chance = random.Random(seed * 6_007 + 5)
        self.cluster = Cluster(
            root, seed=seed, compact_entries=25, keep_entries=6, segment_bytes_max=4_096
        )
        self.world = self.cluster.world
        self.end_ms = self.world.monotonic_ms() + 2_000 + fault_ms
        self.digests: dict[int, bytes] = {}
        self.fences: dict[int, list[int]] = {}
        self.acknowledged: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.workers = [Worker(f"w{at}") for at in range(3)]
        self.admitted = ["n1"]
        self.dead: set[str] = set()
        self.voters: dict[str, str] = {}
        self.told: dict[str, dict[str, str]] = {}  # the voters that each joining node was told of
        self._numbers = itertools.count(1)
        self.open_count = 0
        self.snapshot_count = 0

    def run(self) -> None:
        self.start("n1")
        self.world.run(lambda: self.cluster.cores["n1"].ledger.mesh_id == "m")
        for node_id in ("n2", "n3"):
            self.join(node_id)
            self.world.run_for(self.chance.choice((0, 300, 1_500)))
        self._after(500, self._client)
        for worker in self.workers:
            self._after(300, functools.partial(self._tend, worker))
        self._after(1_500, self._fault)
        self.world.run(lambda: self.world.monotonic_ms() >= self.end_ms, ms_max=60_000)
        self._heal()
        self.world.run(self._has_settled, ms_max=60_000)
        self._check_settled()

    # Nodes.

    def start(self, node_id: str) -> None:
        self.dead.discard(node_id)
        core = self.cluster.start(node_id, joined_voters=self.told.get(node_id))
        core.observe(Witness(self, core))

    def join(self, node_id: str) -> None:
        """Admit a node through any other, and start it; nobody waits for its vote."""
        token = node_id.encode().ljust(16, b".")
        self.admitted.append(node_id)
        self.dead.add(node_id)

        def admitted(_: list[Outcome]) -> None:
            if node_id not in self.told:
                # Killed at once now and then: before anybody could have promoted it.
                self.told[node_id] = dict(self.voters)
                self.start(node_id)
                if self.chance.random() < 0.3:
                    self._kill(node_id)

        self.ask(
            Command(add_token=AddToken(token_id=token, secret_digest=b"d" * 32, ttl_ms=60_000)),
            Command(
                admit=Admit(
                    token_id=token, secret_digest=b"d" * 32, node_id=node_id, address=node_id
                )
            ),
            then=admitted,
        )

    def _kill(self, node_id: str) -> None:
        if node_id in self.cluster.cores:
            self.snapshot_count += self.cluster.cores[node_id].snapshots.installed_count
            self.cluster.kill(node_id)
            self.dead.add(node_id)
            self._after(
                int(self.chance.expovariate(1 / 1_200)) + 1,
                functools.partial(self._restart, node_id),
            )

    def _restart(self, node_id: str) -> None:
        if node_id in self.dead and (node_id in self.told or node_id == "n1"):
            self.start(node_id)

    # Faults.

    def _fault(self) -> None:
        if self.world.monotonic_ms() >= self.end_ms:
            return
        nodes = sorted(self.cluster.cores)
        kind = self.chance.choices(FAULTS, WEIGHTS)[0]
        one, other = self.chance.choice(nodes or ["n1"]), self.chance.choice(self.admitted)
        if kind == "kill":
            self._kill(one)
        elif kind == "kill_all":
            for node_id in nodes:
                self._kill(node_id)
        elif kind == "join" and len(self.admitted) < 5:
            self.join(f"n{len(self.admitted) + 1}")
        elif kind == "slow" and nodes:
            self.cluster.slow_down(one, (2_000, self.chance.choice((10_000, 80_000))))
        elif kind == "full" and nodes:
            self._fill_disk(self.cluster.cores[one])
        elif kind == "isolate":
            self._cut([(one, node_id) for node_id in self.admitted if node_id != one])
        elif kind in ("cut", "blip") and one != other:
            self._cut([(one, other)], heal_ms=5 if kind == "blip" else None)
        self._after(int(self.chance.expovariate(1 / 500)) + 1, self._fault)

    def _fill_disk(self, core: Core) -> None:
        """The ledger's file may not grow any more, until somebody makes room."""
        (pages,) = core.ledger.connection.execute("PRAGMA page_count").fetchone()
        core.ledger.connection.execute(f"PRAGMA max_page_count={pages}").fetchone()
        self._after(int(self.chance.expovariate(1 / 1_000)) + 1, lambda: self._make_room(core))

    def _make_room(self, core: Core) -> None:
        if self.cluster.cores.get(core.config.node_id) is core:
            core.ledger.connection.execute(f"PRAGMA max_page_count={PAGES_MAX}").fetchone()

    def _cut(self, pairs: list[tuple[str, str]], *, heal_ms: int | None = None) -> None:
        for one, other in pairs:
            self.cluster.wires.cut(one, other)

        def heal() -> None:
            for one, other in pairs:
                self.cluster.wires.cuts.discard(frozenset((one, other)))
            self.cluster.wires.connect_what_may()

        self._after(heal_ms or int(self.chance.expovariate(1 / 1_000)) + 1, heal)

    def _heal(self) -> None:
        for node_id in sorted(self.dead):
            self._restart(node_id)
        self.world.run(lambda: all(n in self.told for n in self.admitted[1:]))
        for node_id, core in self.cluster.cores.items():
            self.cluster.slow_down(node_id, (100, 400))
            self._make_room(core)
        self.cluster.wires.heal()

    # Clients and workers.

    def ask(self, *commands: Command, then: object = None, may_give_up: bool = False) -> None:
        """Propose through any node, and again through another until an outcome is known."""
        self.open_count += 1
        is_over: list[bool] = []

        def done(result: Result) -> None:
            if is_over:
                return
            is_over.append(True)
            self.open_count -= 1
            if not isinstance(result, ConsensusError):
                if callable(then):
                    then(result)
            elif isinstance(result, Unavailable) and may_give_up and self.chance.random() < 0.5:
                self.refused.update(c.submit.task_id for c in commands)
            else:
                self._after(20, lambda: self.ask(*commands, then=then))

        # A node that dies answers nobody: its client goes on elsewhere.
        self._after(
            ANSWER_MS_MAX + 500, lambda: done(ConsensusError("no answer")) if not is_over else None
        )
        nodes = sorted(self.cluster.cores)
        if nodes:
            deadline_ms = self.world.monotonic_ms() + self.chance.choice((300, ANSWER_MS_MAX))
            core = self.cluster.cores[self.chance.choice(nodes)]
            core.propose(commands, deadline_ms=deadline_ms, done=done)

    def _client(self) -> None:
        if self.world.monotonic_ms() >= self.end_ms:
            return
        for _ in range(self.chance.choice((1, 1, 2, 6))):
            task_id = next(self._numbers).to_bytes(16, "big")
            subtasks = [SubtaskSpec(id="a", skill="s", timeout_ms=3_000)]
            if self.chance.random() < 0.3:
                subtasks.append(SubtaskSpec(id="b", skill="s", needs=["a"], timeout_ms=3_000))
            spec = TaskSpec(name="t", subtasks=subtasks).SerializeToString()

            def accepted(outcomes: list[Outcome], task_id: bytes = task_id) -> None:
                assert outcomes[0].reason == 0, outcomes
                self.acknowledged.add(task_id)

            self.ask(
                Command(submit=Submit(task_id=task_id, spec=spec)), then=accepted, may_give_up=True
            )
        self._after(int(self.chance.expovariate(1 / 120)) + 1, self._client)

    def _tend(self, worker: Worker) -> None:
        name = worker.name.encode()
        if worker.epoch == 0:
            opening = OpenSession(
                session=name, node_id="n1", name=worker.name, skills=["s"], nonce=7
            )

            def opened(outcomes: list[Outcome]) -> None:
                worker.epoch = outcomes[0].epoch

            self.ask(Command(open_session=opening), then=opened)
        else:
            worker.sequence += 1
            claim = Claim(session=name, epoch=worker.epoch, sequence=worker.sequence, slots=SLOTS)
            sessions = [SessionEpoch(session=name, epoch=worker.epoch)]
            self.ask(Command(claim=claim), Command(renew=Renew(sessions=sessions)))
        self._after(1_000, functools.partial(self._tend, worker))

    def _granted(self, grant: GrantRef) -> None:
        worker = next(w for w in self.workers if w.name.encode() == grant.session)
        if grant.fence in worker.seen:
            return
        worker.seen.add(grant.fence)
        if self.chance.random() < 0.02:
            return  # its agent hangs; the time-out of the attempt takes the subtask back
        completion = Completion(
            subtask_ref=grant.subtask_ref, fence=grant.fence, output=Value(data=b"1")
        )
        command = Command(complete=Complete(completion=completion))
        self._after(self.chance.randrange(5, 300), lambda: self.ask(command))

    def _after(self, ms: int, act: object) -> None:
        assert callable(act)
        self.world.after(ms * 1_000, act)

    # Checks.

    def saw(self, core: Core, applied: Applied) -> None:
        self.saw_digest(core)
        self.saw_voters(core)
        fences = [grant.fence for grant in applied.grants]
        known = self.fences.setdefault(applied.revision, fences)
        assert known == fences, f"revision {applied.revision} granted differently"
        for grant in applied.grants:
            self._granted(grant)

    def saw_voters(self, core: Core) -> None:
        if core.ledger.applied_index >= max(self.digests):
            self.voters = core.ledger.voters()

    def saw_digest(self, core: Core) -> None:
        revision, digest = core.ledger.applied_index, core.ledger.digest
        known = self.digests.setdefault(revision, digest)
        assert known == digest, f"{core.config.node_id} differs at revision {revision}"

    def _has_settled(self) -> bool:
        cores = self.cluster.cores
        if self.open_count > len(self.workers) or len(cores) < len(self.admitted):
            return False
        if not self.cluster.agree():
            return False
        core = next(iter(cores.values()))
        return core.reader.counts().running_count == 0 and all(
            node_id in core.engine.voters for node_id in self.admitted
        )

    def _check_settled(self) -> None:
        self.cluster.assert_sound()
        for core in self.cluster.cores.values():
            self.snapshot_count += core.snapshots.installed_count
            query = "SELECT task_id FROM task"
            held = {task_id for (task_id,) in core.ledger.connection.execute(query)}
            missing, unasked = self.acknowledged - held, self.refused & held
            assert not missing, f"{len(missing)} acknowledged tasks are lost"
            assert not unasked, f"{len(unasked)} tasks said to be unwritten are there"
        ordered = [fence for revision in sorted(self.fences) for fence in self.fences[revision]]
        assert ordered == sorted(set(ordered)), "a fence came twice or went back"
        assert len({core.ledger.full_digest() for core in self.cluster.cores.values()}) == 1

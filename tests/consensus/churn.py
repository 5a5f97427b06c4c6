"""A mesh whose voters come and go at random, while leaders die, links break and clients write.

Everything is asked for through `consensus`' own interface, of any node. One seed is one life.
While it runs: one leader per term, one digest per revision, and no leader has two changes of voters
that are not committed. After it has healed: nothing acknowledged is missing, removed nodes know it,
what was refused was not done, and all that are left agree.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

from quorumesh.v1.ledger_pb2 import AddToken, Admit, Command, Outcome

from consensus.core import Core
from consensus.engine.codec import MEMBERSHIP
from consensus.errors import ChangeRefused, ConsensusError, OutcomeUnknown, Removed, Unavailable
from consensus.ledger import Applied
from tests.consensus.cluster import Cluster, Result
from tests.consensus.test_cores import submit

LIVE_MIN = 3  # no more is removed while fewer members are left
ANSWER_MS_MAX = 1_500
CHANGE_MS_MAX = 3_000
LOOK_US = 3_000
ACTS = ("join", "change", "changes", "kill", "kill_leader", "cut", "isolate", "split", "blip")
WEIGHTS = (4, 4, 4, 2, 2, 2, 3, 4, 1)


class Witness:
    """Compares what one node applied with what all others did."""

    def __init__(self, churn: Churn, core: Core) -> None:
        self.churn, self.core = churn, core

    def entry_applied(self, applied: Applied) -> None:
        self.churn.saw(self.core)

    def ledger_replaced(self) -> None:
        self.churn.saw(self.core)


class Churn:
    """One life. `run()` raises AssertionError at what must not be."""

    def __init__(self, root: Path, seed: int, *, life_ms: int = 6_000, nodes_max: int = 12) -> None:
        self.chance = random.Random(seed * 7_919 + 3)
        self.cluster = Cluster(
            root,
            seed=seed,
            compact_entries=40,
            keep_entries=10,
            segment_bytes_max=4_096,
            voters_max=self.chance.choice((3, 5)),
        )
        self.world = self.cluster.world
        self.life_ms, self.nodes_max = life_ms, nodes_max
        self.end_ms = 0
        self.names = ["n1"]
        self.told: dict[str, dict[str, str]] = {"n1": {}}  # voters that each joiner was told of
        self.dead: set[str] = set()
        self.leaders: dict[int, str] = {}
        self.digests: dict[int, bytes] = {}
        self.acknowledged: set[int] = set()
        self.removals: dict[str, list[ConsensusError | None]] = {}
        self.changes_done = 0
        self.changes_refused = 0
        self.begun_count = 0  # writes: after healing each of them gets its outcome

    def run(self) -> None:
        self._start("n1")
        self.world.run(lambda: self.cluster.cores["n1"].ledger.mesh_id == "m")
        self._look()
        for _ in range(4):
            self._join()
            self.world.run_for(200)
        self.world.run(lambda: len(self._newest().ledger.voters()) >= 3)
        self.end_ms = self.world.monotonic_ms() + self.life_ms
        self._after(10, self._write)
        self._after(100, self._act)
        self.world.run(
            lambda: self.world.monotonic_ms() >= self.end_ms, ms_max=self.life_ms + 1_000
        )
        self._heal()
        self.world.run(self._has_settled, ms_max=60_000)
        self._check()

    # Nodes.

    def _start(self, node_id: str) -> None:
        if node_id in self.cluster.cores:
            return
        self.dead.discard(node_id)
        core = self.cluster.start(node_id, joined_voters=self.told[node_id])
        self.cluster.wires.ends[node_id].set_peers(
            {f"n{number}": f"n{number}" for number in range(1, self.nodes_max + 1)}
        )
        core.observe(Witness(self, core))

    def _kill(self, node_id: str) -> None:
        if node_id in self.cluster.cores:
            self.cluster.kill(node_id)
            self.dead.add(node_id)
            self._after(
                int(self.chance.expovariate(1 / 800)) + 1, functools.partial(self._start, node_id)
            )

    def _newest(self) -> Core:
        return max(self.cluster.cores.values(), key=lambda core: core.ledger.applied_index)

    def _join(self) -> None:
        if len(self.names) >= self.nodes_max:
            return
        node_id = f"n{len(self.names) + 1}"
        self.names.append(node_id)
        token, digest = node_id.encode().ljust(16, b"."), b"d" * 32

        def admitted(_: list[Outcome]) -> None:
            if node_id not in self.told:
                self.told[node_id] = self._newest().ledger.voters()
                self._start(node_id)

        self._ask(
            Command(add_token=AddToken(token_id=token, secret_digest=digest, ttl_ms=60_000)),
            Command(
                admit=Admit(token_id=token, secret_digest=digest, node_id=node_id, address=node_id)
            ),
            then=admitted,
        )

    # What happens.

    def _act(self) -> None:
        if self.world.monotonic_ms() >= self.end_ms:
            return
        nodes = sorted(self.cluster.cores)
        [what], one = self.chance.choices(ACTS, WEIGHTS), self.chance.choice(nodes or ["n1"])
        match what:
            case "join":
                self._join()
            case "change":
                self._change()
            case "changes":
                for _ in range(3):
                    self._change()
            case "kill":
                self._kill(one)
            case "kill_leader":
                leader = self.cluster.leader()
                self._kill(leader.config.node_id if leader else one)
            case "split":
                side = {node for node in nodes if self.chance.random() < 0.5}
                self._cut([(a, b) for a in sorted(side) for b in nodes if b not in side])
            case "isolate":
                self._cut([(one, other) for other in nodes if other != one])
            case _:
                other = self.chance.choice(nodes or ["n1"])
                if one != other:
                    self._cut([(one, other)], heal_ms=5 if what == "blip" else None)
        self._after(int(self.chance.expovariate(1 / 150)) + 1, self._act)

    def _change(self) -> None:
        """Ask any node to remove or replace any member, the leader and itself included."""
        cores = [core for _, core in sorted(self.cluster.cores.items()) if not core.is_removed]
        members = sorted(self._newest().ledger.members()) if cores else []
        if len(members) <= LIVE_MIN:
            return
        core, old = self.chance.choice(cores), self.chance.choice(members)
        leader = self.cluster.leader()
        if leader is not None and self.chance.random() < 0.3:
            old = leader.config.node_id
        done = functools.partial(self._changed, old)
        deadline_ms = self.world.monotonic_ms() + CHANGE_MS_MAX
        try:
            if self.chance.random() < 0.6:
                core.membership.remove_voter(old, deadline_ms=deadline_ms, done=done)
            else:
                new = self.chance.choice([node for node in members if node != old])
                core.membership.replace_voter(old, new, deadline_ms=deadline_ms, done=done)
        except ConsensusError as refused:
            done(refused)
            return
        # Who dies answers nobody.
        self._after(CHANGE_MS_MAX + 100, lambda: self._died(core, old))

    def _died(self, core: Core, old: str) -> None:
        if self.cluster.cores.get(core.config.node_id) is not core:
            self.removals.setdefault(old, []).append(OutcomeUnknown("its node died"))

    def _changed(self, old: str, error: ConsensusError | None) -> None:
        self.removals.setdefault(old, []).append(error)
        self.changes_done += error is None
        self.changes_refused += isinstance(error, ChangeRefused)

    def _cut(self, pairs: list[tuple[str, str]], *, heal_ms: int | None = None) -> None:
        for one, other in pairs:
            self.cluster.wires.cut(one, other)

        def heal() -> None:
            for one, other in pairs:
                self.cluster.wires.cuts.discard(frozenset((one, other)))
            self.cluster.wires.connect_what_may()

        self._after(heal_ms or int(self.chance.expovariate(1 / 700)) + 1, heal)

    def _heal(self) -> None:
        for node_id in sorted(self.dead):
            self._start(node_id)
        self.cluster.wires.heal()

    # Clients.

    def _write(self) -> None:
        if self.world.monotonic_ms() >= self.end_ms:
            return
        self.begun_count += 1
        number = self.begun_count
        self._ask(submit(number), then=lambda _: self.acknowledged.add(number))
        self._after(int(self.chance.expovariate(1 / 40)) + 1, self._write)

    def _ask(self, *commands: Command, then: Callable[[list[Outcome]], None]) -> None:
        """Propose through any node, and again through another until an outcome is known."""
        is_over: list[bool] = []

        def done(result: Result) -> None:
            if is_over:
                return
            is_over.append(True)
            if isinstance(result, ConsensusError):
                self._after(20, lambda: self._ask(*commands, then=then))
            elif any(outcome.reason for outcome in result):
                # Admitted, and removed before the answer came back: the only refusal there is.
                node_id = commands[-1].admit.node_id
                assert self._newest().ledger.removed_at(node_id) is not None, result
            else:
                then(result)

        self._after(ANSWER_MS_MAX + 500, lambda: done(Unavailable("its node died")))
        nodes = sorted(self.cluster.cores)
        if nodes:
            core = self.cluster.cores[self.chance.choice(nodes)]
            deadline_ms = self.world.monotonic_ms() + ANSWER_MS_MAX
            try:
                core.propose(commands, deadline_ms=deadline_ms, done=done)
            except Removed as removed:
                done(removed)

    def _after(self, ms: int, act: Callable[[], object]) -> None:
        self.world.after(ms * 1_000, lambda: act() and None)

    # Checks.

    def _look(self) -> None:
        """Often: who leads, and how many changes of voters are open."""
        for node_id, core in self.cluster.cores.items():
            if core.engine.role != "leader":
                continue
            assert not core.is_removed
            known = self.leaders.setdefault(core.engine.term, node_id)
            assert known == node_id, f"{known} and {node_id} lead in term {core.engine.term}"
            open_changes = [
                index
                for command, index, _ in core.journal.rows
                if command[0] == MEMBERSHIP and index > core.engine.commit_index
            ]
            assert len(open_changes) <= 1, f"{node_id} has changes {open_changes} under way"
        self.world.after(LOOK_US, self._look)

    def saw(self, core: Core) -> None:
        revision, digest = core.ledger.applied_index, core.ledger.digest
        known = self.digests.setdefault(revision, digest)
        assert known == digest, f"{core.config.node_id} differs at revision {revision}"

    def _left(self) -> list[Core]:
        members = self._newest().ledger.members()
        return [core for name, core in self.cluster.cores.items() if name in members]

    def _has_settled(self) -> bool:
        left = self._left()
        newest = self._newest().ledger
        states = {(core.ledger.applied_index, core.ledger.digest) for core in left}
        ends = {core.engine.last_index for core in left}
        gone = [core for core in self.cluster.cores.values() if core not in left]
        return (
            len(states) == 1
            and ends == {newest.applied_index}
            and len(self.acknowledged) == self.begun_count
            and all(core.is_removed for core in gone)
            and any(core.engine.role == "leader" for core in left)
        )

    def _check(self) -> None:
        self.cluster.assert_sound()
        newest = self._newest().ledger
        wanted = {number.to_bytes(16, "big") for number in self.acknowledged}
        for core in self._left():
            query = "SELECT task_id FROM task"
            held = {task_id for (task_id,) in core.ledger.connection.execute(query)}
            assert wanted <= held, f"{len(wanted - held)} acknowledged tasks are lost"
            assert core.engine.voters.keys() == newest.voters().keys()
        assert len({core.ledger.full_digest() for core in self._left()}) == 1
        for node_id, answers in self.removals.items():
            if None in answers:
                assert newest.removed_at(node_id) is not None, f"{node_id} was to be removed"
            elif all(
                isinstance(answer, ChangeRefused) or type(answer) is Unavailable
                for answer in answers
            ):
                assert node_id in newest.members(), f"{node_id} was not to be removed"

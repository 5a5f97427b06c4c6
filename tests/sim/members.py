"""Nodes that come and go for good: joins, removals and replacements, asked for through any node."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from quorumesh.v1.ledger_pb2 import AddToken, Admit, Command, Outcome

from consensus.errors import ChangeRefused, ConsensusError
from tests.sim.node import NAMES, Limits, Process, SimNode
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh

NODES_MAX = 9  # over a whole life
LIVE_MAX = 6  # at a time
VOTERS_LEFT_MIN = 3  # fewer sound ones are never left on purpose
CHANGE_MS = 4_000
SECRET = b"d" * 32


class Members:
    """Who is to be of the mesh. What was asked for is asked again until it is so."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.world = mesh, mesh.world
        self.chance = random.Random(f"{mesh.world.seed} members")
        self.joining_count = 0
        self.unwanted: set[str] = set()  # asked to be removed; whether they are is not known yet
        self.change_count = 0

    def make(self, node_id: str) -> SimNode:
        mesh = self.mesh
        node = SimNode(self.world, mesh.network, mesh.checks, node_id, mesh.root / node_id)
        node.limits = Limits(
            compact_entries=self.chance.choice((25, 60, 100)),
            keep_entries=self.chance.choice((3, 10, 40)),
            segment_bytes_max=self.chance.choice((2_048, 8_192, 32_768)),
            scrub_ms=mesh.scrub_ms,
        )
        mesh.nodes[node_id] = node
        return node

    def join(self) -> str:
        """Admit one node more and start it; nobody waits for its vote. Its name; empty: no more."""
        number = len(self.mesh.nodes) + self.joining_count
        gone = sum(
            n in self.unwanted or self.mesh.nodes[n].state == "lost"
            for n in NAMES[:number]
            if n in self.mesh.nodes
        )
        if number >= NODES_MAX or number - gone >= LIVE_MAX:
            return ""
        self.joining_count += 1
        node_id = NAMES[number]
        token = node_id.encode().ljust(16, b".")
        adding = AddToken(token_id=token, secret_digest=SECRET, ttl_ms=3_600_000)
        admitting = Admit(token_id=token, secret_digest=SECRET, node_id=node_id, address=node_id)

        def admitted(process: Process, outcomes: list[Outcome]) -> None:
            if outcomes[-1].reason:
                raise Violation(f"a node with a fresh token is refused: {outcomes}")
            self.joining_count -= 1
            node = self.make(node_id)
            node.joined_voters = dict(process.core.engine.voters)
            self.world.after_ms(self.chance.choice((0, 50, 1_000)), node.start)

        self.mesh.asking.ask([Command(add_token=adding), Command(admit=admitting)], admitted)
        return node_id

    def _can_spare(self, node_id: str) -> bool:
        """Whether enough are left without it: a damaged one may turn out lost at its next start."""
        voters = set(self.mesh.checks.voters) - self.unwanted - {node_id}
        left = [self.mesh.nodes[v] for v in voters]
        sound = [node for node in left if node.state in ("up", "down") and not node.is_harmed]
        return len(sound) >= VOTERS_LEFT_MIN

    def remove(self, node: SimNode, *, through: SimNode | None = None) -> None:
        """Take a node out for good, whether it lives or not; `through` is asked first."""
        if node.node_id not in self.unwanted and self._can_spare(node.node_id):
            self.unwanted.add(node.node_id)
            self._ask_removal(node.node_id, through)

    def replace(self, node: SimNode) -> None:
        """Let a new node come and this one go."""
        if node.node_id not in self.unwanted and self._can_spare(""):
            self.unwanted.add(node.node_id)
            self._ask_removal(node.node_id)
            self.join()

    def replace_lost(self) -> None:
        """Who cannot be trusted any more goes, and another one comes."""
        for node in list(self.mesh.nodes.values()):
            if node.state == "lost" and node.node_id not in self.unwanted:
                self.unwanted.add(node.node_id)
                self._ask_removal(node.node_id)
                self.join()

    def _ask_removal(self, node_id: str, through: SimNode | None = None) -> None:
        """Of any node, again until it is done or refused for good."""

        def done(error: ConsensusError | None) -> None:
            self.world.note("removal", node_id, words=str(error or "done"))
            if error is None:
                self.change_count += 1
            elif isinstance(error, ChangeRefused) and self._can_spare(node_id):
                self.world.after_ms(1_000, lambda: self._ask_removal(node_id))
            elif isinstance(error, ChangeRefused):
                self.unwanted.discard(node_id)
            else:
                self.world.after_ms(300, lambda: self._ask_removal(node_id))

        self._through_any(node_id, done, [through] if through is not None else None)

    def _through_any(
        self,
        node_id: str,
        done: Callable[[ConsensusError | None], None],
        up: list[SimNode] | None,
    ) -> None:
        up = up or self.mesh.asking.up()
        process = self.chance.choice(up).process if up else None
        is_over: list[bool] = []

        def once(error: ConsensusError | None) -> None:
            if not is_over:
                is_over.append(True)
                done(error)

        def ask() -> None:
            assert process is not None
            deadline_ms = process.node.clock.monotonic_ms() + CHANGE_MS
            try:
                process.core.membership.remove_voter(node_id, deadline_ms=deadline_ms, done=once)
            except ConsensusError as refused:
                once(refused)

        self.world.after_ms(CHANGE_MS * 2, lambda: once(ConsensusError("no answer")))
        if process is not None:
            process.call(ask)

    def unsettled(self, newest: Process) -> str:
        """Who is not yet what it is to be; empty when all are."""
        members, voters = newest.core.ledger.members(), newest.core.engine.voters
        # Who was out of reach for long after its removal is not told any more.
        told = newest.core.ledger.farewells()
        for node in self.mesh.nodes.values():
            name, is_voter = node.node_id, node.node_id in voters
            is_member = name in members
            if name in self.unwanted and is_member:
                return f"{name} is to be removed and still is a member"
            if name in told and node.process is not None and not node.core.is_removed:
                return f"{name} was removed and does not know it"
            if is_member and node.state != "up":
                return f"{name} is {node.state} and still a member"
            if is_member and not is_voter and len(voters) < node.limits.voters_max:
                return f"{name} has no vote"
        return f"{self.joining_count} nodes are joining" if self.joining_count else ""

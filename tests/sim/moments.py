"""Faults that see who leads and choose the worst moment. More of one: `--weights far=20`."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from consensus.ledger import Applied
from tests.sim.faults import Fault
from tests.sim.network import Pair
from tests.sim.node import Process, SimNode

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh

REIGN_US = (500, 60_000)
AWAY_MS = (150, 2_000)
CRAWL_US = (60_000, 250_000)  # of a disk that is about to lose its power
WAYS_US = ((500, 5_000), (20_000, 120_000), (300_000, 1_400_000))
LATE_US = (1_000_000, 1_200_000)
GIVE_TRIES, GIVE_EVERY_MS = 50, 10
RELAY_MS = 7_000


class Relay:
    """One passing on of the lead: who has had it, and who is out of sight for that."""

    def __init__(self, mesh: Mesh, first: SimNode) -> None:
        self.mesh, self.step = mesh, 1
        self._hidden = {first.node_id: self._hide(first)}
        self._first, self._heir = first, first
        self._last: Process | None = None
        mesh.checks.listeners.append(self._applied)

    def _hide(self, node: SimNode) -> Callable[[], None]:
        peers = [name for name in self.mesh.nodes if name != node.node_id]
        name = node.node_id
        return self.mesh.network.block([p for o in peers for p in ((name, o), (o, name))])

    def _show(self, node: SimNode) -> None:
        shown = self._hidden.pop(node.node_id, None)
        if shown is not None:
            shown()

    def crowned(self, process: Process) -> None:
        node = process.node
        if self.step == 1 and node is not self._first:
            self.step, self._heir = 2, node
            self._hidden[node.node_id] = self._hide(node)
            self._show(self._first)
            self.mesh.world.after_ms(10, lambda: node.crash(power=False))
            self.mesh.world.after_ms(1_200, node.start)
        elif self.step == 2 and node is not self._heir:
            self.step, self._last = 3, process

    def _applied(self, process: Process, applied: Applied) -> None:
        if self.step == 3 and process is self._last:
            self.step = 4
            self._hidden[process.node.node_id] = self._hide(process.node)
            self._show(self._heir)

    def end(self) -> None:
        """Everybody is seen again."""
        self.step = 5
        if self._applied in self.mesh.checks.listeners:
            self.mesh.checks.listeners.remove(self._applied)
        for shown in self._hidden.values():
            shown()
        self._hidden.clear()


class Moments:
    """What a spiteful observer of one run would do."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.world = mesh, mesh.world
        self.chance = random.Random(f"{mesh.world.seed} moments")
        self._short_till_ms = 0
        self.is_over = False
        self._relay: Relay | None = None
        mesh.checks.crowned.append(self._crowned)

    def heal(self) -> None:
        """Leaders may stay, and nobody is cut off any more."""
        self.is_over = True
        if self._relay is not None:
            self._end_relay(self._relay)

    def leader(self) -> SimNode | None:
        """Who leads in the newest term."""
        leaders = [
            n for n in self.mesh.nodes.values() if n.is_up and n.core.engine.role == "leader"
        ]
        return max(leaders, key=lambda node: node.core.engine.term, default=None)

    def _cut(self, here: set[str], there: set[str], ms: float) -> None:
        both = [pair for a in sorted(here) for b in sorted(there) for pair in ((a, b), (b, a))]
        self.world.after_ms(ms, self.mesh.network.block(both))

    # Leaders that hardly begin to lead.

    def short_reign(self, fault: Fault) -> None:
        """Who leads is gone soon, and so is for a while everybody who is elected."""
        leader = self.leader()
        if leader is not None and leader.process is not None:
            self._fall_soon(leader.process)
        self._short_till_ms = max(self._short_till_ms, self.world.now_ms + fault.for_ms * 4)

    def _crowned(self, process: Process) -> None:
        if self._relay is not None:
            self._relay.crowned(process)
        if self.world.now_ms < self._short_till_ms and not self.is_over:
            self._fall_soon(process)

    def _fall_soon(self, process: Process) -> None:
        delay_us = self.chance.randrange(*REIGN_US)
        self.world.after_us(delay_us, lambda: self._take_away(process))

    def _take_away(self, process: Process) -> None:
        node, away_ms = process.node, self.chance.randrange(*AWAY_MS)
        if not process.is_alive or self.is_over:
            return
        if self.chance.random() < 0.5:
            self._cut({node.node_id}, set(self.mesh.nodes) - {node.node_id}, away_ms)
            return
        node.crash(power=self.chance.random() < 0.5)
        self.world.after_ms(away_ms, node.start)

    # A majority that is just one.

    def bare_majority(self, fault: Fault) -> None:
        """The leader's disk crawls and only just a majority hears it; then those are cut off.

        The leader loses its power in that moment, and is back at once.
        """
        leader = self.leader()
        if leader is None:
            return
        voters = dict(leader.core.engine.voters)
        others = sorted(set(voters) - {leader.node_id})
        self.chance.shuffle(others)
        near, far = set(others[: len(voters) // 2]), set(others[len(voters) // 2 :])
        ms = self.chance.randrange(150, 900)
        leader.disk_delay_us = CRAWL_US
        self._cut({leader.node_id}, far, ms)
        self._cut(near, far, ms)
        self.world.after_ms(ms, lambda: self._lose_majority(leader, near))

    def _lose_majority(self, leader: SimNode, near: set[str]) -> None:
        if self.is_over:
            return
        leader.crash(power=True)
        leader.quicken_disk()
        self._cut(near, set(self.mesh.nodes) - near, self.chance.randrange(1_000, 2_500))
        self.world.after_ms(self.chance.randrange(20, 200), leader.start)

    # Three leaders, each gone before the next knows what it wrote (Raft's figure 8).

    def relay(self, fault: Fault) -> None:
        """The leader is cut off, its heir dies unheard, and whoever is next when it has applied."""
        leader = self.leader()
        if leader is not None and self._relay is None:
            self._relay = Relay(self.mesh, leader)
            self.world.after_ms(RELAY_MS, partial(self._end_relay, self._relay))

    def _end_relay(self, relay: Relay) -> None:
        relay.end()
        if self._relay is relay:
            self._relay = None

    # Roads of very different length.

    def far(self, fault: Fault) -> None:
        """Each direction of each link takes its own time, some of them longer than an election."""
        names = sorted(self.mesh.nodes)
        ways: list[Pair] = [(a, b) for a in names for b in names if a != b]
        self._slow({way: self.chance.choice(WAYS_US) for way in ways}, fault.for_ms * 6)

    def _slow(self, ways_us: dict[Pair, tuple[int, int]], ms: float) -> None:
        delays = self.mesh.network.delay_us
        delays.update(ways_us)

        def undo() -> None:
            for way in ways_us:
                delays.pop(way, None)

        self.world.after_ms(ms, undo)

    def comeback(self, fault: Fault) -> None:
        """The lead goes to another and comes back, while one peer still hears what was said before.

        What that peer answers comes at once, to a leader of the same name in another term.
        """
        leader = self.leader()
        others = sorted(set(leader.core.engine.voters) - {leader.node_id}) if leader else []
        if leader is None or len(others) < 2:
            return
        late, heir = self.chance.sample(others, 2)
        ways: list[Pair] = [(name, late) for name in self.mesh.nodes if name != late]
        self._slow(dict.fromkeys(ways, LATE_US), 5_000)
        self.world.after_ms(1_500, lambda: self._give(leader.node_id, heir))
        self.world.after_ms(1_500, lambda: self._give(heir, leader.node_id))

    def _give(self, here: str, there: str, tries: int = GIVE_TRIES) -> None:
        """Ask who leads to hand over, as soon as it leads and the other has all its entries."""
        process = self.mesh.nodes[here].process
        if self.is_over or not tries:
            return

        def ask() -> None:
            assert process is not None
            if not process.core.engine.transfer(there):
                self.world.after_ms(GIVE_EVERY_MS, lambda: self._give(here, there, tries - 1))

        if process is not None:
            process.call(ask)

    # Voters who come and go by twos.

    def crowd(self, fault: Fault) -> None:
        """Two nodes join at once, and a moment later only they see the leader."""
        if self.mesh.members.join() and self.mesh.members.join():
            self._soon(lambda: self._surround(fault))

    def _surround(self, fault: Fault) -> None:
        leader = self.leader()
        if leader is not None and not self.is_over:
            voters = set(leader.core.engine.voters) - {leader.node_id}
            fresh = set(self.mesh.nodes) - voters
            self._cut(fresh, voters, 2_500 + fault.for_ms)

    def purge(self, fault: Fault) -> None:
        """Two voters are to go at once, while the leader sees no more than one other."""
        leader = self.leader()
        if leader is None or len(leader.core.engine.voters) < 4:
            return
        others = sorted(set(leader.core.engine.voters) - {leader.node_id})
        self.chance.shuffle(others)
        kept = {leader.node_id, others[0]}
        self._cut(kept, set(self.mesh.nodes) - kept, 2_500 + fault.for_ms)
        for name in others[-2:]:
            self.mesh.members.remove(self.mesh.nodes[name], through=leader)

    def _soon(self, act: Callable[[], None]) -> None:
        self.world.after_ms(self.chance.randrange(20, 1_500), act)

"""Makes the faults happen to the nodes of a run, and undoes them when their time is over."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from tests.sim.damage import damage_files, rot_ledger
from tests.sim.faults import MOMENTS, Fault
from tests.sim.moments import Moments
from tests.sim.network import Pair
from tests.sim.node import SimNode

if TYPE_CHECKING:
    from tests.sim.mesh import Mesh

PAGES_MAX = 1_000_000
SLOW_LINK_US = (50_000, 150_000)


def keeps_majority(voter_count: int, harmed_count: int, leaving_count: int) -> bool:
    """Whether those that are not harmed are a majority, before and after whole ones have left.

    A removal that was begun is in force at once, and cannot be taken back without its majority.
    """
    return all(
        2 * (voter_count - gone - harmed_count) > voter_count - gone
        for gone in range(leaving_count + 1)
    )


class Life:
    """One run's troubles. `heal()` ends them all."""

    def __init__(self, mesh: Mesh) -> None:
        self.mesh, self.world = mesh, mesh.world
        self.chance = random.Random(f"{mesh.world.seed} life")
        self.moments = Moments(mesh)
        self.counts: dict[str, int] = {}

    def plan(self, faults: list[Fault]) -> None:
        for fault in faults:
            self.world.after_ms(fault.at_ms - self.world.now_ms, partial(self._do, fault))

    def _do(self, fault: Fault) -> None:
        nodes = sorted(self.mesh.nodes.values(), key=lambda node: node.node_id)
        up = [node for node in nodes if node.is_up]
        if not up:
            return
        self.counts[fault.kind] = self.counts.get(fault.kind, 0) + 1
        self.world.note("fault", fault.kind, words=str(fault))
        if fault.kind in MOMENTS:
            moment: Callable[[Fault], None] = getattr(self.moments, fault.kind)
            moment(fault)
            return
        one, other = up[fault.one % len(up)], nodes[fault.other % len(nodes)]
        act: Callable[[Fault, SimNode, SimNode], None] = getattr(self, f"_{fault.kind}")
        act(fault, one, other)

    def _after(self, fault: Fault, act: Callable[[], None]) -> None:
        self.world.after_ms(fault.for_ms, act)

    # Processes and power.

    def _kill(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        one.crash(power=False)
        self._after(fault, one.start)

    def _power(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        one.crash(power=True)
        self._after(fault, one.start)

    def _crash_at_write(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        """The process dies within one of its next changes to the disk; it is started again later."""
        one.crash_loses_power = fault.share < 0.5
        one.disk.crash_in = 1 + fault.other
        self.world.after_ms(fault.for_ms + 200, lambda: self._end_crash(one, fault))

    def _end_crash(self, one: SimNode, fault: Fault) -> None:
        """Now and then it dies again, within what its next start does to the disk."""
        one.disk.crash_in = None
        if not one.is_up and self.chance.random() < 0.4:
            one.disk.crash_in = 1 + fault.one // 3
            self.world.after_ms(300, lambda: self._end_crash(one, fault))
        one.start()

    def _kill_all(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self._all(fault, power=False, share=1.0)

    def _power_all(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self._all(fault, power=True, share=1.0)

    def _power_majority(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self._all(fault, power=True, share=0.7)

    def _all(self, fault: Fault, *, power: bool, share: float) -> None:
        for node in list(self.mesh.nodes.values()):
            if node.is_up and self.chance.random() <= share:
                node.crash(power=power)
                self.world.after_ms(self.chance.uniform(0.3, 1.0) * fault.for_ms, node.start)

    def _pause(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        process, peers = one.process, list(self.mesh.nodes)
        assert process is not None
        pairs = [(one.node_id, p) for p in peers] + [(p, one.node_id) for p in peers]
        unblock = self.mesh.network.block(pairs)
        one.pause()

        def resume() -> None:
            one.resume(process)
            unblock()

        self.world.after_ms(fault.for_ms * 2, resume)

    # Network.

    def _block(self, fault: Fault, pairs: list[Pair]) -> None:
        self._after(fault, self.mesh.network.block(pairs))

    def _cut(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        a, b = one.node_id, other.node_id
        self._block(fault, [(a, b), (b, a)])

    def _one_way(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        peers = list(self.mesh.nodes) if fault.share < 0.4 else [other.node_id]
        pairs = [(one.node_id, peer) for peer in peers]
        self._block(fault, [pair[::-1] for pair in pairs] if fault.share < 0.2 else pairs)

    def _isolate(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self._part(fault, {one.node_id}, set(self.mesh.nodes) - {one.node_id})

    def _split(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        names = list(self.mesh.nodes)
        self.chance.shuffle(names)
        at = self.chance.randrange(1, max(2, len(names)))
        self._part(fault, set(names[:at]), set(names[at:]))

    def _bridge(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        """Two halves that only one node sees both of."""
        names = [name for name in self.mesh.nodes if name != one.node_id]
        self._part(fault, set(names[::2]), set(names[1::2]))

    def _part(self, fault: Fault, here: set[str], there: set[str]) -> None:
        pairs = [pair for a in sorted(here) for b in sorted(there) for pair in ((a, b), (b, a))]
        self._block(fault, pairs)

    def _ring(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        """Each sees its two neighbours only."""
        names = list(self.mesh.nodes)
        count = len(names)
        pairs = [
            pair
            for a, b in itertools.combinations(range(count), 2)
            if b - a not in (1, count - 1)
            for pair in ((names[a], names[b]), (names[b], names[a]))
        ]
        self._block(fault, pairs)

    def _blip(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self.mesh.network.break_off(one.node_id, other.node_id)

    def _directions(self, one: SimNode, other: SimNode) -> list[Pair]:
        a, b = one.node_id, other.node_id
        return [(a, b), (b, a)]

    def _slow_link(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        directions = self._directions(one, other)
        for direction in directions:
            self.mesh.network.delay_us[direction] = SLOW_LINK_US

        def undo() -> None:
            for direction in directions:
                self.mesh.network.delay_us.pop(direction, None)

        self._after(fault, undo)

    def _lossy(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        directions = self._directions(one, other)
        for direction in directions:
            self.mesh.network.loss[direction] = 0.02 + fault.share * 0.2

        def undo() -> None:
            for direction in directions:
                self.mesh.network.loss.pop(direction, None)

        self._after(fault, undo)

    def _duplicate(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self.mesh.network.duplicate_share = 0.2

        def undo() -> None:
            self.mesh.network.duplicate_share = 0.0

        self._after(fault, undo)

    # Disks.

    def _slow_disk(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        one.disk_delay_us = (2_000, 10_000 if fault.share < 0.5 else 80_000)
        self._after(fault, one.quicken_disk)

    def _full(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        """No file grows any more: neither the ledger's nor any other."""
        one.disk.is_full = True
        connection = one.core.ledger.connection
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count={pages}").fetchone()
        self._after(fault, lambda: self.make_room(one))

    def make_room(self, one: SimNode) -> None:
        one.disk.is_full = False
        if one.process is not None and one.is_up:
            connection = one.core.ledger.connection
            connection.execute(f"PRAGMA max_page_count={PAGES_MAX}").fetchone()
            self.restart_if_failed(one)

    def _sync_error(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        one.disk.sync_errors = 1 + fault.other % 3

        def undo() -> None:
            one.disk.sync_errors = 0
            self.restart_if_failed(one)

        self._after(fault, undo)

    def restart_if_failed(self, one: SimNode) -> None:
        """As whoever runs the node would: a node whose storage failed is started anew."""
        if one.is_up and one.core.engine.failed is not None:
            one.crash(power=False)
            self.world.after_ms(100, one.start)

    def _may_harm(self, one: SimNode) -> bool:
        """Whether a majority of voters stays whole all the same, however far removals have come."""
        voters = self.mesh.checks.voters
        harmed = {n for n in voters if self.mesh.nodes[n].is_harmed}
        leaving = set(voters) & self.mesh.members.unwanted - harmed
        return not one.is_harmed and keeps_majority(len(voters), len(harmed) + 1, len(leaving))

    def _damage(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        """Bits of one file flip while the node is down; a majority of voters stays whole."""
        if not self._may_harm(one):
            return
        one.crash(power=fault.share < 0.3)
        if damage_files(one, self.chance):
            one.is_harmed = True
        self._after(fault, one.start)

    def _rot(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        """Bits of the ledger flip while the node is down; comparing ledgers has to find them."""
        if self._may_harm(one) and one.limits.scrub_ms:
            one.crash(power=False)
            one.is_harmed = one.is_rotten = self.mesh.checks.has_rot = True
            self.mesh.checks.doubtful.add(one.node_id)
            rot_ledger(one, self.chance)
            self._after(fault, one.start)

    # Membership.

    def _join(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self.mesh.members.join()

    def _remove(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        self.mesh.members.remove(other)

    def _replace(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        """Whoever is damaged first of all."""
        self.mesh.members.replace_lost()
        self.mesh.members.replace(other)

    # Time.

    def _drift(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        one.clock.run_at(int(800 + 400 * fault.share))
        self.world.after_ms(fault.for_ms * 4, lambda: one.clock.run_at(1_000))

    def _wall_jump(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        one.clock.wall_offset_ms += int((fault.share - 0.5) * 7_200_000)

    def _worker_pause(self, fault: Fault, one: SimNode, other: SimNode) -> None:
        workers = self.mesh.workers
        workers[fault.other % len(workers)].pause(fault.for_ms * 3)

    def heal(self) -> None:
        """Undo everything; start whatever is down."""
        self.moments.heal()
        self.mesh.network.heal()
        for node in self.mesh.nodes.values():
            if node.process is not None:
                node.resume(node.process)
            node.disk.crash_in, node.disk.sync_errors = None, 0
            node.clock.run_at(1_000)
            node.quicken_disk()
            self.make_room(node)
            node.start()

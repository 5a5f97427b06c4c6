"""Random faults over a world: what happens is chosen by the seed alone."""

from __future__ import annotations

import random

from tests.engine.world import World

MODES = ("partitions", "crash", "power", "stall", "compact", "dup")


def run_faults(mode: str, seed: int, *, fault_ms: int = 12_000, settle_ms: int = 8_000) -> World:
    """Clients and faults for a while, then everything is healed and the outcome checked."""
    assert mode in MODES
    world = World(seed, duplicates=0.05 if mode == "dup" else 0.0)
    if mode == "power":
        world.sync_ms = (1, 80)
    chance = random.Random(seed * 7_919 + 13)
    end_ms = world.clock.monotonic_ms() + fault_ms
    _clients(world, chance, end_ms, seed)
    _chaos(world, chance, end_ms, mode)
    world.run(fault_ms)
    world.heal_all()
    world.run(settle_ms)
    world.check_settled()
    return world


def _clients(world: World, chance: random.Random, end_ms: int, seed: int) -> None:
    count = [0]

    def ask() -> None:
        if world.clock.monotonic_ms() > end_ms:
            return
        for _ in range(chance.choice((1, 1, 5, 20))):
            count[0] += 1
            value = b"%d-%d" % (seed, count[0]) + b"." * 60
            world.propose(chance.choice(sorted(world.nodes)), value)
        world.after(chance.expovariate(1 / 40), ask)

    ask()


def _chaos(world: World, chance: random.Random, end_ms: int, mode: str) -> None:
    ids = sorted(world.nodes)

    def act() -> None:
        if world.clock.monotonic_ms() > end_ms:
            return
        kind, (a, b) = chance.random(), chance.sample(ids, 2)
        wait_ms = chance.expovariate(1 / 1_000)
        if mode == "power" and kind < 0.5:
            # A majority, or everybody, loses power at once, in the middle of its syncs.
            for node_id in chance.sample(ids, chance.choice((2, 3))):
                world.crash(node_id)
                world.after(wait_ms, lambda node_id=node_id: world.start(node_id))
        elif kind < 0.25:
            world.partition(a, b)
            world.after(wait_ms, lambda: world.heal(a, b))
        elif kind < 0.4:
            world.isolate(a)
            world.after(wait_ms, lambda: world.rejoin(a))
        elif kind < 0.55:
            world.blip(a, b)
        elif mode == "stall":
            world.stall(a, b)
            world.after(wait_ms, lambda: world.unstall(a, b))
        elif mode in ("crash", "compact", "dup") and kind < 0.8:
            world.crash(a, power=chance.random() < 0.7)
            world.after(wait_ms, lambda: world.start(a))
        if mode == "compact":
            for node in world.nodes.values():
                if node.is_alive:
                    node.journal.drop_to(node.applied_index - chance.choice((0, 5, 50)))
        world.after(chance.expovariate(1 / 500), act)

    act()

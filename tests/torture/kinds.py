"""The kinds of fault. Each does its harm to a running mesh, and gives back how it is mended."""

from __future__ import annotations

import errno
import itertools
import random
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from node.api.errors import EXIT_DAMAGED
from tests.e2e.mesh_process import LocalMesh, NodeProcess, NotInTime, wait_for
from tests.faultlib.control import Faults
from tests.faultlib.powerloss import Names, lose_power
from tests.torture.lab import Network, Pair, SmallDisk, number_of
from tests.torture.load import Load

LEASE_S = 3.0
WELL_S = 30.0  # generous: a fault is on, or five nodes start at once
HELD_CLAIMS_MIN = 40
HELD_WAIT_S = 20.0
JUMP_HOURS = 1
DRIFT_PPM = 200_000
CUT_S = 3.5
PAUSE_S = LEASE_S + 0.5
LONG_S = 11.0  # a whole window of ten seconds lies inside
MIXED_S_MAX = 4.0
LOSS = 0.05
DELAY_MS, JITTER_MS = 100.0, 50.0


@dataclass
class Scene:
    """What a fault may touch."""

    mesh: LocalMesh
    network: Network
    load: Load
    rng: random.Random
    disks: dict[str, SmallDisk] = field(default_factory=dict)
    faults: dict[str, Faults] = field(default_factory=dict)

    @property
    def nodes(self) -> list[NodeProcess]:
        return self.mesh.nodes

    def shuffled(self) -> list[NodeProcess]:
        return self.rng.sample(self.nodes, len(self.nodes))


@dataclass(frozen=True, slots=True)
class Wound:
    """A fault that was done: to whom, and how to mend it."""

    victims: str
    mend: Callable[[], None]
    held_s: float | None = None  # other than the kind says
    is_dark: bool = False  # until it is mended nothing can run: gaps count from then on


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault, and what it needs of the host."""

    name: str
    harm: Callable[[Scene], Wound]
    held_s: float  # between the fault and its mending
    needs_network: bool = False
    needs_small_disks: bool = False
    is_preloaded: bool = False  # the nodes run with the fault library
    logs_writes: bool = False  # which then remembers what was not synced
    is_switched: bool = False
    is_on_leader: bool = False  # its write gap is held to the bar for the leader
    is_on_follower: bool = False  # what is lost is a follower: hardly a write waits for it
    needs_progress: bool = False  # held for longer than a window in which some write must succeed
    faults_per_minute: int = 5  # at least
    is_proof: bool = False  # no mesh can survive it: it shows that the harness sees a loss


def kill_one(scene: Scene) -> Wound:
    """A follower dies: hardly a write waits for it."""
    victim = scene.rng.choice(scene.mesh.followers())
    victim.kill()
    return Wound(victim.name, victim.start)


def kill_leader(scene: Scene) -> Wound:
    victim = scene.mesh.leader()
    victim.kill()
    return Wound(victim.name, victim.start)


def kill_all(scene: Scene) -> Wound:
    scene.mesh.kill_all()
    return Wound("all", lambda: _start(scene.nodes))


def pause_leader(scene: Scene) -> Wound:
    victim = scene.mesh.leader()
    victim.pause()
    return Wound(victim.name, victim.resume)


def pause_follower(scene: Scene) -> Wound:
    victim = scene.rng.choice(scene.mesh.followers())
    victim.pause()
    return Wound(victim.name, victim.resume)


def partition_leader(scene: Scene) -> Wound:
    leader = scene.mesh.leader()
    return _cut(scene, leader.name, _between([leader], _others(scene, [leader])))


def partition_halves(scene: Scene) -> Wound:
    """Two nodes on one side, three on the other; the leader on either."""
    nodes = scene.shuffled()
    less = nodes[: len(nodes) // 2]
    return _cut(scene, _names(less), _between(less, _others(scene, less)))


def one_way(scene: Scene) -> Wound:
    """The leader is heard by nobody, or hears nobody; the other way goes on."""
    leader = scene.mesh.leader()
    out = [(number_of(leader.name), number_of(one.name)) for one in _others(scene, [leader])]
    is_mute = scene.rng.random() < 0.5
    pairs = out if is_mute else [(b, a) for a, b in out]
    return _cut(scene, f"{leader.name} {'mute' if is_mute else 'deaf'}", pairs)


def bridge(scene: Scene) -> Wound:
    """Two sides that only one node in the middle reaches both of."""
    nodes = scene.shuffled()
    half = len(nodes) // 2
    left, middle, right = nodes[:half], nodes[half], nodes[half + 1 :]
    return _cut(scene, f"{_names(left)} | {_names(right)} by {middle.name}", _between(left, right))


def ring(scene: Scene) -> Wound:
    """Each node reaches its two neighbours only."""
    nodes = scene.shuffled()
    pairs: list[Pair] = []
    for a, b in itertools.permutations(range(len(nodes)), 2):
        if (a - b) % len(nodes) not in (1, len(nodes) - 1):
            pairs.append((number_of(nodes[a].name), number_of(nodes[b].name)))
    return _cut(scene, "-".join(node.name for node in nodes), pairs)


def loss_delay(scene: Scene) -> Wound:
    scene.network.disturb(loss=LOSS, delay_ms=DELAY_MS, jitter_ms=JITTER_MS)
    return Wound("all", scene.network.heal)


def disk_full(scene: Scene) -> Wound:
    victim = _leader_or_any(scene)
    disk = scene.disks[victim.name]
    disk.fill()
    return Wound(victim.name, disk.make_room)


def eio_write(scene: Scene) -> Wound:
    """Every write to a node's disk fails. Its operator mends the disk and starts it anew."""
    victim = _leader_or_any(scene)
    scene.faults[victim.name].write_errno = errno.EIO
    return Wound(victim.name, lambda: _restart(scene, victim))


def eio_sync(scene: Scene) -> Wound:
    """Every sync fails; what was written before it may be gone for good."""
    victim = _leader_or_any(scene)
    scene.faults[victim.name].sync_errno = errno.EIO
    return Wound(victim.name, lambda: _restart(scene, victim))


def power_loss_all(scene: Scene) -> Wound:
    """The power of all nodes fails at once: what was not synced is gone, in part, or torn.

    Names come back in order, as of a journalling file system, or any of them.
    """
    scene.mesh.kill_all()
    names = scene.rng.choice((Names.ORDERED, Names.ANY))
    for node in scene.nodes:
        faults = scene.faults[node.name]
        assert faults.log is not None
        lose_power(faults.folder, faults.log, scene.rng, names=names)
    return Wound(f"all, names {names.value}", lambda: _start(scene.nodes), is_dark=True)


def mixed(scene: Scene) -> Wound:
    """A fault of another kind each time, so that each finds what the ones before have left."""
    kind = KINDS[scene.rng.choice(MIXED)]
    wound = kind.harm(scene)
    return replace(
        wound, victims=f"{kind.name} {wound.victims}", held_s=min(kind.held_s, MIXED_S_MAX)
    )


def damage(scene: Scene) -> Wound:
    """A byte of a dead follower's vote or journal flips. It refuses to start, and then rejoins."""
    victim = scene.rng.choice(scene.mesh.followers())
    old_id = victim.status().node_id
    victim.kill()
    state = victim.data / "state"
    oldest = min((state / "journal").iterdir())
    path = scene.rng.choice((state / "vote", oldest))
    content = bytearray(path.read_bytes())
    # In the first half: nothing there can be the torn end of what was being written.
    at = scene.rng.randrange(len(content) // 2)
    content[at] ^= 1 << scene.rng.randrange(8)
    path.write_bytes(content)

    def mend() -> None:
        victim.start()
        wait_for(victim.has_ended, f"{victim.name} refuses damage", within_s=WELL_S)
        assert victim.process is not None
        code = victim.process.returncode
        assert code == EXIT_DAMAGED, f"{victim.name} ended with {code}, not as damaged"
        victim.kill()
        victim.start(flags=["--rejoin"])
        wait_for(lambda: _is_replaced(victim, old_id), "the new one votes", within_s=2 * WELL_S)

    return Wound(f"{victim.name}, byte {at} of {path.name}", mend)


def rolled_back(scene: Scene) -> Wound:
    """All nodes wake up with the disks of the fault before, as if nothing since had been said."""
    scene.mesh.kill_all()
    for node in scene.nodes:
        copy = node.root / "copies" / node.name
        if copy.exists():
            shutil.rmtree(node.data)
            shutil.copytree(copy, node.data)
        else:
            ignored = shutil.ignore_patterns("*.sock", "*-shm")
            shutil.copytree(node.data, copy, ignore=ignored)
    return Wound("all", lambda: _start(scene.nodes))


def clock_jump(scene: Scene) -> Wound:
    """Wall time jumps by an hour, ahead or back, on some of the nodes; one of them starts anew.

    So its connections, and the certificates that they rest on, are judged by the wrong time too.
    """
    victims = scene.shuffled()[: scene.rng.randint(1, len(scene.nodes))]
    jumps = {node.name: scene.rng.choice((-JUMP_HOURS, JUMP_HOURS)) for node in victims}
    for name, hours in jumps.items():
        scene.faults[name].jump_wall(hours=hours)
    words = " ".join(f"{name}{hours:+d}h" for name, hours in jumps.items())
    victims[0].kill()
    victims[0].start()
    wait_well(victims[0])
    return Wound(f"{words}, {victims[0].name} started anew", lambda: _heal(scene))


def clock_drift(scene: Scene) -> Wound:
    """All clocks of a node run fast or slow; each node's differently."""
    rates = {node.name: scene.rng.choice((-DRIFT_PPM, 0, DRIFT_PPM)) for node in scene.nodes}
    for name, ppm in rates.items():
        scene.faults[name].drift(ppm)
    words = " ".join(f"{name}{ppm // 10_000:+d}%" for name, ppm in rates.items() if ppm)
    return Wound(words, lambda: _heal(scene))


def hand_over(scene: Scene) -> Wound:
    """A node with workers that hold claims stops for three leases; the claims go to others.

    Then all of it goes on, and every worker completes what it held under its old fence.
    """
    victims = scene.shuffled()[:2]
    names = {node.name for node in victims}
    # All sit on what they get until the victims have enough, whoever is served first.
    scene.load.hold_back(scene.load.workers)
    held = [worker for worker in scene.load.workers if worker.node in names]

    def holding() -> bool:
        return sum(worker.holding_count for worker in held) >= HELD_CLAIMS_MIN

    try:
        wait_for(holding, f"{HELD_CLAIMS_MIN} claims are held", within_s=HELD_WAIT_S)
    except NotInTime:
        scene.load.go_on(scene.load.workers)
        raise
    for victim in victims:
        victim.pause()
    scene.load.go_on([worker for worker in scene.load.workers if worker not in held])

    def mend() -> None:
        for victim in victims:
            victim.resume()
        scene.load.go_on(held)

    return Wound(_names(victims), mend)


# Those first on which most bars rest: all seeds of one kind run before the next kind.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("kill-leader", kill_leader, 1.5, is_on_leader=True, faults_per_minute=10),
        Kind("kill-all", kill_all, 0.2),
        Kind("pause-leader", pause_leader, PAUSE_S, is_on_leader=True, faults_per_minute=10),
        Kind(
            "partition-leader",
            partition_leader,
            CUT_S,
            needs_network=True,
            is_on_leader=True,
            faults_per_minute=10,
        ),
        Kind("one-way", one_way, LONG_S, needs_network=True, needs_progress=True),
        Kind("bridge", bridge, LONG_S, needs_network=True, needs_progress=True),
        Kind(
            "loss-delay",
            loss_delay,
            LONG_S,
            needs_network=True,
            is_switched=True,
            needs_progress=True,
        ),
        Kind(
            "power-loss-all",
            power_loss_all,
            0.0,
            is_preloaded=True,
            logs_writes=True,
            faults_per_minute=10,
        ),
        Kind("clock-jump", clock_jump, 3.0, is_preloaded=True),
        Kind("clock-drift", clock_drift, 4.0, is_preloaded=True),
        Kind("disk-full", disk_full, 3.0, needs_small_disks=True),
        Kind("eio-sync", eio_sync, 2.0, is_preloaded=True),
        Kind("eio-write", eio_write, 2.0, is_preloaded=True),
        Kind("hand-over", hand_over, 3 * LEASE_S, faults_per_minute=6),
        Kind("kill-one", kill_one, 1.5, is_on_follower=True, faults_per_minute=7),
        Kind("mixed", mixed, 0.0, needs_network=True, is_preloaded=True, logs_writes=True),
        Kind("damage", damage, 1.0),
        Kind("partition-halves", partition_halves, CUT_S, needs_network=True),
        Kind("ring", ring, CUT_S, needs_network=True),
        Kind("pause-follower", pause_follower, PAUSE_S, is_on_follower=True),
        Kind("rolled-back", rolled_back, 0.0, is_proof=True),
    )
}


def wait_well(node: NodeProcess, *, within_s: float = WELL_S) -> None:
    """Wait until a node runs and can write. AssertionError: it does not."""

    def is_well() -> bool:
        assert not node.has_ended(), f"{node.name} ended by itself:\n{node.log_tail()}"
        return node.status().writable

    wait_for(is_well, f"{node.name} can write", within_s=within_s)


# Those that need neither small disks nor a switch, and change no file behind the log's back.
MIXED = (
    *("kill-one", "kill-leader", "kill-all", "pause-leader", "pause-follower", "power-loss-all"),
    *("partition-leader", "partition-halves", "one-way", "bridge", "ring"),
    *("eio-write", "eio-sync", "clock-jump", "clock-drift"),
)


def _cut(scene: Scene, victims: str, pairs: Iterable[Pair]) -> Wound:
    scene.network.cut(pairs)
    return Wound(victims, scene.network.heal)


def _between(some: Sequence[NodeProcess], others: Sequence[NodeProcess]) -> list[Pair]:
    """Both directions between two sides."""
    ways = [(number_of(a.name), number_of(b.name)) for a in some for b in others]
    return [*ways, *((b, a) for a, b in ways)]


def _others(scene: Scene, some: Sequence[NodeProcess]) -> list[NodeProcess]:
    return [node for node in scene.nodes if node not in some]


def _is_replaced(node: NodeProcess, old_id: str) -> bool:
    assert not node.has_ended(), f"{node.name} ended by itself:\n{node.log_tail()}"
    status = node.status()
    voters = {member.node_id for member in status.members if member.voter}
    return status.node_id in voters and old_id not in voters


def _names(nodes: Sequence[NodeProcess]) -> str:
    return "+".join(node.name for node in nodes)


def _start(nodes: Sequence[NodeProcess]) -> None:
    for node in nodes:
        node.start()


def _restart(scene: Scene, node: NodeProcess) -> None:
    """As an operator does: mend the disk, stop what is left of the node, start it."""
    scene.faults[node.name].heal()
    node.stop()
    node.start()


def _heal(scene: Scene) -> None:
    for faults in scene.faults.values():
        faults.heal()


def _leader_or_any(scene: Scene) -> NodeProcess:
    is_leader = scene.rng.random() < 0.5
    return scene.mesh.leader() if is_leader else scene.rng.choice(scene.nodes)

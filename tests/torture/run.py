"""One run: a mesh of real nodes under load, a fault every few seconds, and the verdict."""

from __future__ import annotations

import contextlib
import random
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tests.e2e.mesh_process import LocalMesh, NotInTime, Site, wait_for
from tests.faultlib.build import NoCompiler, library
from tests.faultlib.control import Faults
from tests.faultlib.powerloss import begin
from tests.torture import bars, host, lab, verdict
from tests.torture.bars import EQUAL_S_MAX, FAULTS_MIN, RATE_MIN_PER_S, WINDOW_S
from tests.torture.history import History, now_ns
from tests.torture.kinds import Kind, Scene, Wound, wait_well
from tests.torture.lab import Lab, SmallDisk
from tests.torture.load import CLIENTS_PER_NODE, Load, Wish

PERIOD_S = 5.0
RATE_WINDOW_S = 2.0
WARM_UP_S = 2.0
RATE_WAIT_S = 40.0
WRITE_S = 30.0
SMALL_DISK_BYTES = 96 << 20  # far more than a run writes: only the fault fills it
RUN_S_MIN = 120.0  # however short a run is to be, it may take so long for its faults
COMPACT_OFTEN = ("--compact-entries", "300", "--keep-entries", "100", "--segment-bytes", "65536")
NODE_WORKERS = 2  # so many nodes have a worker process of their own


@dataclass(frozen=True, slots=True)
class Order:
    """What to run."""

    kind: Kind
    seed: int
    seconds: float
    history: Path
    node_count: int = 5
    slack: float = 1.0  # bars of time are so many times longer: for machines that others use too
    keep: Path | None = None  # where the nodes' folders and logs stay; None: they are removed

    @property
    def compacts_often(self) -> bool:
        """Odd seeds: journals and ledgers are compacted every few seconds, copies installed."""
        return self.seed % 2 == 1


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault as it went."""

    victims: str
    at_s: float
    rate_before_per_s: float
    write_gap_s: float  # until all is mended and a write has succeeded
    loss_gap_s: float  # until the mending began
    writable_after_s: float


@dataclass
class Report:
    """What came of a run. `faults` that count: with load before them.

    The longest gap and the emptiest window are of all the time from the first fault to the end of
    the last; no window: that was shorter than one.
    """

    kind: str
    seed: int
    commit: str
    place: str
    seconds_asked: float = 0.0
    slack: float = 1.0
    machine: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    operation_count: int = 0
    unknown_count: int = 0
    submitted_count: int = 0
    hand_over_count: int = 0
    stale_refused_count: int = 0
    late_refused_count: int = 0
    lost: int = 0
    double_effects: int = 0
    longest_gap_s: float = 0.0
    fewest_writes_in_window: int | None = None
    linearizable: str = ""
    digests_equal_s: float | None = None
    violations: list[str] = field(default_factory=list)
    uncounted: str = ""  # why the run does not count; empty: it does

    @property
    def exit_code(self) -> int:
        """0: all held. 1: a promise was broken. 2: the run does not count."""
        if self.violations:
            return 1
        return 2 if self.uncounted else 0

    def gaps_s(self) -> list[float]:
        return [fault.write_gap_s for fault in self.faults]

    def rates_per_s(self) -> list[float]:
        return [fault.rate_before_per_s for fault in self.faults]

    def to_json(self) -> dict[str, object]:
        gaps, rates = self.gaps_s() or [0.0], self.rates_per_s() or [0.0]
        return {
            **asdict(self),
            "fault_count": len(self.faults),
            "rate_min_per_s": round(min(rates), 1),
            "rate_median_per_s": round(statistics.median(rates), 1),
            "write_gap_median_s": round(statistics.median(gaps), 3),
            "write_gap_max_s": round(max(gaps), 3),
            "exit_code": self.exit_code,
            "bars": [asdict(bar) for bar in self.held_to()],
        }

    def held_to(self) -> list[bars.Bar]:
        """What it was held to, bar by bar."""
        return bars.of_run(asdict(self))

    def hold_to_bars(self) -> None:
        """Take every bar that was missed for what it is: a violation, or a run without worth."""
        missed = [bar for bar in self.held_to() if not bar.is_held]
        worthless = [str(bar) for bar in missed if bar.counts_only]
        self.violations += [str(bar) for bar in missed if not bar.counts_only]
        if worthless and not self.uncounted:
            self.uncounted = "; ".join(worthless)


def torture(order: Order) -> Report:
    """Build a mesh, run the order on it, and judge. Raises NoLab: this host cannot."""
    with (
        lab.build(node_count=order.node_count, is_switched=order.kind.is_switched) as place,
        _folder(order) as root,
        History(order.history) as history,
    ):
        report = Report(order.kind.name, order.seed, host.commit(), place.network.words)
        report.seconds_asked, report.slack = order.seconds, order.slack
        report.machine = host.describe(root)
        options = COMPACT_OFTEN if order.compacts_often else ()
        check_host(order.kind, place)
        faults = _faults(root, order)

        def site(name: str) -> Site:
            found = place.network.site(name)
            preload = faults[name].environment() if name in faults else {}
            return replace(found, environment=preload)

        with (
            _small_disks(root, order) as disks,
            LocalMesh(root, slots=8, site=site, options=options) as mesh,
        ):
            for number in range(order.node_count):
                mesh.add(workers=int(number < NODE_WORKERS))
            wish = Wish(order.seed, CLIENTS_PER_NODE * order.node_count)
            load = Load(mesh.nodes, history, wish).start()
            rng = random.Random(order.seed)
            scene = Scene(mesh, place.network, load, rng, disks, faults)
            try:
                mended_s = Conduct(order, scene, history, report).run()
                load.stop_clients()
                _judge_running(mesh, report, mended_s)
            finally:
                place.network.heal()
                load.stop()
            _judge_stopped(mesh, load, history, report)
    report.hold_to_bars()
    return report


class Conduct:
    """The faults of a run, one after the other."""

    def __init__(self, order: Order, scene: Scene, history: History, report: Report) -> None:
        self._order = order
        self._scene = scene
        self._history = history
        self._report = report
        self._began_s = time.monotonic()
        self._faults_min = bars.faults_min(order.kind, seconds=order.seconds)

    def run(self) -> float:
        """Do them all. When the last one was mended (monotonic s)."""
        mended_s = time.monotonic()
        pause(WARM_UP_S)
        first_ns = now_ns()
        while not self._is_over():
            began_s = time.monotonic()
            rate_per_s = self._wait_load()
            if rate_per_s is None:
                break
            mended_s = self._one(rate_per_s)
            if self._report.violations or self._is_over():
                break
            pause(began_s + PERIOD_S - time.monotonic())
        report = self._report
        report.seconds = round(time.monotonic() - self._began_s, 1)
        report.longest_gap_s = round(self._history.write_gap_s(first_ns, now_ns()), 3)
        report.fewest_writes_in_window = self._history.fewest_writes(first_ns, now_ns(), WINDOW_S)
        if len(report.faults) < FAULTS_MIN and not report.uncounted:
            report.uncounted = f"{len(report.faults)} faults, at least {FAULTS_MIN} count"
        return mended_s

    def _is_over(self) -> bool:
        elapsed_s = time.monotonic() - self._began_s
        if elapsed_s >= max(4 * self._order.seconds, RUN_S_MIN):
            return True
        return elapsed_s >= self._order.seconds and len(self._report.faults) >= self._faults_min

    def _wait_load(self) -> float | None:
        """The rate of acknowledged operations once it is enough; None: it never is."""

        def enough() -> float | None:
            self._scene.load.check()
            rate_per_s = self._history.rate_per_s(RATE_WINDOW_S)
            return rate_per_s if rate_per_s >= RATE_MIN_PER_S else None

        try:
            return wait_for(enough, "there is load", within_s=RATE_WAIT_S * self._order.slack)
        except NotInTime:
            rate_per_s = self._history.rate_per_s(RATE_WINDOW_S)
            self._report.uncounted = f"{rate_per_s:.0f} operations/s before a fault"
            return None

    def _one(self, rate_per_s: float) -> float:
        began_ns = now_ns()
        try:
            wound = self._order.kind.harm(self._scene)
        except AssertionError as error:
            # What the fault itself waits for is a promise too, such as a node that starts.
            self._report.violations.append(f"{self._order.kind.name}: {error}")
            return time.monotonic()
        say(f"{self._order.kind.name}: {wound.victims}, {rate_per_s:.0f} operations/s before")
        pause(self._order.kind.held_s if wound.held_s is None else wound.held_s)
        if wound.is_dark:
            began_ns = now_ns()
        loss_gap_s = self._gap_s(wound, began_ns)
        try:
            wound.mend()
        except AssertionError as error:
            self._report.violations.append(f"mending {wound.victims}: {error}")
        mended_s = time.monotonic()
        self._wait_writable(wound)
        writable_s = time.monotonic()
        self._wait_write()
        fault = Fault(
            victims=wound.victims,
            at_s=round(began_ns / 1e9 - self._began_s, 2),
            rate_before_per_s=round(rate_per_s, 1),
            write_gap_s=round(self._gap_s(wound, began_ns), 3),
            loss_gap_s=round(loss_gap_s, 3),
            writable_after_s=round(writable_s - mended_s, 2),
        )
        say(f"  write gap {fault.write_gap_s:.2f} s, writable {fault.writable_after_s:.1f} s after")
        self._report.faults.append(fault)
        if self._order.kind.needs_network and fault.write_gap_s > WINDOW_S:
            self._report.violations.append(
                f"no write for {fault.write_gap_s:.1f} s: {wound.victims}"
            )
        return mended_s

    def _gap_s(self, wound: Wound, since_ns: int) -> float:
        return self._history.write_gap_s(since_ns, now_ns(), knows_before=not wound.is_dark)

    def _wait_writable(self, wound: Wound) -> None:
        try:
            for node in self._scene.nodes:
                wait_well(node)
        except (NotInTime, AssertionError) as error:
            self._report.violations.append(f"after {wound.victims}: {error}")

    def _wait_write(self) -> None:
        mark_ns = now_ns()
        try:
            wait_for(lambda: self._history.has_write_after(mark_ns), "a write", within_s=WRITE_S)
        except NotInTime as error:
            self._report.violations.append(str(error))


def check_host(kind: Kind, place: Lab) -> None:
    """Raises NoLab: this kind of fault cannot be had here, and must not seem to have passed."""
    if kind.needs_network and not place.is_private:
        why = lab.why_not_inside()
        raise lab.NoLab(f"{kind.name} needs network namespaces: {why}")
    if kind.needs_small_disks and not place.is_private:
        raise lab.NoLab(f"{kind.name} needs mounts of its own: {lab.why_not_inside()}")
    if kind.is_preloaded:
        try:
            library()
        except NoCompiler as error:
            raise lab.NoLab(f"{kind.name} needs the fault library: {error}") from error


def say(text: str) -> None:
    print(text, flush=True)


def pause(seconds: float) -> None:
    """Let the run go on for so long: the length of a fault is part of it, not a wait for luck."""
    threading.Event().wait(max(0.0, seconds))


@contextlib.contextmanager
def _folder(order: Order) -> Iterator[Path]:
    if order.keep is not None:
        order.keep.mkdir(parents=True)
        yield order.keep.absolute()
        return
    with host.folder_of_a_run() as folder:
        yield folder


def _names(order: Order) -> list[str]:
    return [f"node-{number}" for number in range(1, order.node_count + 1)]


def _faults(root: Path, order: Order) -> dict[str, Faults]:
    """The switches of each node's faults; its folder is empty yet, so all of its life is logged."""
    if not order.kind.is_preloaded:
        return {}
    made = {}
    for name in _names(order):
        faults = Faults(root / name, near=root / "faults", logs=order.kind.logs_writes)
        if faults.log is not None:
            begin(faults.folder, faults.log)
        made[name] = faults
    return made


@contextlib.contextmanager
def _small_disks(root: Path, order: Order) -> Iterator[dict[str, SmallDisk]]:
    """For kinds that need them: a file system of its own where each node keeps its data."""
    disks: dict[str, SmallDisk] = {}
    try:
        for name in _names(order) if order.kind.needs_small_disks else ():
            disks[name] = SmallDisk.mount(root / name, bytes_max=SMALL_DISK_BYTES)
        yield disks
    finally:
        for disk in disks.values():
            disk.unmount()


def _judge_running(mesh: LocalMesh, report: Report, mended_s: float) -> None:
    if any(node.has_ended() for node in mesh.nodes):
        return
    # Of a mesh that is broken already nothing more is expected.
    within_s = EQUAL_S_MAX if report.violations else verdict.EQUAL_WAIT_S
    seconds = verdict.wait_equal(mesh, mended_s, within_s=within_s)
    report.digests_equal_s = None if seconds is None else round(seconds, 2)
    if seconds is None:
        report.violations.append("full digests are not equal")
    if report.violations:
        return
    still_runs = verdict.wait_all_ended(mesh.nodes[0])
    if still_runs:
        report.violations.append(still_runs)
    elif verdict.wait_equal(mesh, mended_s) is None:
        report.violations.append("full digests are not equal at the end")


def _judge_stopped(mesh: LocalMesh, load: Load, history: History, report: Report) -> None:
    history.flush()
    for node in mesh.nodes:
        node.stop()
    found = verdict.read_ledgers(mesh.nodes, load.promises, load.effects)
    for what in (found.lost, found.undone, found.wrong, found.double, found.broken):
        report.violations += what[: verdict.SHOWN_MAX]
        if len(what) > verdict.SHOWN_MAX:
            report.violations.append(f"… and {len(what) - verdict.SHOWN_MAX} more of this kind")
    report.lost, report.double_effects = len(found.lost), len(found.double)
    report.operation_count = history.operation_count
    report.unknown_count = history.unknown_count
    report.submitted_count = len(load.promises.submitted)
    report.hand_over_count = load.effects.hand_over_count
    report.stale_refused_count = load.effects.stale_refused_count
    report.late_refused_count = load.effects.late_refused_count
    is_good, words, _ = verdict.check(history.path)
    report.linearizable = words
    if not is_good:
        report.violations.append(f"history: {words}")

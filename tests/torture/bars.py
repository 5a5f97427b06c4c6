"""What runs are held to: for one run, and for many together. Reads reports, changes nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.torture.kinds import KINDS, Kind

FAULTS_MIN = 5
RATE_MIN_PER_S = 50.0
EQUAL_S_MAX = 10.0
LEADER_GAP_MEDIAN_S_MAX = 1.5
LEADER_GAP_S_MAX = 5.0
LEADER_FAULTS_MIN = 30
FOLLOWER_GAP_S_MAX = 0.3
WINDOW_S = 10.0  # some write is acknowledged in every window of so long
HAND_OVERS_MIN = 500
POWER_LOSSES_MIN = 30
KINDS_MIN = 12
SEEDS_MIN = 3
SECONDS_MIN = 60.0
NOT_RUN = "not run"

Run = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing that is asked, and what came of it. `n`: of how many."""

    name: str
    wanted: str
    measured: str
    n: int
    is_held: bool
    counts_only: bool = False  # missed, it makes a run worthless, not broken

    def __str__(self) -> str:
        return f"{self.name}: {self.measured} of n={self.n}, wanted {self.wanted}"


def of_run(run: Run) -> list[Bar]:
    """Every bar for one run, as its kind asks; those of time as often longer as its `slack` says.

    A median is given none: half of the faults meet no busy moment.
    """
    kind, slack = KINDS[run["kind"]], float(run.get("slack", 1.0))
    found = [
        _faults([run]),
        _rate([run]),
        *_promises([run], slack=slack),
        Bar("nothing else broken", "0", str(len(run["violations"])), 1, not run["violations"]),
    ]
    if kind.is_on_leader:
        found += _leader_gaps("write gap, leader", [run], faults_min=FAULTS_MIN, slack=slack)
    if kind.is_on_follower:
        found.append(_follower_gap("write gap, follower lost", [run], slack=slack))
    if kind.needs_progress:
        found.append(_progress("a write in every 10 s", [run]))
    return found


def of_all(runs: Sequence[Run]) -> list[Bar]:
    """Every bar over all runs. What did not run, or not often enough, is not held."""
    counted = [one for one in runs if "faults" in one and one["exit_code"] != 2]
    on_leader = [kind.name for kind in KINDS.values() if kind.is_on_leader]
    with_progress = [kind.name for kind in KINDS.values() if kind.needs_progress]
    on_follower = [kind.name for kind in KINDS.values() if kind.is_on_follower]
    found = [_size(counted), _all_held(runs)]
    found += [_faults(counted), _rate(counted), *_promises(counted), _one_commit(counted)]
    for name in on_leader:
        found += _leader_gaps(f"write gap, {name}", _of(counted, [name]), faults_min=1)
    found += _leader_gaps(
        "write gap, leader, all", _of(counted, on_leader), faults_min=LEADER_FAULTS_MIN
    )
    for name in on_follower:
        found.append(_follower_gap(f"write gap, {name}", _of(counted, [name])))
    for name in with_progress:
        found.append(_progress(f"a write in every 10 s, {name}", _of(counted, [name])))
    return [*found, *_hand_overs(counted), *_power_losses(counted)]


def kinds_in_order() -> list[str]:
    """All kinds that a mesh can survive, those first on which most bars rest."""
    return [kind.name for kind in KINDS.values() if not kind.is_proof]


def faults_min(kind: Kind, *, seconds: float) -> int:
    """How many faults a run needs, so that three of a minute meet the bars over all runs."""
    return max(FAULTS_MIN, round(kind.faults_per_minute * min(seconds, 60.0) / 60.0))


def _faults(runs: Sequence[Run]) -> Bar:
    counts = [len(one["faults"]) for one in runs]
    least = min(counts, default=0)
    is_held = least >= FAULTS_MIN
    return Bar("faults a run", f">= {FAULTS_MIN}", str(least), len(runs), is_held, True)


def _rate(runs: Sequence[Run]) -> Bar:
    rates = _each(runs, "rate_before_per_s")
    least = min(rates, default=0.0)
    words = f"least {least:.0f}/s" if rates else NOT_RUN
    is_held = least >= RATE_MIN_PER_S
    wanted = f">= {RATE_MIN_PER_S:.0f}/s"
    return Bar("acknowledged before a fault", wanted, words, len(rates), is_held, True)


def _promises(runs: Sequence[Run], *, slack: float = 1.0) -> list[Bar]:
    submits = sum(one["submitted_count"] for one in runs)
    operations = sum(one["operation_count"] for one in runs)
    lost = sum(one["lost"] for one in runs)
    double = sum(one["double_effects"] for one in runs)
    unproven = [one for one in runs if not one["linearizable"].startswith("linearizable")]
    equal_s = [one["digests_equal_s"] for one in runs]
    slowest_s = max((each for each in equal_s if each is not None), default=None)
    bar_s = EQUAL_S_MAX * slack
    is_equal = slowest_s is not None and None not in equal_s and slowest_s <= bar_s
    words = "never" if None in equal_s or slowest_s is None else f"{slowest_s:.1f} s"
    return [
        Bar("submits lost", "0", str(lost), submits, lost == 0 < submits),
        Bar("double effects", "0", str(double), submits, double == 0 < submits),
        Bar("histories not shown linearizable", "0", str(len(unproven)), len(runs),
            not unproven and operations > 0),
        Bar("full digests equal after heal", f"<= {bar_s:g} s", words, len(runs), is_equal),
    ]  # fmt: skip


def _leader_gaps(
    name: str, runs: Sequence[Run], *, faults_min: int, slack: float = 1.0
) -> list[Bar]:
    gaps_s = _each(runs, "write_gap_s")
    many = f" (n >= {faults_min})" if faults_min > 1 else ""
    middle_s, most_s = statistics.median(gaps_s or [0.0]), max(gaps_s, default=0.0)
    middle_s_max, most_s_max = LEADER_GAP_MEDIAN_S_MAX, LEADER_GAP_S_MAX * slack
    is_enough = len(gaps_s) >= faults_min
    return [
        Bar(f"{name}: median", f"<= {middle_s_max:g} s{many}", _seconds(gaps_s, middle_s),
            len(gaps_s), is_enough and middle_s <= middle_s_max),
        Bar(f"{name}: most", f"<= {most_s_max:g} s{many}", _seconds(gaps_s, most_s),
            len(gaps_s), is_enough and most_s <= most_s_max),
    ]  # fmt: skip


def _follower_gap(name: str, runs: Sequence[Run], *, slack: float = 1.0) -> Bar:
    gaps_s = _each(runs, "loss_gap_s")
    most_s = max(gaps_s, default=0.0)
    is_held = len(gaps_s) >= FAULTS_MIN and most_s <= FOLLOWER_GAP_S_MAX * slack
    wanted = f"<= {FOLLOWER_GAP_S_MAX * slack:g} s"
    return Bar(f"{name}: most", wanted, _seconds(gaps_s, most_s), len(gaps_s), is_held)


def _progress(name: str, runs: Sequence[Run]) -> Bar:
    """The longest gap of all says the same as the emptiest window; both are told."""
    longest_s = max((one["longest_gap_s"] for one in runs), default=0.0)
    fewest = [one["fewest_writes_in_window"] for one in runs]
    is_held = bool(runs) and None not in fewest and min(fewest) >= 1 and longest_s < WINDOW_S
    words = (
        f"fewest {min(fewest)}, gap {longest_s:.2f} s" if runs and None not in fewest else NOT_RUN
    )
    return Bar(name, ">= 1", words, len(_each(runs, "write_gap_s")), is_held)


def _size(runs: Sequence[Run]) -> Bar:
    seeds: dict[str, set[int]] = {}
    for one in runs:
        if one["seconds_asked"] >= SECONDS_MIN and one.get("slack", 1.0) == 1.0:
            seeds.setdefault(one["kind"], set()).add(one["seed"])
    whole = sum(len(of_kind) >= SEEDS_MIN for of_kind in seeds.values())
    wanted = f">= {KINDS_MIN}"
    return Bar("kinds x 3 seeds x 60 s", wanted, str(whole), len(runs), whole >= KINDS_MIN)


def _all_held(runs: Sequence[Run]) -> Bar:
    bad = sum(one["exit_code"] != 0 for one in runs)
    return Bar("runs not held", "0", str(bad), len(runs), bad == 0 < len(runs))


def _one_commit(runs: Sequence[Run]) -> Bar:
    commits = sorted({one["commit"] for one in runs})
    is_held = len(commits) == 1 and not commits[0].endswith("-dirty")
    return Bar("commits", "1, clean", " ".join(commits), len(runs), is_held)


def _hand_overs(runs: Sequence[Run]) -> list[Bar]:
    some = _of(runs, ["hand-over"])
    count = sum(one["late_refused_count"] for one in some)
    effects = sum(one["double_effects"] for one in some)
    return [
        Bar("forced hand-overs", f">= {HAND_OVERS_MIN}", str(count), len(some),
            count >= HAND_OVERS_MIN),
        Bar("effects under an old fence", "0", str(effects), count, effects == 0 < count),
    ]  # fmt: skip


def _power_losses(runs: Sequence[Run]) -> list[Bar]:
    some = _of(runs, ["power-loss-all"])
    rounds = len(_each(some, "write_gap_s"))
    lost = sum(one["lost"] for one in some)
    submits = sum(one["submitted_count"] for one in some)
    unstarted = sum(one["exit_code"] != 0 for one in some)
    return [
        Bar("power losses of all", f">= {POWER_LOSSES_MIN}", str(rounds), len(some),
            rounds >= POWER_LOSSES_MIN),
        Bar("lost by them", "0", str(lost), submits, lost == 0 < submits),
        Bar("their runs not held (a node that does not start is one)", "0", str(unstarted),
            len(some), unstarted == 0 < len(some)),
    ]  # fmt: skip


def _of(runs: Iterable[Run], kinds: Sequence[str]) -> list[Run]:
    return [one for one in runs if one["kind"] in kinds]


def _each(runs: Iterable[Run], name: str) -> list[float]:
    return [float(fault[name]) for one in runs for fault in one["faults"]]


def _seconds(all_s: Sequence[float], found_s: float) -> str:
    return f"{found_s:.2f} s" if all_s else NOT_RUN

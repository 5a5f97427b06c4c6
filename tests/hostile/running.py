"""Feeds one kind of hostile input, round by round, and watches what it does to the process.

A round begins with a target of its own, so a failure is shown again by its kind, seed and round.
"""

from __future__ import annotations

import encodings.idna  # the codec of host names: loaded before anything is watched
import gc
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Protocol

BAR_INPUTS = 1_000_000  # of every kind that does not say otherwise
RSS_GROWTH_BYTES_MAX = 96 << 20
SHOWN_BYTES_MAX = 2_000
TOLD_EVERY_S = 10
# What runs or revives code. None of it may happen while an input is looked at.
FORBIDDEN_EVENTS = frozenset(
    (
        *("pickle.find_class", "exec", "compile", "os.system", "os.exec", "os.posix_spawn"),
        *("os.fork", "os.forkpty", "subprocess.Popen", "ctypes.dlopen"),
    )
)


class Target(Protocol):
    """What takes one kind of input."""

    def make(self, rng: Random) -> object:
        """The next input: bytes, text or a message."""

    def feed(self, given: object) -> int:
        """How many were taken; the others were refused as documented. What it raises is a failure."""

    def check(self) -> None:
        """Raise AssertionError if what must always hold does not. Called now and then."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of input: how a round begins (with chance and a folder), and how long one lasts."""

    name: str
    begin: Callable[[Random, Path], Target]
    round_inputs: int = 2_000
    check_every_inputs: int = 200
    ci_inputs: int = 2_000
    inputs_per_feed: int = 1
    bar_inputs: int = BAR_INPUTS  # fewer only where another kind has as many for the same bytes


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the inputs of one kind, so far."""

    kind: str
    inputs: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    accepted: int = 0
    refused: int = 0
    rss_growth_bytes: int = 0  # of the peak, since the end of the first round of each process
    round_count: int = 0  # the next round is the one of this number

    def __str__(self) -> str:
        cpu_us = self.cpu_seconds / max(1, self.inputs) * 1e6
        return (
            f"{self.kind:<22} {self.inputs:>9,} inputs {self.seconds:>8.1f} s {cpu_us:>7.1f} µs CPU "
            f"{self.accepted:>9,} accepted {self.refused:>9,} refused "
            f"{self.rss_growth_bytes / (1 << 20):>6.1f} MiB grown"
        )


class Broken(AssertionError):
    """An input did what none may. Its text says how to see it again."""


@dataclass(slots=True)
class _Watch:
    """Whether an input is being looked at, and what happened meanwhile that must not."""

    is_on: bool = False
    seen: str = ""

    def heard(self, event: str, args: tuple[object, ...]) -> None:
        if not self.is_on or event not in FORBIDDEN_EVENTS or self.seen:
            return
        # The interpreter loads the codec of an encoding when it first meets it.
        if "/encodings/" not in getattr(args[0], "co_filename", ""):
            self.seen = f"{event} {args!r:.200}"


assert encodings.idna
_watch = _Watch()
_is_hooked = False


def _hook() -> None:
    """Audit hooks cannot be taken away again, so there is one for the process."""
    global _is_hooked
    if not _is_hooked:
        sys.addaudithook(lambda event, args: _watch.heard(event, args))
        _is_hooked = True


def run_kind(
    kind: Kind,
    *,
    inputs: int,
    seed: int,
    after: Tally | None = None,
    told: Callable[[Tally], None] = lambda tally: None,
) -> Tally:
    """Feed inputs until there were so many. Raises Broken at the first that does what none may.

    `after` is what an earlier run has told; this one goes on from there.
    """
    _hook()
    tally = before = after or Tally(kind.name)
    base_bytes = 0
    began_s = told_s = time.monotonic()
    began_cpu_s = time.process_time()
    while tally.inputs < inputs:
        count = min(kind.round_inputs, inputs - tally.inputs)
        accepted = _run_round(kind, seed, tally.round_count, count)
        if not base_bytes:
            gc.collect()
            base_bytes = _reset_peak_bytes()
        now_s, grown_bytes = time.monotonic(), _peak_bytes() - base_bytes
        tally = replace(
            tally,
            inputs=tally.inputs + count,
            seconds=before.seconds + now_s - began_s,
            cpu_seconds=before.cpu_seconds + time.process_time() - began_cpu_s,
            accepted=tally.accepted + accepted,
            refused=tally.refused + count - accepted,
            rss_growth_bytes=max(tally.rss_growth_bytes, grown_bytes),
            round_count=tally.round_count + 1,
        )
        if grown_bytes > RSS_GROWTH_BYTES_MAX:
            raise Broken(
                f"{kind.name} grew by {grown_bytes:,} bytes by round {tally.round_count - 1} of "
                f"seed {seed}"
            )
        if now_s - told_s > TOLD_EVERY_S:
            told_s = now_s
            told(tally)
    return tally


def _run_round(kind: Kind, seed: int, number: int, count: int) -> int:
    """One target's life; how many inputs it took."""
    rng = Random(f"{kind.name} {seed} {number}")
    folder = Path(tempfile.mkdtemp(prefix="hostile-", dir=_memory_folder()))
    accepted = 0
    given: object = None
    try:
        target = kind.begin(rng, folder)
        try:
            # What is imported or made on the first use may run code; inputs may not.
            is_warm = number > 0
            for at in range(-(-count // kind.inputs_per_feed)):
                given = target.make(rng)
                _watch.is_on, _watch.seen = is_warm or at >= 20, ""
                accepted += target.feed(given)
                _watch.is_on = False
                if _watch.seen:
                    raise AssertionError(f"it ran code: {_watch.seen}")
                fed = (at + 1) * kind.inputs_per_feed
                if fed % kind.check_every_inputs < kind.inputs_per_feed:
                    target.check()
            target.check()
        finally:
            _watch.is_on = False
            with suppress(Exception):
                target.close()
    except Exception as error:
        again = f"scripts/hostile --kind {kind.name} --seed {seed} --round {number}"
        what = f"{type(error).__name__}: {error}"
        raise Broken(f"{kind.name}: {what}\n  {again}\n  {_shown(given)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return accepted


def _shown(given: object) -> str:
    text = repr(_plain(given)) if isinstance(given, list) else str(_plain(given))
    return text if len(text) <= SHOWN_BYTES_MAX else f"{text[:SHOWN_BYTES_MAX]}… ({len(text)})"


def _plain(given: object) -> object:
    """Bytes and messages as hexadecimal digits."""
    if isinstance(given, list | tuple):
        return [_plain(one) for one in given]
    serialize = getattr(given, "SerializeToString", None)
    data = serialize() if serialize is not None else given
    return data.hex() if isinstance(data, bytes) else data


def _memory_folder() -> str | None:
    """Files of inputs lie in memory where the system has a place for that."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _status_bytes(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        found = next(line for line in lines if line.startswith(name))
    return int(found.split()[1]) * 1_024


def _peak_bytes() -> int:
    return _status_bytes("VmHWM:")


def _reset_peak_bytes() -> int:
    """Begin to count the peak anew, from what is used now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS:")

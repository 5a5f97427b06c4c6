"""A taste of what scripts/hostile does at length: every kind of input, a few thousand of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.hostile import results, running
from tests.hostile.kinds import KINDS
from tests.hostile.papers import One
from tests.hostile.results import Result
from tests.hostile.running import Broken, Kind, Tally, Target, run_kind

SEED = 20


@pytest.mark.parametrize("name", KINDS)
def test_hostile_input_is_taken_or_refused_and_no_more(name: str) -> None:
    kind = KINDS[name]

    tally = run_kind(kind, inputs=kind.ci_inputs, seed=SEED)

    assert tally.inputs == kind.ci_inputs
    assert tally.accepted > 0, "nothing got past the first check"
    assert tally.refused > 0, "nothing was bent enough to be refused"


def kind_of(take: object, inputs: Iterator[object]) -> Kind:
    def begin(rng: Random, folder: Path) -> Target:
        return One(take, lambda rng: next(inputs), (ValueError,))  # type: ignore[arg-type]

    return Kind("own", begin)


def test_an_error_that_is_not_documented_is_a_failure_that_can_be_shown_again() -> None:
    given: Iterator[object] = iter([b"5", b"x", b"7", b"\x00\x01"])

    def take(data: bytes) -> int:
        return {5: 1, 7: 2}[int(data.decode())]

    with pytest.raises(Broken, match=r"KeyError: 6\n.*--kind own --seed 3 --round 0\n  36"):
        run_kind(kind_of(take, iter([b"5", b"x", b"6"])), inputs=3, seed=3)
    assert run_kind(kind_of(take, given), inputs=4, seed=3).refused == 2


@pytest.mark.parametrize("spite", ["compile('1', 'x', 'eval')", "__import__('os').system('true')"])
def test_input_that_runs_as_code_is_a_failure(spite: str) -> None:
    given: Iterator[object] = iter(["1"] * 30 + [spite])

    with pytest.raises(Broken, match="it ran code"):
        run_kind(kind_of(lambda text: eval(text), given), inputs=31, seed=0)  # noqa: S307


def test_memory_that_grows_with_the_input_is_a_failure() -> None:
    kept: list[bytes] = []
    part_bytes = running.RSS_GROWTH_BYTES_MAX // 2_000

    with pytest.raises(Broken, match="grew by"):
        run_kind(
            kind_of(lambda count: kept.append(b"x" * int(str(count))), iter([part_bytes] * 8_000)),
            inputs=8_000,
            seed=0,
        )


def test_a_run_that_was_stopped_goes_on_with_the_next_round() -> None:
    kind = replace(KINDS["profile"], round_inputs=500)
    part = run_kind(kind, inputs=kind.round_inputs, seed=SEED)

    rest = run_kind(kind, inputs=3 * kind.round_inputs, seed=SEED, after=part)

    whole = run_kind(kind, inputs=3 * kind.round_inputs, seed=SEED)
    assert (rest.inputs, rest.round_count) == (whole.inputs, 3)
    assert (rest.accepted, rest.refused) == (whole.accepted, whole.refused)


def test_what_was_found_is_kept_and_only_what_held_is_not_tried_again(tmp_path: Path) -> None:
    tally = Tally("token", inputs=1_000, accepted=10, refused=990, round_count=1)
    Result(tally, 1_000, SEED, ("abc", "def")).save(tmp_path)
    Result(Tally("profile", inputs=5), 1_000, SEED, ("abc",), "KeyError: 6").save(tmp_path)

    held, broke = results.load(tmp_path, "token"), results.load(tmp_path, "profile")

    assert held is not None and held.tally == tally and held.commits == ("abc", "def")
    assert held.has_held(inputs=1_000, seed=SEED)
    assert not held.has_held(inputs=1_001, seed=SEED)
    assert not held.has_held(inputs=1_000, seed=SEED + 1)
    assert broke is not None and not broke.has_held(inputs=5, seed=SEED)
    assert results.load(tmp_path, "sealed-key") is None
    told = results.report([held, broke], {"token": 1_000, "profile": 70})
    assert "1,000     1,000" in told[1] and "5        70" in told[2]
    assert told[-1].startswith("1 kinds are through, 1,005 inputs in")
    assert told[-1].endswith("1 uncaught errors")


def test_a_report_of_fewer_inputs_than_the_bar_of_a_kind_is_missed(tmp_path: Path) -> None:
    bars = {"token": 1_000, "profile": 100}
    enough = [Result(Tally(kind, inputs=bars[kind]), 1_000, SEED, ("abc",)) for kind in bars]

    assert results.missing([], bars) == ["token", "profile"]
    assert results.missing(enough, bars) == []
    assert results.missing(enough, bars | {"profile": 101}) == ["profile"]
    assert results.missing(enough[1:], bars) == ["token"]


def test_only_what_starts_a_whole_node_on_the_bytes_of_another_kind_has_a_lower_bar() -> None:
    lower = {kind.name for kind in KINDS.values() if kind.bar_inputs < running.BAR_INPUTS}

    assert lower == {name for name in KINDS if name.endswith("-of-node")}
    assert all(name.removesuffix("-of-node") in KINDS for name in lower)

"""The bars of the demo, checked against what the ledger recorded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from examples.support_desk.facts import Story, Takeover

SLACK_S = 1.0  # for the survivors to notice, claim and start


@dataclass(frozen=True, slots=True)
class Killed:
    """The moment of the kill, and when the survivors could write again."""

    node: str
    wall_ms: int
    failover_s: float
    lease_s: float


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise of the demo: what was asked, what was found, and whether it holds."""

    name: str
    asked: str
    found: str
    holds: bool


def takeovers_of(story: Story, killed: Killed) -> list[Takeover]:
    """Claims of the killed node that went to another worker after the kill, oldest fence first."""
    found = [
        takeover
        for takeover in story.takeovers
        if takeover.lost_node == killed.node and takeover.claimed_wall_ms >= killed.wall_ms
    ]
    return sorted(found, key=lambda takeover: takeover.lost_fence)


def takeover_s(takeovers: list[Takeover], killed: Killed) -> float:
    """From the kill until the last of its claims had a new holder."""
    return max((t.claimed_wall_ms - killed.wall_ms for t in takeovers), default=0) / 1_000


def bars(
    *,
    story: Story,
    subtask_count: int,
    answered: int,
    asked: int,
    killed: Killed,
    digests: Mapping[str, str],
) -> list[Bar]:
    """Check every promise. The order is that of the story."""
    takeovers = takeovers_of(story, killed)
    allowed_s = killed.lease_s + killed.failover_s + SLACK_S
    took_s = takeover_s(takeovers, killed)
    once = sum(count == 1 for count in story.completions.values())
    same = len(set(digests.values())) == 1 and len(digests) == 3
    return [
        Bar("every question answered", f"{asked}", f"{answered}", answered == asked),
        Bar(
            "each subtask took effect exactly once",
            f"{subtask_count}",
            f"{once}" + (f", {len(story.doubled)} twice" if story.doubled else ""),
            once == subtask_count and not story.doubled,
        ),
        Bar(
            "the leader died with work in hand",
            "≥ 1",
            f"{len(takeovers)} claims taken over",
            bool(takeovers),
        ),
        Bar(
            "they were taken over in time",
            f"≤ {allowed_s:.1f} s: lease + fail-over + {SLACK_S:.0f} s",
            f"{took_s:.1f} s",
            bool(takeovers) and took_s <= allowed_s,
        ),
        Bar(
            "a late result changes nothing",
            "STALE_FENCE",
            _stale(len(story.stale)),
            bool(story.stale),
        ),
        Bar(
            "three ledgers are the same",
            "3 equal hashes of all tables",
            f"{len(digests)} ledgers, {len(set(digests.values()))} hash"
            + ("" if len(set(digests.values())) == 1 else "es"),
            same,
        ),
    ]


def _stale(count: int) -> str:
    return f"{count} refused, on record" if count else "none on record"

"""What the witness of simulated lives makes of a copy that nobody could compare."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.sim.checks import Checks
from tests.sim.world import Beyond, Trace, World


def receiver_of(leader: str, voters: list[str], *, rotten: set[str]) -> tuple[Checks, Any]:
    """A process that has just installed what the leader sent."""
    nodes: Any = {
        name: SimpleNamespace(node_id=name, is_rotten=name in rotten, is_harmed=name in rotten)
        for name in voters
    }
    ledger = SimpleNamespace(voters=lambda: dict.fromkeys(voters, ""))
    core = SimpleNamespace(engine=SimpleNamespace(leader_id=leader), ledger=ledger)
    process = SimpleNamespace(node=nodes[voters[0]], core=core)
    return Checks(World(1, Trace()), nodes), process


def test_a_life_ends_where_a_majority_of_voters_holds_what_rotted() -> None:
    checks, process = receiver_of("n3", ["n1", "n2", "n3"], rotten={"n3"})

    with pytest.raises(Beyond, match="n1, n3 hold what rotted at n3"):
        checks._rot_spreads(process)


def test_while_a_majority_is_sound_who_was_sent_rot_has_to_be_found() -> None:
    checks, process = receiver_of("n3", ["n1", "n2", "n3", "n4", "n5"], rotten={"n3"})

    checks._rot_spreads(process)

    assert process.node.is_rotten and process.node.is_harmed


def test_the_copy_of_a_sound_leader_spreads_nothing() -> None:
    checks, process = receiver_of("n3", ["n1", "n2", "n3"], rotten={"n2"})

    checks._rot_spreads(process)

    assert not process.node.is_rotten

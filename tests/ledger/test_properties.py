"""Whatever the commands, replicas agree and the invariants hold."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from quorumesh.v1.ledger_pb2 import Cancel, CloseSession, Command, Suspect
from quorumesh.v1.tasks_pb2 import BallotSpec, TaskSpec
from quorumesh.v1.workers_pb2 import Spawn

from consensus.ledger import Ledger, limits
from tests.ledger.world import (
    World,
    claim_command,
    complete_command,
    fail_command,
    open_command,
    sub,
    submit_command,
)

SPECS = [
    TaskSpec(subtasks=[sub("a"), sub("b", "a"), sub("c", "a", "b", optional=True), sub("d", "c")]),
    TaskSpec(
        subtasks=[*(sub(f"v{n}", ballot="b") for n in range(3)), sub("z", "b")],
        ballots=[BallotSpec(id="b")],
        band=2,
    ),
    TaskSpec(subtasks=[sub("a", timeout_ms=700, optional=True), sub("b", skill="s2")], band=1),
]
SPAWN = Spawn(
    subtasks=[*(sub(f"v{n}", ballot="b") for n in range(3)), sub("j", "b")],
    ballots=[BallotSpec(id="b", plurality=True)],
    join="j",
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "submit",
                "open",
                "claim",
                "done",
                "fail",
                "spawn",
                "wait",
                "close",
                "cancel",
                "suspect",
            ]
        ),
        st.integers(0, 7),
        st.integers(0, 3),
    ),
    max_size=40,
)


def command_of(world: World, what: str, one: int, two: int) -> Command | None:
    name = f"w{one % 2}"
    world.sequence += 1
    grants = list(world.grants.values())
    match what:
        case "submit":
            return submit_command(f"t{one}", SPECS[one % len(SPECS)])
        case "open":
            return open_command(name, "s s2" if one % 2 else "s", nonce=two)
        case "claim":
            return claim_command(name, 1 + two % 2, world.sequence, one)
        case "close":
            return Command(close_session=CloseSession(session=name.encode(), epoch=1 + two % 2))
        case "cancel":
            return Command(cancel=Cancel(task_id=b"t%d" % one))
        case "suspect":
            return Command(suspect=Suspect(node_id="n1"))
        case "wait":
            world.now_ms += one * limits.LEASE_MS // 4
            return None
    if not grants:
        return None
    grant = grants[one % len(grants)]
    match what:
        case "done":
            return complete_command(grant, f'"{two % 2}"')
        case "spawn":
            return complete_command(grant, "", spawn=SPAWN)
    return fail_command(grant, final=two == 0)


@given(STEPS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_replicas_agree_fences_grow_and_invariants_hold(
    steps: list[tuple[str, int, int]], batch: int
) -> None:
    world = World()
    for name in ("w0", "w1"):
        world.apply(open_command(name, "s s2"), claim_command(name, 1, 1, 2))
    world.sequence = 1
    fence = 0
    for at in range(0, len(steps), batch):
        commands = [command_of(world, *step) for step in steps[at : at + batch]]
        applied = world.apply(*(command for command in commands if command is not None))
        for grant in applied.grants:
            assert grant.fence == fence + 1
            fence = grant.fence

    twin = Ledger.open(":memory:")
    for index, entry in enumerate(world.log, 1):
        twin.apply(index, 1, entry)
        twin._store.reload()
    assert twin.digest == world.ledger.digest
    assert twin.full_digest() == world.ledger.full_digest()

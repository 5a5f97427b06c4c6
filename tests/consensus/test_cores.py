"""Replica cores over virtual time: what was acknowledged stays, whoever dies."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Barrier,
    Command,
    Entry,
    Outcome,
    Proposal,
    Submit,
)
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec

from consensus.engine.disk import Disk
from consensus.errors import ConsensusError, OutcomeUnknown, Unavailable
from consensus.ledger import APPLY_VERSION
from consensus.ledger.results import CannotApply
from tests.consensus.cluster import Cluster, Result


def submit(number: int) -> Command:
    spec = TaskSpec(name=f"t{number}", subtasks=[SubtaskSpec(id="a", skill="echo")])
    task_id = number.to_bytes(16, "big")
    return Command(submit=Submit(task_id=task_id, spec=spec.SerializeToString()))


def accepted(result: Result) -> list[Outcome]:
    assert not isinstance(result, ConsensusError), result
    assert [outcome.reason for outcome in result] == [0] * len(result), result
    return result


def join(cluster: Cluster, node_id: str) -> None:
    """Admit a node through the leader's ledger and wait until it votes."""
    leader = cluster.wait_leader()
    token = node_id.encode().ljust(16, b".")
    accepted(
        cluster.propose(
            leader.config.node_id,
            Command(add_token=AddToken(token_id=token, secret_digest=b"d" * 32, ttl_ms=60_000)),
            Command(
                admit=Admit(
                    token_id=token, secret_digest=b"d" * 32, node_id=node_id, address=node_id
                )
            ),
        )
    )
    cluster.start(node_id, joined_voters=dict(leader.ledger.voters()))
    cluster.world.run(lambda: node_id in leader.ledger.voters())


def three(
    tmp_path: Path, *, seed: int = 0, disks: Mapping[str, Disk] | None = None, **config: int
) -> Cluster:
    cluster = Cluster(tmp_path, seed=seed, **config)
    cluster.disks.update(disks or {})
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    join(cluster, "n2")
    join(cluster, "n3")
    cluster.world.run(cluster.agree)
    return cluster


def holds_all(cluster: Cluster, count: int) -> bool:
    return all(core.reader.counts().task_count == count for core in cluster.cores.values())


def test_two_nodes_join_a_live_mesh_and_all_three_agree(tmp_path: Path) -> None:
    cluster = three(tmp_path)

    assert sorted(cluster.cores["n3"].ledger.voters()) == ["n1", "n2", "n3"]
    cluster.assert_sound()


def test_a_submit_through_a_follower_is_applied_there_when_it_is_acknowledged(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    follower = next(n for n, core in cluster.cores.items() if core.engine.role == "follower")

    [outcome] = accepted(cluster.propose(follower, submit(1)))

    assert cluster.cores[follower].ledger.applied_index >= outcome.revision


@pytest.mark.parametrize("seed", range(5))
def test_nothing_acknowledged_is_lost_when_the_leader_dies_and_returns(
    tmp_path: Path, seed: int
) -> None:
    cluster = three(tmp_path, seed=seed)
    for number in range(1, 21):
        accepted(cluster.propose("n2", submit(number)))
    dead = cluster.wait_leader().config.node_id
    cluster.kill(dead)
    other = next(iter(cluster.cores))

    accepted(cluster.propose(other, submit(21)))
    cluster.start(dead)
    cluster.world.run(cluster.agree)

    assert holds_all(cluster, 21)
    cluster.assert_sound()


@pytest.mark.parametrize("seed", range(3))
def test_everything_acknowledged_is_there_after_all_die_at_once(tmp_path: Path, seed: int) -> None:
    cluster = three(tmp_path, seed=seed)
    for number in range(1, 11):
        accepted(cluster.propose("n3", submit(number)))

    for node_id in ["n1", "n2", "n3"]:
        cluster.kill(node_id)
    for node_id in ["n1", "n2", "n3"]:
        cluster.start(node_id)
    cluster.wait_leader()
    cluster.world.run(cluster.agree)

    assert holds_all(cluster, 10)


@pytest.mark.parametrize("known", [["n1"], []], ids=["founded", "empty"])
def test_a_node_whose_ledger_fell_back_by_a_power_loss_dials_the_voters_of_its_journal(
    tmp_path: Path, known: list[str]
) -> None:
    cluster = Cluster(tmp_path)
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m" or not known)
    ledger = cluster.cores["n1"].ledger_path.parent
    shutil.copytree(ledger, tmp_path / "early", ignore=shutil.ignore_patterns("*-shm"))
    join(cluster, "n2")
    join(cluster, "n3")
    for name in ("n1", "n2", "n3"):
        cluster.kill(name)
    shutil.rmtree(ledger)
    shutil.copytree(tmp_path / "early", ledger)

    core = cluster.start("n1")

    assert sorted(core.ledger.members()) == known
    assert core.peers() == {"n1": "n1", "n2": "n2", "n3": "n3"}


def test_a_voter_that_fell_behind_the_journal_gets_a_copy_of_the_ledger(tmp_path: Path) -> None:
    cluster = three(tmp_path, compact_entries=20, keep_entries=5, segment_bytes_max=4_096)
    follower = next(n for n, core in cluster.cores.items() if core.engine.role == "follower")
    cluster.kill(follower)
    leader = cluster.wait_leader()
    for number in range(1, 121):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    assert leader.compaction.done_count > 0

    returned = cluster.start(follower)
    cluster.world.run(cluster.agree)

    assert returned.snapshots.installed_count == 1
    assert returned.ledger.full_digest() == leader.ledger.full_digest()
    cluster.assert_sound()


def test_a_node_that_installed_a_copy_restarts_from_it(tmp_path: Path) -> None:
    cluster = three(tmp_path, compact_entries=20, keep_entries=5, segment_bytes_max=4_096)
    follower = next(n for n, core in cluster.cores.items() if core.engine.role == "follower")
    cluster.kill(follower)
    for number in range(1, 121):
        accepted(cluster.propose(cluster.wait_leader().config.node_id, submit(number)))
    cluster.start(follower)
    cluster.world.run(cluster.agree)

    cluster.kill(follower)
    cluster.start(follower)
    accepted(cluster.propose(follower, submit(121)))
    cluster.world.run(cluster.agree)

    assert holds_all(cluster, 121)


def test_without_a_majority_a_write_waits_to_its_deadline_and_nothing_is_written(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader().config.node_id
    alone = next(n for n in cluster.cores if n != leader)
    for node_id in [n for n in cluster.cores if n != alone]:
        cluster.kill(node_id)
    cluster.world.run_for(100)
    before = cluster.cores[alone].engine.last_index

    result = cluster.propose(alone, submit(1), ms=1_000)

    assert isinstance(result, Unavailable)
    assert cluster.cores[alone].engine.last_index == before
    assert not cluster.cores[alone].view().writable


def test_a_leader_that_is_cut_off_calls_itself_read_only_within_three_seconds(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    for other in ["n1", "n2", "n3"]:
        if other != leader.config.node_id:
            cluster.wires.cut(leader.config.node_id, other)

    cluster.world.run(lambda: not leader.view().writable, ms_max=3_000)
    assert leader.view().leader_age_ms <= 3_000

    other = next(n for n in cluster.cores if n != leader.config.node_id)
    accepted(cluster.propose(other, submit(1)))
    cluster.wires.heal()
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, 1)


def test_with_the_first_node_dead_for_good_a_new_one_still_joins(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    cluster.kill("n1")

    join(cluster, "n4")

    accepted(cluster.propose("n4", submit(1)))


def test_outcomes_proposed_while_leaders_change_come_back_once(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    answers: list[Result] = []
    deadline_ms = cluster.world.monotonic_ms() + 20_000
    dead = cluster.wait_leader().config.node_id
    proposer = next(n for n in cluster.cores if n != dead)
    for number in range(1, 51):
        cluster.cores[proposer].propose(
            [submit(number)], deadline_ms=deadline_ms, done=answers.append
        )
    cluster.world.run_for(1)
    cluster.kill(dead)

    cluster.world.run(lambda: len(answers) == 50)
    cluster.start(dead)
    cluster.world.run(cluster.agree)

    assert all(accepted(answer) for answer in answers)
    assert holds_all(cluster, 50)


def test_a_deposed_leader_answers_no_barrier_before_it_has_seen_what_others_wrote(
    tmp_path: Path,
) -> None:
    cluster = three(tmp_path)
    old = cluster.wait_leader()
    others = [n for n in sorted(cluster.cores) if n != old.config.node_id]
    for other in others:
        cluster.wires.cut(old.config.node_id, other)
    barriers: list[Result] = []
    deadline_ms = cluster.world.monotonic_ms() + 20_000
    old.propose([Command(barrier=Barrier())], deadline_ms=deadline_ms, done=barriers.append)
    old.propose(
        [Command(barrier=Barrier())],
        deadline_ms=cluster.world.monotonic_ms() + 1_000,
        done=barriers.append,
    )

    [written] = accepted(cluster.propose(others[0], submit(1)))
    cluster.world.run_for(2_000)
    [late] = barriers
    assert isinstance(late, OutcomeUnknown)
    cluster.wires.heal()
    cluster.world.run(lambda: len(barriers) == 2)

    [outcome] = accepted(barriers[1])
    assert outcome.revision > written.revision
    assert old.reader.counts().task_count == 1


def test_an_entry_of_a_newer_version_stops_the_node_and_changes_nothing(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    before = {name: core.ledger.applied_index for name, core in cluster.cores.items()}
    entry = Entry(apply_version=APPLY_VERSION + 1, proposals=[Proposal(command=submit(1))])
    assert leader.engine.append(b"\x00" + entry.SerializeToString()) is not None

    with pytest.raises(CannotApply):
        cluster.world.run_for(1_000)

    assert {name: core.ledger.applied_index for name, core in cluster.cores.items()} == before


def test_outcomes_that_a_copy_jumped_over_are_asked_for_again(tmp_path: Path) -> None:
    cluster = three(tmp_path, compact_entries=20, keep_entries=5, segment_bytes_max=4_096)
    leader = cluster.wait_leader()
    away = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)
    other = next(n for n in sorted(cluster.cores) if n not in (away, leader.config.node_id))
    answers: list[Result] = []
    deadline_ms = cluster.world.monotonic_ms() + 60_000
    cluster.cores[away].propose(
        [submit(1), submit(2)], deadline_ms=deadline_ms, done=answers.append
    )
    cluster.world.run(lambda: leader.reader.counts().task_count == 2)
    for peer in (leader.config.node_id, other):
        cluster.wires.cut(away, peer)
    assert answers == []
    cluster.world.run_for(6_000)  # longer than a leader holds entries back for a silent peer
    for number in range(3, 124):
        accepted(cluster.propose(leader.config.node_id, submit(number)))

    cluster.wires.heal()
    cluster.world.run(lambda: bool(answers))

    assert len(accepted(answers[0])) == 2
    assert cluster.cores[away].snapshots.installed_count == 1
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, 123)


def test_a_folder_with_signs_of_uris_in_its_name_works_like_any_other(tmp_path: Path) -> None:
    cluster = three(tmp_path / "50% of #1?", compact_entries=20)

    for number in range(1, 41):
        accepted(cluster.propose("n2", submit(number)))
    cluster.world.run(cluster.agree)

    assert holds_all(cluster, 40)
    assert cluster.wait_leader().compaction.done_count > 0

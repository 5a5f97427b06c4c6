"""The scrub: what nodes conclude from each other's hashes, and what a wrong ledger leads to."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Command, Submit
from quorumesh.v1.peer_pb2 import Frame, ScrubDigest
from quorumesh.v1.tasks_pb2 import SubtaskSpec, TaskSpec

from consensus.core import Core
from consensus.errors import Damaged
from consensus.ledger.parts import (
    RANGE_ROWS_MAX,
)
from consensus.scrub import (
    ANSWER_MS,
    RANGES_KEPT_MAX,
    Verdict,
    is_due,
    judge,
)
from tests.consensus.cluster import Cluster

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32
SCRUB_MS = 1_000


def test_a_node_is_equal_with_a_majority_diverged_against_one_and_else_nothing_is_known() -> None:
    three, five = ["n1", "n2", "n3"], ["n1", "n2", "n3", "n4", "n5"]

    assert judge(A, {"n1": A}, ["n1"]) is Verdict.EQUAL
    assert judge(A, {"n1": A, "n2": A}, three) is Verdict.EQUAL
    assert judge(A, {"n1": A, "n2": B}, three) is Verdict.PENDING
    assert judge(A, {"n1": A, "n2": B, "n3": B}, three) is Verdict.DIVERGED
    assert judge(A, {"n1": A, "n2": B, "n3": C}, three) is Verdict.SPLIT
    assert judge(A, {"n1": A, "n2": B}, ["n1", "n2"]) is Verdict.SPLIT
    assert judge(A, {"n1": A, "n2": B, "n3": B}, five) is Verdict.PENDING
    assert judge(A, {"n1": A, "n2": A, "n3": B, "n4": B}, five) is Verdict.PENDING
    assert judge(A, {"n1": A, "n2": A, "n3": B, "n4": B, "n5": C}, five) is Verdict.SPLIT


def test_only_voters_count_and_one_without_a_vote_judges_itself_by_them() -> None:
    assert judge(A, {"n9": A, "n8": A, "n1": B}, ["n1", "n2", "n3"]) is Verdict.PENDING
    assert judge(A, {"n9": A, "n1": B, "n2": B}, ["n1", "n2", "n3"]) is Verdict.DIVERGED
    assert judge(A, {"n9": A, "n1": A, "n2": A}, ["n1", "n2", "n3"]) is Verdict.EQUAL
    assert judge(A, {"n9": A}, []) is Verdict.PENDING


def test_whoever_answers_first_a_node_of_the_majority_is_never_told_that_it_diverged() -> None:
    voters = ["n1", "n2", "n3", "n4", "n5"]
    for found in itertools.product((A, B), repeat=5):
        right = max((A, B), key=found.count)
        for order in itertools.permutations(range(5)):
            said: dict[str, bytes] = {}
            for at in order:
                said[voters[at]] = found[at]
                assert judge(right, said, voters) is not Verdict.DIVERGED


def test_a_round_begins_in_time_and_only_for_a_reason() -> None:
    assert is_due(now_ms=1_000, ended_ms=0, scrub_ms=1_000, has_news=True)
    assert not is_due(now_ms=999, ended_ms=0, scrub_ms=1_000, has_news=True)
    assert not is_due(now_ms=1_000, ended_ms=0, scrub_ms=1_000, has_news=False)
    assert not is_due(now_ms=1_000, ended_ms=0, scrub_ms=0, has_news=True)


# Nodes.


def _cluster(tmp_path: Path, *, seed: int = 1, scrub_ms: int = SCRUB_MS) -> Cluster:
    cluster = Cluster(tmp_path, seed=seed, scrub_ms=scrub_ms)
    cluster.start("n1")
    cluster.wait_leader()
    for name in ("n2", "n3"):
        _admit(cluster, name)
        cluster.start(name, joined_voters={"n1": "n1"})
    cluster.world.run(lambda: len(cluster.cores["n1"].engine.voters) == 3)
    for number in range(10):
        cluster.propose("n1", _submit(number))
    cluster.world.run(cluster.agree)
    return cluster


def _admit(cluster: Cluster, name: str) -> None:
    from quorumesh.v1.ledger_pb2 import AddToken, Admit

    token = AddToken(token_id=name.encode(), secret_digest=b"s")
    cluster.propose("n1", Command(add_token=token))
    admit = Admit(token_id=name.encode(), secret_digest=b"s", node_id=name, address=name)
    cluster.propose("n1", Command(admit=admit))


def _submit(number: int) -> Command:
    spec = TaskSpec(subtasks=[SubtaskSpec(id="a", skill="s")])
    task_id = number.to_bytes(16, "big")
    return Command(submit=Submit(task_id=task_id, spec=spec.SerializeToString()))


def _alter(core: Core) -> None:
    """Change one row under the hood: SQLite finds nothing wrong with it."""
    with sqlite3.connect(core.ledger_path) as db:
        assert db.execute("UPDATE task SET name='altered' WHERE seq=4").rowcount == 1
    db.close()


def _rounds(cluster: Cluster) -> list[int]:
    return [core.scrubbing.view().round_count for core in cluster.cores.values()]


def test_equal_ledgers_are_found_equal_and_a_mesh_that_rests_is_left_alone(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)

    cluster.world.run(lambda: min(_rounds(cluster)) >= 1)
    cluster.world.run_for(5 * SCRUB_MS)  # the last round has seen all there is

    views = [core.scrubbing.view() for core in cluster.cores.values()]
    assert {view.result for view in views} == {"equal"}
    revision = cluster.cores["n1"].applied_index
    cluster.world.run_for(10 * SCRUB_MS)
    assert cluster.cores["n1"].applied_index == revision
    assert all(view.row_count > 50 for view in views)


def test_a_large_ledger_is_compared_in_several_ranges_also_on_a_node_that_got_it_as_a_copy(
    tmp_path: Path,
) -> None:
    small = {"compact_entries": 5, "keep_entries": 0, "segment_bytes_max": 4_096}
    cluster = Cluster(tmp_path, scrub_ms=SCRUB_MS, **small)
    founder = cluster.start("n1")
    cluster.wait_leader()
    for batch in range(12):
        cluster.propose("n1", *(_submit(100 * batch + number) for number in range(100)))
    cluster.world.run(lambda: founder.journal.base_index > 0)
    for name in ("n2", "n3"):
        _admit(cluster, name)
        cluster.start(name, joined_voters={"n1": "n1"})
    cluster.world.run(lambda: len(founder.engine.voters) == 3)
    copied = cluster.cores["n2"]
    assert copied.snapshots.installed_count == 1

    read, rounds = copied.scrubbing.view().row_count, copied.scrubbing.view().round_count
    cluster.world.run(lambda: min(_rounds(cluster)) > rounds, ms_max=60_000)
    cluster.world.run(lambda: all(_result(core) == "equal" for core in cluster.cores.values()))

    assert copied.scrubbing.view().row_count - read > RANGE_ROWS_MAX
    _alter(copied)
    with pytest.raises(Damaged, match="majority"):
        cluster.propose("n1", _submit(10_000))
        cluster.world.run(lambda: False, ms_max=20 * SCRUB_MS)
    assert copied.diverged


def _result(core: Core) -> str:
    return core.scrubbing.view().result


def test_zero_means_never(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path, scrub_ms=0)

    cluster.world.run_for(20_000)

    assert _rounds(cluster) == [0, 0, 0]


@pytest.mark.parametrize("altered", ["n1", "n2", "n3"])
def test_an_altered_ledger_takes_its_node_out_of_service_and_the_others_go_on(
    tmp_path: Path, altered: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = _cluster(tmp_path, seed=ord(altered[1]))
    core = cluster.cores[altered]
    _alter(core)
    others = [one for name, one in cluster.cores.items() if name != altered]

    with pytest.raises(Damaged, match="majority"):
        cluster.world.run(lambda: False, ms_max=10 * SCRUB_MS)

    assert core.diverged and (tmp_path / altered / "DIVERGED").exists()
    assert core.diverged in core.trouble and not core.view().writable
    assert any(record.levelno == logging.CRITICAL for record in caplog.records)
    answers: list[object] = []
    for refused in (
        lambda: core.reader,
        lambda: core.ledger_path,
        lambda: core.propose([_submit(99)], deadline_ms=1 << 40, done=answers.append),
    ):
        with pytest.raises(Damaged):
            refused()
    said = len(cluster.wires.live)
    cluster.kill(altered)
    assert said == 3
    cluster.world.run(lambda: any(one.engine.role == "leader" for one in others))
    writer = others[0].config.node_id
    result = cluster.propose(writer, _submit(50), ms=20_000)
    assert isinstance(result, list) and result[0].reason == 0
    assert not any(one.diverged for one in others)
    with pytest.raises(Damaged, match="out of service"):
        cluster.start(altered, joined_voters={"n1": "n1"})


def test_a_node_out_of_service_says_nothing_more(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    leader = cluster.wait_leader()
    _alter(leader)
    with pytest.raises(Damaged):
        cluster.world.run(lambda: False, ms_max=10 * SCRUB_MS)

    sent: list[Frame] = []
    end = cluster.wires.ends[leader.config.node_id]
    end.send = lambda peer, frame: bool(sent.append(frame))  # type: ignore[method-assign]
    for peer in cluster.cores:
        leader.frame_received(peer, Frame(term=99))
        leader.link_down(peer)
        leader.link_up(peer)
    cluster.world.run_for(10_000)

    assert sent == []
    assert leader.engine.role != "leader" or leader.engine.append(b"\0x") is None


def test_who_was_out_of_reach_when_a_range_was_compared_is_told_of_it_when_it_comes(
    tmp_path: Path,
) -> None:
    cluster = _cluster(tmp_path, scrub_ms=SCRUB_MS)
    leader = cluster.wait_leader()
    bad, other = (core for core in cluster.cores.values() if core is not leader)
    names = (bad.config.node_id, other.config.node_id)
    cluster.wires.cut(*names)
    cluster.world.run_for(2 * SCRUB_MS)
    _alter(bad)
    leader.scrubbing.peer_came(bad.config.node_id)  # or a mesh at rest compares nothing
    cluster.world.run(lambda: _result(leader) == "equal" and leader.scrubbing.view().age_ms < 100)
    cluster.world.run_for(ANSWER_MS // 2)
    assert not bad.diverged and not leader.diverged, "two that differ say nothing of a third"

    cluster.wires.heal()

    with pytest.raises(Damaged, match="majority"):
        cluster.world.run(lambda: False, ms_max=SCRUB_MS // 2)
    assert bad.diverged and not leader.diverged and not other.diverged


def test_two_voters_that_differ_both_cry_out_and_both_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(tmp_path, seed=2, scrub_ms=SCRUB_MS)
    cluster.start("n1")
    cluster.wait_leader()
    _admit(cluster, "n2")
    cluster.start("n2", joined_voters={"n1": "n1"})
    cluster.world.run(lambda: len(cluster.cores["n1"].engine.voters) == 2)
    for number in range(10):
        cluster.propose("n1", _submit(number))
    cluster.world.run(cluster.agree)

    _alter(cluster.cores["n2"])
    cluster.world.run(
        lambda: all(core.scrubbing.view().result == "differs" for core in cluster.cores.values())
    )

    result = cluster.propose("n1", _submit(50))
    assert isinstance(result, list) and result[0].reason == 0
    cried = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(cried) >= 2 and not any(core.diverged for core in cluster.cores.values())


def test_a_file_whose_structure_is_broken_takes_its_node_out_without_asking_anybody(
    tmp_path: Path,
) -> None:
    cluster = Cluster(tmp_path, seed=3, scrub_ms=SCRUB_MS)
    core = cluster.start("n1")
    cluster.wait_leader()
    for number in range(10):
        cluster.propose("n1", _submit(number))
    with sqlite3.connect(core.ledger_path) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET rootpage=rootpage+1 WHERE name='task_due'")
    db.close()

    with pytest.raises(Damaged, match="damaged"):
        cluster.world.run(lambda: False, ms_max=10 * SCRUB_MS)

    assert core.scrubbing.view().result == "damaged"


def test_without_a_majority_that_answers_the_result_is_undecided(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    cluster.world.run(lambda: min(_rounds(cluster)) >= 1)
    leader = cluster.wait_leader()
    silent = [name for name in cluster.cores if cluster.cores[name] is not leader]
    for name in silent:
        cluster.wires.ends[name].send = _without_digests(cluster, name)  # type: ignore[method-assign]

    cluster.propose("n1", _submit(60))
    cluster.world.run(
        lambda: leader.scrubbing.view().result == "undecided", ms_max=ANSWER_MS + 10_000
    )

    assert not leader.diverged


def _without_digests(cluster: Cluster, name: str) -> object:
    def send(peer: str, frame: Frame) -> bool:
        if frame.WhichOneof("kind") == "scrub_digest":
            return True
        return cluster.wires.send(name, peer, frame)

    return send


def test_a_new_leader_goes_on_where_the_last_one_was(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    cluster.world.run(lambda: min(_rounds(cluster)) >= 1)
    leader = cluster.wait_leader()
    before = max(_rounds(cluster))

    cluster.kill(leader.config.node_id)
    name = next(iter(cluster.cores))
    cluster.propose(name, _submit(70), ms=20_000)
    cluster.world.run(lambda: min(_rounds(cluster)) > before)

    assert {core.scrubbing.view().result for core in cluster.cores.values()} == {"equal"}


def test_what_peers_say_is_kept_within_bounds(tmp_path: Path) -> None:
    cluster = _cluster(tmp_path)
    core = cluster.cores["n1"]

    for number in range(1_000):
        for peer in ("n2", "stranger", f"x{number}"):
            said = ScrubDigest(revision=1 << 40 | number, digest=A)
            core.frame_received(peer, Frame(scrub_digest=said))
        core.frame_received("n2", Frame(scrub_digest=ScrubDigest(revision=1, digest=b"short")))

    assert set(core.scrubbing._heard) <= {"n2", "n3"}
    assert len(core.scrubbing._heard["n2"]) == RANGES_KEPT_MAX
    cluster.propose("n1", _submit(80))
    cluster.world.run(lambda: core.scrubbing.view().result == "equal")

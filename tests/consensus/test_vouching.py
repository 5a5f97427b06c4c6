"""A copy is handed out only when a majority of the voters holds, row by row, what it holds."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Command, Scrub
from quorumesh.v1.peer_pb2 import Frame

from consensus.core import Core
from consensus.engine.disk import Disk
from consensus.errors import Damaged, Unavailable
from consensus.ledger import Ledger
from consensus.ledger.parts import first_range
from consensus.pauses import LONG_PAUSE_MS_MIN
from consensus.scrub import ANSWER_MS, whole_digest
from consensus.vouching import STUCK_MS_MIN
from tests.consensus.cluster import Cluster
from tests.consensus.test_copies_sent import TINY, WRITTEN, one_away
from tests.consensus.test_cores import accepted, holds_all, join, submit, three

ELECTION_MS_MAX = 3_000
UNSCRUBBED = {**TINY, "scrub_ms": 0}  # so that nothing but copies makes anybody compare


SPEC_DIGEST = "SELECT spec_digest FROM task WHERE seq=7"


def flip_a_bit(core: Core) -> None:
    """In a value in the file of its live ledger, as a bad disk may: SQLite finds nothing wrong."""
    path = core.ledger_path
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0
        (held,) = connection.execute(SPEC_DIGEST).fetchone()
    data = path.read_bytes()
    assert data.count(held) == 1
    at = data.index(held)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute(SPEC_DIGEST).fetchone() != (held,)


def written(tmp_path: Path, *, disks: dict[str, Disk] | None = None) -> tuple[Cluster, Core]:
    """Three voters whose journals have begun anew; the leader."""
    cluster = three(tmp_path, disks=disks, **UNSCRUBBED)
    leader = cluster.wait_leader()
    for number in range(1, WRITTEN + 1):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    cluster.world.run(lambda: leader.journal.base_index > 0)
    cluster.world.run(cluster.agree)
    return cluster, leader


def admit(cluster: Cluster, leader: Core, name: str) -> Core:
    """A node that has nothing yet, and so needs a copy."""
    from quorumesh.v1.ledger_pb2 import AddToken, Admit

    token = AddToken(token_id=name.encode(), secret_digest=b"s")
    accepted(cluster.propose(leader.config.node_id, Command(add_token=token)))
    asked = Admit(token_id=name.encode(), secret_digest=b"s", node_id=name, address=name)
    accepted(cluster.propose(leader.config.node_id, Command(admit=asked)))
    return cluster.start(name, joined_voters={leader.config.node_id: leader.config.node_id})


def chunks_sent(cluster: Cluster, name: str) -> list[int]:
    end = cluster.wires.ends[name]
    send, sent = end.send, []

    def watched(peer: str, frame: Frame) -> bool:
        if frame.HasField("snapshot"):
            sent.append(len(frame.snapshot.data))
        return send(peer, frame)

    end.send = watched  # type: ignore[method-assign]
    return sent


def test_a_leader_with_one_flipped_bit_never_sends_its_copy_and_goes_out_of_service(
    tmp_path: Path,
) -> None:
    cluster, leader = written(tmp_path)
    name = leader.config.node_id
    sound = leader.ledger.connection.execute(SPEC_DIGEST).fetchone()
    flip_a_bit(leader)
    sent = chunks_sent(cluster, name)

    newcomer = admit(cluster, leader, "n4")
    with pytest.raises(Damaged, match="majority"):
        cluster.world.run(lambda: False)

    assert leader.diverged and sent == [] and newcomer.snapshots.installed_count == 0
    cluster.kill(name)
    cluster.world.run(lambda: newcomer.snapshots.installed_count == 1, ms_max=60_000)
    cluster.world.run(cluster.agree, ms_max=60_000)
    assert not any(core.diverged for core in cluster.cores.values())
    held = {
        core.ledger.connection.execute(SPEC_DIGEST).fetchone() for core in cluster.cores.values()
    }
    assert held == {sound}


def test_a_follower_that_differs_goes_out_of_service_and_the_copy_is_sent(tmp_path: Path) -> None:
    cluster, leader = written(tmp_path)
    name = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)
    flip_a_bit(cluster.cores[name])

    newcomer = admit(cluster, leader, "n4")
    with pytest.raises(Damaged, match="majority"):
        cluster.world.run(lambda: False)

    assert (tmp_path / name / "DIVERGED").exists() and not leader.diverged
    cluster.kill(name)
    cluster.world.run(lambda: newcomer.snapshots.installed_count == 1)
    assert leader.snapshots.made_count == 1


def test_two_voters_that_differ_send_no_copy_and_both_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(tmp_path, seed=2, **UNSCRUBBED)
    cluster.start("n1")
    cluster.world.run(lambda: cluster.cores["n1"].ledger.mesh_id == "m")
    join(cluster, "n2")
    leader = cluster.wait_leader()
    for number in range(1, WRITTEN + 1):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    cluster.world.run(lambda: leader.journal.base_index > 0)
    cluster.world.run(cluster.agree)
    flip_a_bit(leader)
    sent = chunks_sent(cluster, leader.config.node_id)

    admit(cluster, leader, "n3")
    cluster.world.run(lambda: caplog.text.count("no copy is sent") == 2)  # by each of the two
    cluster.world.run(
        lambda: caplog.text.count("is not handed out") == 3, ms_max=8 * LONG_PAUSE_MS_MIN
    )

    assert sent == [] and leader.snapshots.made_count == 0
    cried = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(cried) == 2  # not again with each copy that is tried
    accepted(cluster.propose(leader.config.node_id, submit(WRITTEN + 1)))


def test_a_copy_that_a_majority_holds_is_sent_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, away, leader = one_away(tmp_path)

    returned = cluster.start(away)
    cluster.world.run(cluster.agree)

    assert returned.snapshots.installed_count == leader.snapshots.made_count == 1
    assert "not compared" not in caplog.text


def test_where_nothing_can_be_committed_without_it_a_copy_is_sent_that_was_not_compared(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, away, leader = one_away(tmp_path)
    dead = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)
    cluster.kill(dead)

    cluster.world.run(lambda: leader.engine.role != "leader")
    returned = cluster.start(away)
    cluster.world.run(
        lambda: returned.snapshots.installed_count == 1, ms_max=ELECTION_MS_MAX + 2 * STUCK_MS_MIN
    )
    cluster.world.run(cluster.agree, ms_max=60_000)

    assert "not compared" in caplog.text
    accepted(cluster.propose(away, submit(WRITTEN + 1)))
    assert holds_all(cluster, WRITTEN + 1)


def test_a_copy_is_not_sent_while_too_few_voters_say_what_they_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, away, leader = one_away(tmp_path)
    other = next(n for n in sorted(cluster.cores) if n != leader.config.node_id)
    end = cluster.wires.ends[other]
    send = end.send
    silent = [True]

    def without_digests(peer: str, frame: Frame) -> bool:
        if silent[0] and frame.HasField("scrub_digest"):
            return True
        return send(peer, frame)

    end.send = without_digests  # type: ignore[method-assign]

    returned = cluster.start(away)
    cluster.world.run_for(ANSWER_MS + 5_000)
    assert returned.snapshots.installed_count == leader.snapshots.made_count == 0
    assert list((leader.config.root / "snapshots").iterdir()) == []
    assert f"{other} did not say what they hold" in caplog.text or away in caplog.text
    silent[0] = False
    cluster.world.run(
        lambda: returned.snapshots.installed_count == 1, ms_max=4 * LONG_PAUSE_MS_MIN + 5_000
    )

    cluster.world.run(cluster.agree)


def test_hashing_gives_way_and_says_so(tmp_path: Path) -> None:
    Ledger.open(str(tmp_path / "l.db")).close()
    with (
        contextlib.closing(sqlite3.connect(tmp_path / "l.db")) as db,
        pytest.raises(Unavailable, match="given up"),
    ):
        db.text_factory = bytes
        whole_digest(db, may_go_on=lambda: False)


def test_a_scrub_of_one_range_makes_nobody_compare_the_whole(tmp_path: Path) -> None:
    cluster, leader = written(tmp_path)
    said: list[bytes] = []
    for name in cluster.cores:
        end = cluster.wires.ends[name]

        def watched(peer: str, frame: Frame, send: object = end.send) -> bool:
            if frame.HasField("scrub_digest"):
                said.append(frame.scrub_digest.whole_digest)
            return send(peer, frame)  # type: ignore[operator, no-any-return]

        end.send = watched  # type: ignore[method-assign]

    accepted(cluster.propose(leader.config.node_id, Command(scrub=first_range())))
    cluster.world.run(lambda: len(said) >= 6)
    assert set(said) == {b""}

    whole = Scrub(whole=True, rows_max=first_range().rows_max, bytes_max=first_range().bytes_max)
    accepted(cluster.propose(leader.config.node_id, Command(scrub=whole)))
    cluster.world.run(lambda: len(said) >= 12)
    assert {len(digest) for digest in said[6:]} == {32} and len(set(said[6:])) == 1


def test_two_of_three_that_differ_send_the_third_no_copy_and_write_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, away, leader = one_away(tmp_path, **UNSCRUBBED)
    flip_a_bit(leader)
    sent = chunks_sent(cluster, leader.config.node_id)

    cluster.start(away)
    cluster.world.run(lambda: "the voters that answered differ" in caplog.text, ms_max=60_000)
    cluster.world.run(
        lambda: caplog.text.count("is not handed out") == 4, ms_max=20 * LONG_PAUSE_MS_MIN
    )

    assert sent == [] and leader.snapshots.made_count == 0
    cried = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(cried) == 2  # by each of the two, and not with each copy that is tried
    accepted(cluster.propose(leader.config.node_id, submit(WRITTEN + 1)))
    assert not any(core.diverged for core in cluster.cores.values())

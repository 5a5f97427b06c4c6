"""What a copy that waits to be vouched for keeps, costs and survives."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Command, Scrub
from quorumesh.v1.peer_pb2 import Frame

from consensus.copying import PARTIAL, copy_pages, digest_of_rows, open_ledger, prove_copy
from consensus.core import Core
from consensus.directory import LedgerDirectory
from consensus.engine.disk import Disk
from consensus.errors import ConsensusError, Damaged
from consensus.ledger import Ledger
from consensus.pauses import LONG_PAUSE_MS_MAX, LONG_PAUSE_MS_MIN, REQUEST_PAUSE_MS
from consensus.scrub import ANSWER_MS, PROPOSE_MS
from consensus.snapshots import TAKEN_MS_MAX, Snapshots
from consensus.vouching import STUCK_MS_MAX, STUCK_MS_MIN, Vouching
from tests.consensus.cluster import AtOnce, Cluster, World
from tests.consensus.copies import copies_of
from tests.consensus.test_copies_sent import TINY, WRITTEN, one_away
from tests.consensus.test_cores import accepted, holds_all, submit
from tests.consensus.test_vouching import UNSCRUBBED, admit, written


class Held:
    """Digests of whole ledgers on their way from some nodes, until they are let go."""

    def __init__(self, cluster: Cluster, *names: str) -> None:
        self._late: list[Callable[[], bool]] = []
        self._is_open = False
        for name in names:
            end = cluster.wires.ends[name]
            self._watch(name, end, end.send)

    def _watch(self, name: str, end: object, send: Callable[[str, Frame], bool]) -> None:
        def held(peer: str, frame: Frame) -> bool:
            if not self._is_open and frame.scrub_digest.whole_digest:
                self._late.append(lambda: send(peer, frame))
                return True
            return send(peer, frame)

        end.send = held  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self._late)

    def forget(self) -> None:
        """Those on their way are lost, and later ones are not held."""
        self._is_open = True
        self._late.clear()

    def let_go(self) -> None:
        self._is_open = True
        for say in self._late:
            say()


def followers(cluster: Cluster, leader: Core) -> list[str]:
    return [name for name in sorted(cluster.cores) if name != leader.config.node_id]


def test_what_follows_a_copy_stays_in_the_journal_until_it_was_vouched_for(tmp_path: Path) -> None:
    cluster, leader = written(tmp_path)
    held = Held(cluster, *followers(cluster, leader))
    newcomer = admit(cluster, leader, "n4")
    cluster.world.run(lambda: len(held) > 0)
    index = leader.snapshots.needed_after
    compactions = leader.compaction.done_count

    for number in range(WRITTEN + 1, 2 * WRITTEN + 1):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    assert index is not None and leader.snapshots.needed_after == index
    assert leader.compaction.done_count >= compactions + 3
    assert leader.journal.base_index <= index < leader.applied_index - 20 * TINY["keep_entries"]
    held.let_go()
    cluster.world.run(lambda: newcomer.snapshots.installed_count == 1)
    cluster.world.run(cluster.agree)

    assert leader.snapshots.made_count == 1 and holds_all(cluster, 2 * WRITTEN)
    cluster.world.run_for(TAKEN_MS_MAX)
    assert leader.snapshots.needed_after is None


def test_a_copy_that_the_journal_went_past_is_given_up_and_another_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, leader = written(tmp_path)
    held = Held(cluster, *followers(cluster, leader))
    newcomer = admit(cluster, leader, "n4")
    cluster.world.run(lambda: len(held) > 0)

    for number in range(WRITTEN + 1, WRITTEN + 81):
        accepted(cluster.propose(leader.config.node_id, submit(number)))
    leader.journal.drop_to(leader.applied_index)  # as beyond the bound of what is held
    cluster.world.run(lambda: "the journal went on without it" in caplog.text, ms_max=1_000)
    assert leader.snapshots.needed_after is None
    assert list((leader.config.root / "snapshots").iterdir()) == []
    held.let_go()

    cluster.world.run(
        lambda: newcomer.snapshots.installed_count == 1, ms_max=LONG_PAUSE_MS_MIN + 5_000
    )
    cluster.world.run(cluster.agree)
    assert leader.snapshots.made_count == 1


class Doubting:
    """A witness that vouches for nothing until it is told to."""

    def __init__(self) -> None:
        self.asked_count, self.why = 0, "nobody answers"

    def ask(
        self, begin: Callable[[int | None], None], give_up: Callable[[ConsensusError], None]
    ) -> None:
        self.asked_count += 1
        begin(0)

    def may_go_on(self, index: int) -> bool:
        return True

    def vouch(self, index: int, digest: bytes, answer: Callable[[str], None]) -> None:
        answer(self.why)


def doubted(tmp_path: Path) -> tuple[Snapshots, Doubting, World]:
    directory, world, witness = LedgerDirectory(tmp_path), World(), Doubting()
    path = directory.prepare()
    Ledger.open(str(path)).close()
    snapshots = copies_of(path, directory, clock=world, witness=witness)
    return snapshots, witness, world


def request_for(snapshots: Snapshots, world: World, ms: int) -> None:
    """As a leader does, many times a second."""
    for _ in range(0, ms, 500):
        world.run_for(500)
        snapshots.request()


def test_copies_that_nobody_vouches_for_are_made_ever_more_seldom(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots, witness, world = doubted(tmp_path)

    request_for(snapshots, world, 4 * 3_600_000)

    early = 7  # after 0, 5, 10, 20, 40, 80, 160 and 320 s
    assert early < witness.asked_count <= early + 1 + 4 * 3_600_000 // LONG_PAUSE_MS_MAX
    assert "nobody answers. The next is made in 600 s" in caplog.text
    assert "mesh doctor" in caplog.text
    assert snapshots.made_count == 0 and snapshots.latest() is None


def test_a_voter_that_came_back_ends_the_pause_but_not_one_that_comes_and_goes(
    tmp_path: Path,
) -> None:
    snapshots, witness, world = doubted(tmp_path)
    request_for(snapshots, world, 3_600_000)
    asked = witness.asked_count

    world.run_for(LONG_PAUSE_MS_MIN)
    snapshots.voter_came()
    request_for(snapshots, world, REQUEST_PAUSE_MS + 500)
    assert witness.asked_count == asked + 1
    for _ in range(LONG_PAUSE_MS_MIN // 1_000 - 1):
        snapshots.voter_came()
        request_for(snapshots, world, 1_000)
    assert witness.asked_count == asked + 1

    witness.why = ""
    request_for(snapshots, world, LONG_PAUSE_MS_MIN)
    assert snapshots.made_count > 0 and snapshots.latest() is not None


class Bending(Disk):
    """A disk on which a value of the first copy goes bad, and nothing else."""

    bent_count = 0

    def sync_file(self, path: Path) -> None:
        super().sync_file(path)
        if path.name == PARTIAL and not self.bent_count:
            self.bent_count += 1
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute("UPDATE task SET spec_digest=zeroblob(32) WHERE seq=7")


def test_a_copy_that_alone_went_bad_is_not_sent_and_its_node_stays_in_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bending = {name: Bending() for name in ("n1", "n2", "n3")}
    cluster, leader = written(tmp_path, disks=bending)

    newcomer = admit(cluster, leader, "n4")
    cluster.world.run(lambda: "no majority of the voters holds what it holds" in caplog.text)
    assert bending[leader.config.node_id].bent_count == 1
    cluster.world.run(
        lambda: newcomer.snapshots.installed_count == 1, ms_max=LONG_PAUSE_MS_MIN + 5_000
    )

    cluster.world.run(cluster.agree)
    assert not any(core.diverged for core in cluster.cores.values())
    assert holds_all(cluster, WRITTEN)


def test_a_copy_of_a_mesh_of_one_is_compared_with_its_own_ledger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = Cluster(tmp_path, seed=2, **UNSCRUBBED)
    cluster.disks["n1"] = bending = Bending()
    leader = cluster.start("n1")
    cluster.wait_leader()
    for number in range(1, WRITTEN + 1):
        accepted(cluster.propose("n1", submit(number)))
    cluster.world.run(lambda: leader.journal.base_index > 0)

    newcomer = admit(cluster, leader, "n2")
    cluster.world.run(
        lambda: newcomer.snapshots.installed_count == 1, ms_max=LONG_PAUSE_MS_MIN + 5_000
    )

    assert bending.bent_count == 1 and "is not handed out" in caplog.text
    assert "not compared" not in caplog.text
    cluster.world.run(cluster.agree)


def test_a_leader_that_is_deposed_while_its_copy_waits_hands_it_to_nobody(tmp_path: Path) -> None:
    cluster, leader = written(tmp_path)
    name, others = leader.config.node_id, followers(cluster, leader)
    held = Held(cluster, *others)
    newcomer = admit(cluster, leader, "n4")
    cluster.world.run(lambda: len(held) > 0)
    for other in others:
        cluster.wires.cut(name, other)
    cluster.wires.cut(name, "n4")

    cluster.world.run(lambda: cluster.leader() is not leader, ms_max=60_000)
    held.let_go()
    cluster.world.run(lambda: newcomer.snapshots.installed_count == 1, ms_max=60_000)
    assert leader.snapshots.made_count == 0
    cluster.wires.heal()
    cluster.world.run(cluster.agree, ms_max=2 * ANSWER_MS)

    cluster.world.run(lambda: leader.snapshots.needed_after is None, ms_max=2 * ANSWER_MS)
    cluster.world.run(lambda: not leader.vouching.is_reading)


def test_what_was_found_is_told_again_to_who_could_not_be_told_then(tmp_path: Path) -> None:
    cluster, leader = written(tmp_path)
    name, others = leader.config.node_id, followers(cluster, leader)
    lost = Held(cluster, *others)
    newcomer = admit(cluster, leader, "n4")
    cluster.world.run(lambda: len(lost) >= 2)
    cluster.world.run_for(100)
    lost.forget()

    cluster.wires.disconnect(name, others[0])
    cluster.world.after(1_000, cluster.wires.connect_what_may)

    cluster.world.run(
        lambda: newcomer.snapshots.installed_count == 1, ms_max=LONG_PAUSE_MS_MIN // 2
    )


def test_who_is_needed_for_a_majority_does_not_wait_for_one_that_cannot_be_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, away, leader = one_away(tmp_path)
    name = leader.config.node_id
    other = next(one for one in followers(cluster, leader))
    held = Held(cluster, other)
    returned = cluster.start(away)
    cluster.world.run(lambda: len(held) > 0)

    for one in (name, away):
        cluster.wires.cut(one, other)
    accepted(cluster.propose(name, submit(WRITTEN + 1), ms=4 * STUCK_MS_MIN))

    assert returned.snapshots.installed_count == 1 and "too few have compared" in caplog.text
    cluster.wires.heal()
    cluster.world.run(cluster.agree, ms_max=2 * ANSWER_MS)


def test_a_slow_moment_does_not_make_a_copy_that_nobody_compares(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, away, leader = one_away(tmp_path)
    other = next(name for name in followers(cluster, leader))
    cluster.slow_down(other, (9_000_000, 9_000_001))  # each of its syncs takes nine seconds
    cluster.slow_down(leader.config.node_id, (9_000_000, 9_000_001))

    returned = cluster.start(away)
    cluster.world.run_for(STUCK_MS_MAX - PROPOSE_MS)
    assert "not compared" not in caplog.text and returned.snapshots.installed_count == 0
    for name in (other, leader.config.node_id):
        cluster.slow_down(name, (100, 400))

    cluster.world.run(cluster.agree, ms_max=60_000)
    assert "not compared" not in caplog.text
    assert returned.snapshots.installed_count == 1


def test_a_node_that_closes_while_it_hashes_says_nothing(tmp_path: Path) -> None:
    cluster, leader = written(tmp_path)
    name = followers(cluster, leader)[0]
    follower, said = cluster.cores[name], Held(cluster, name)
    cluster.slow_down(name, (1_000_000, 1_000_001))
    admit(cluster, leader, "n4")
    cluster.world.run(lambda: follower.vouching.is_reading)

    follower.close()
    cluster.world.run_for(3_000)

    assert len(said) == 0 and not follower.vouching.is_reading


def test_the_hash_of_a_file_is_that_of_its_ledger_and_gives_way(tmp_path: Path) -> None:
    snapshots, witness, _ = doubted(tmp_path)
    witness.why = ""
    snapshots.request()
    made = snapshots.latest()
    assert made is not None

    one = digest_of_rows(made.path, may_go_on=lambda: True)
    with contextlib.closing(sqlite3.connect(made.path, isolation_level=None)) as db:
        db.execute("UPDATE ledger SET fence = fence + 1")

    assert len(one) == 32 and digest_of_rows(made.path, may_go_on=lambda: True) != one


def test_a_value_that_goes_bad_after_all_looks_is_noticed_when_it_is_sent(tmp_path: Path) -> None:
    Ledger.open(str(tmp_path / "l.db")).close()
    seen: list[bytes] = []

    def look(path: Path) -> None:
        seen.append(digest_of_rows(path, may_go_on=lambda: True))
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE ledger SET fence = fence + 1")

    copied = copy_pages(
        open_ledger(tmp_path / "l.db"), tmp_path / PARTIAL, Disk(), may_go_on=lambda: True
    )
    made = prove_copy(tmp_path, copied, Disk(), look=look)

    assert digest_of_rows(made.path, may_go_on=lambda: True) != seen[0]
    with pytest.raises(Damaged, match="changed on disk"):
        for offset in range(0, made.bytes_total, 4_096):
            made.read(offset, 4_096)


class Cramped(Disk):
    """A disk with too little room for another ledger."""

    def __init__(self) -> None:
        self.removed: set[str] = set()

    def free_bytes(self, folder: Path) -> int:
        return 4_096

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.removed.add(path.name.partition("-")[0])


class Roomy(Cramped):
    """The same, with room."""

    def free_bytes(self, folder: Path) -> int:
        return 1 << 40


@pytest.mark.parametrize("kind", [Cramped, Roomy])
def test_what_is_copied_to_be_hashed_is_gone_afterwards_and_not_made_without_room(
    tmp_path: Path, kind: type[Cramped]
) -> None:
    disks = {name: kind() for name in ("n1", "n2", "n3")}
    cluster, leader = written(tmp_path, disks=dict(disks))
    newcomer = admit(cluster, leader, "n4")

    cluster.world.run(lambda: newcomer.snapshots.installed_count == 1)

    others = followers(cluster, leader)[:2]
    for name in others:
        assert list((tmp_path / name / "snapshots").iterdir()) == []
        assert ("compared" in disks[name].removed) is (kind is Roomy)
    cluster.world.run(cluster.agree)


class Clobbering(AtOnce):
    """Work after which what was copied to be hashed is none any more."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.count = folder, 0

    def run(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        def clobbered() -> None:
            work()
            for path in self._folder.glob("compared-*.db"):
                path.write_bytes(b"\xa5" * 8_192)
                self.count += 1

        super().run(clobbered, done)


def test_a_file_that_was_copied_to_be_hashed_and_went_bad_is_not_held_against_the_ledger(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, leader = written(tmp_path)
    name = followers(cluster, leader)[0]
    core = cluster.cores[name]
    clobbering = Clobbering(tmp_path / name / "snapshots")
    core.vouching = Vouching(core, replace(core._ports, background=clobbering))

    accepted(cluster.propose(name, Command(scrub=Scrub(whole=True))))
    cluster.world.run_for(1_000)

    assert clobbering.count == 1 and "copied to be hashed cannot be read" in caplog.text
    assert not core.diverged and list((tmp_path / name / "snapshots").iterdir()) == []
    accepted(cluster.propose(name, submit(WRITTEN + 1)))

"""Rows 8 and 9, whose outcome is whose: by incarnation and sequence, never by place in the log."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from quorumesh.v1.ledger_pb2 import Cancel, Command, Proposal, Submit
from quorumesh.v1.peer_pb2 import Frame, Propose, ProposeReply
from quorumesh.v1.values_pb2 import Reason, TaskState

from consensus.core import Core
from consensus.errors import OutcomeUnknown, Unavailable
from consensus.ledger import Applied
from tests.consensus.cluster import Cluster, Result
from tests.consensus.test_cores import accepted, holds_all, submit, three
from tests.consensus.test_replica import running


def bad() -> Command:
    """A command that is refused, so that its outcome is told from others'."""
    return Command(submit=Submit(task_id=b"bad".ljust(16, b"."), spec=b"\xff\xff"))


def ask(cluster: Cluster, core: Core, *commands: Command, ms: int = 20_000) -> list[Result]:
    """Propose; what comes back is in the list once it is there."""
    answers: list[Result] = []
    core.propose(commands, deadline_ms=cluster.world.monotonic_ms() + ms, done=answers.append)
    return answers


def others_of(cluster: Cluster, core: Core) -> list[str]:
    return [node_id for node_id in sorted(cluster.cores) if node_id != core.config.node_id]


class Revisions:
    """What was applied on one node, entry by entry."""

    def __init__(self) -> None:
        self.reasons: dict[int, list[int]] = {}

    def entry_applied(self, applied: Applied) -> None:
        assert applied.revision not in self.reasons
        self.reasons[applied.revision] = [outcome.reason for outcome in applied.outcomes]

    def ledger_replaced(self) -> None: ...


def test_rule_8_an_entry_at_the_same_index_is_nobody_elses_outcome(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    old = cluster.wait_leader()
    others = others_of(cluster, old)
    for other in others:
        cluster.wires.cut(old.config.node_id, other)
    seen = Revisions()
    cluster.cores[others[0]].observe(seen)
    before = old.engine.last_index
    ask(cluster, old, submit(1))
    cluster.world.run_for(50)
    mine = ask(cluster, old, submit(2))
    cluster.world.run_for(50)
    index = old.engine.last_index
    assert index == before + 2
    while cluster.wait_leader() is old:
        cluster.world.run_for(10)
    # The new leader's no-op stands where the first one was, its client's entry where mine was.
    theirs = ask(cluster, cluster.wait_leader(), bad())
    cluster.world.run(lambda: bool(theirs))
    assert seen.reasons[index] == [Reason.INVALID]
    assert mine == []

    cluster.wires.heal()
    cluster.world.run(lambda: bool(mine))

    [outcome] = accepted(mine[0])
    assert outcome.revision > index
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, 2)


def test_rule_8_an_outcome_for_an_earlier_life_is_not_this_ones(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    restarted, other = others_of(cluster, leader)
    for node_id in (leader.config.node_id, other):
        cluster.slow_down(node_id, (300_000, 300_001))
    seen = Revisions()
    leader.observe(seen)
    before = leader.engine.last_index
    ask(cluster, cluster.cores[restarted], bad())
    cluster.world.run(lambda: leader.engine.last_index > before)
    assert seen.reasons == {}

    cluster.kill(restarted)
    again = cluster.start(restarted)
    answers = ask(cluster, again, submit(1))
    cluster.world.run(lambda: bool(answers))

    # Both were the first command of their life: only the life tells them apart.
    assert again.proposals._sequence == 1
    assert [Reason.INVALID] in seen.reasons.values()
    accepted(answers[0])


def test_rule_8_a_caller_that_gave_up_disturbs_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as (replica, task):
            for number in range(2, 12):
                asking = asyncio.ensure_future(replica.propose([submit(number)], timeout_ms=5_000))
                await asyncio.sleep(0)
                asking.cancel()
            await replica.propose([submit(12)], timeout_ms=5_000)

            assert not task.done()
            assert replica.reader.counts().task_count == 12

    asyncio.run(scenario())


def without_proposals(cluster: Cluster, source: str, *, frames_max: int) -> list[Frame]:
    """So many frames of proposals from a node vanish on their way; the list has them."""
    lost: list[Frame] = []
    send = cluster.wires.send

    def losing(a: str, b: str, frame: Frame) -> bool:
        if a == source and frame.HasField("propose") and len(lost) < frames_max:
            lost.append(frame)
            return True
        return send(a, b, frame)

    cluster.wires.send = losing  # type: ignore[method-assign]  # the wires are the tests' own
    return lost


def test_rule_9_a_forward_that_was_lost_with_its_link_is_sent_again(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader().config.node_id
    follower = others_of(cluster, cluster.cores[leader])[0]
    lost = without_proposals(cluster, follower, frames_max=1)
    answers = ask(cluster, cluster.cores[follower], submit(1), submit(2))
    cluster.world.run(lambda: bool(lost))

    cluster.wires.disconnect(follower, leader)
    cluster.wires.heal()
    cluster.world.run(lambda: bool(answers))

    assert len(accepted(answers[0])) == 2
    cluster.world.run(cluster.agree)
    assert holds_all(cluster, 2)


def test_rule_9_a_forward_that_vanishes_is_answered_at_its_deadline(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    follower = others_of(cluster, cluster.wait_leader())[0]
    lost = without_proposals(cluster, follower, frames_max=1_000)

    answers = ask(cluster, cluster.cores[follower], submit(1), ms=2_000)
    cluster.world.run(lambda: bool(answers), ms_max=2_100)

    assert lost and isinstance(answers[0], OutcomeUnknown)
    assert len(cluster.cores[follower].proposals) == 0


def test_rule_9_a_refusal_for_an_earlier_life_puts_nothing_back(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader().config.node_id
    follower = others_of(cluster, cluster.cores[leader])[0]
    core = cluster.cores[follower]
    lost = without_proposals(cluster, follower, frames_max=1)
    ask(cluster, core, submit(1))
    cluster.world.run(lambda: bool(lost))
    sequence = lost[0].propose.proposals[0].sequence
    incarnation = lost[0].propose.proposals[0].incarnation

    for wrong in (incarnation + 1, 0):
        reply = ProposeReply(incarnation=wrong, sequences=[sequence], refused="full")
        core.frame_received(leader, Frame(term=core.engine.term, propose_reply=reply))
        assert not core.proposals.has_unsent()

    reply = ProposeReply(incarnation=incarnation, sequences=[sequence], refused="full")
    core.frame_received(leader, Frame(term=core.engine.term, propose_reply=reply))
    assert core.proposals.has_unsent()


@pytest.mark.parametrize("seed", range(3))
def test_rule_9_every_command_of_a_node_in_trouble_has_exactly_one_answer(
    tmp_path: Path, seed: int
) -> None:
    cluster = three(tmp_path, seed=seed)
    leader = cluster.wait_leader().config.node_id
    follower = others_of(cluster, cluster.cores[leader])[0]
    answers: list[list[Result]] = []
    for number in range(1, 61):
        answers.append(ask(cluster, cluster.cores[follower], submit(number), ms=3_000))
        if number % 20 == 10:
            cluster.wires.cut(follower, leader)
        if number % 20 == 15:
            cluster.wires.heal()
        cluster.world.run_for(20)
    cluster.wires.heal()
    cluster.world.run_for(4_000)

    assert [len(answer) for answer in answers] == [1] * 60
    written = sum(not isinstance(answer[0], (OutcomeUnknown, Unavailable)) for answer in answers)
    assert written >= 30
    cluster.world.run(cluster.agree)
    assert cluster.cores[leader].reader.counts().task_count >= written


def cancel(number: int) -> Command:
    return Command(cancel=Cancel(task_id=number.to_bytes(16, "big")))


def test_rule_8_a_refusal_is_final_only_of_the_copy_that_was_sent_last(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    follower = cluster.cores[others_of(cluster, leader)[0]]
    seen = Revisions()
    follower.observe(seen)
    before = leader.applied_index
    answers = ask(cluster, follower, cancel(7))
    cluster.world.run(lambda: leader.engine.last_index > before)
    # It is in the log, and refused there; the follower has not heard of it, and sends it again.
    cluster.wires.cut(follower.config.node_id, leader.config.node_id)
    accepted(cluster.propose(leader.config.node_id, submit(7)))
    assert leader.applied_index > before and answers == []

    cluster.wires.heal()
    cluster.world.run(lambda: bool(answers))

    told = [reason for reasons in seen.reasons.values() for reason in reasons]
    assert told == [Reason.NOT_FOUND, 0, 0]
    task = follower.reader.task((7).to_bytes(16, "big"))
    assert task is not None and task.state == TaskState.TASK_CANCELLED
    accepted(answers[0])


def test_rule_8_what_was_sent_in_another_term_is_not_appended(tmp_path: Path) -> None:
    cluster = three(tmp_path)
    leader = cluster.wait_leader()
    peer = others_of(cluster, leader)[0]
    replies: list[Frame] = []
    send = cluster.wires.send

    def overheard(a: str, b: str, frame: Frame) -> bool:
        if b == peer and frame.HasField("propose_reply"):
            replies.append(frame)
        return send(a, b, frame)

    cluster.wires.send = overheard  # type: ignore[method-assign]  # the wires are the tests' own
    late = Propose(proposals=[Proposal(incarnation=9, sequence=1, command=cancel(7), attempt=1)])
    term, last = leader.engine.term, leader.engine.last_index

    for at in (term - 1, term + 1):
        leader.frame_received(peer, Frame(term=at, propose=late))
    cluster.world.run_for(100)
    assert [list(frame.propose_reply.sequences) for frame in replies] == [[1], [1]]
    assert leader.engine.last_index == last

    leader.frame_received(peer, Frame(term=term, propose=late))
    cluster.world.run(lambda: leader.engine.last_index > last)

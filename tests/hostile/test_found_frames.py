"""Frames that once stopped a node or damaged its log, each by itself. All are dropped and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from quorumesh.v1.ledger_pb2 import Entry, MembershipChange
from quorumesh.v1.peer_pb2 import AppendEntries, AppendReply, Frame, LogEntry

from consensus.engine.following import Contradiction
from tests.hostile.mesh_of_one import Node, copy_of_template

WIDEST = (1 << 64) - 1
REGULAR, NO_OP, MEMBERSHIP = b"\x00", b"\x01", b"\x02"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(copy_of_template(tmp_path, 1), Random(1))


def append_of(node: Node, *commands: bytes, term: int = 0, counted_ms: int = 0) -> Frame:
    """An honest leader's next frame, with these commands as entries."""
    engine, journal = node.core.engine, node.core.journal
    append = AppendEntries(
        prev_index=journal.last_index, prev_term=journal.last_term, counted_ms=counted_ms
    )
    for number, command in enumerate(commands):
        index = journal.last_index + 1 + number
        append.entries.append(LogEntry(index=index, term=term or engine.term, command=command))
    append.commit_index = journal.last_index + len(commands)
    return Frame(term=engine.term, append=append)


def a_second_leader(node: Node) -> Frame:
    assert node.lead()
    return append_of(node)


def a_log_that_begins_otherwise(node: Node) -> Frame:
    node.follow()
    frame = append_of(node)
    frame.append.prev_index = node.core.engine.commit_index
    frame.append.prev_term = 77
    return frame


def an_answer_for_more_than_there_is(node: Node) -> Frame:
    assert node.lead()
    reply = AppendReply(next_index=node.core.engine.last_index + 2, success=True)
    return Frame(term=node.core.engine.term, append_reply=reply)


def an_entry_of_a_later_term_than_its_sender(node: Node) -> Frame:
    node.follow()
    return append_of(node, NO_OP, term=node.core.engine.term + 5)


def an_entry_that_is_none(node: Node) -> Frame:
    node.follow()
    return append_of(node, REGULAR + b"\x22\xff\xff\xff\xff\x0f")


def an_entry_at_no_time(node: Node) -> Frame:
    node.follow()
    entry = Entry(apply_version=1, counted_ms=WIDEST)
    return append_of(node, REGULAR + entry.SerializeToString())


def a_change_at_no_time(node: Node) -> Frame:
    node.follow()
    change = MembershipChange(add=True, node_id="n4", wall_ms=WIDEST)
    return append_of(node, MEMBERSHIP + change.SerializeToString())


def a_heartbeat_at_no_time(node: Node) -> Frame:
    node.follow()
    return append_of(node, counted_ms=WIDEST)


def a_term_that_no_mesh_comes_to(node: Node) -> Frame:
    frame = append_of(node)
    frame.term = WIDEST
    return frame


@pytest.mark.parametrize(
    "frame_of",
    [
        a_second_leader,
        a_log_that_begins_otherwise,
        an_answer_for_more_than_there_is,
        an_entry_of_a_later_term_than_its_sender,
        an_entry_that_is_none,
        an_entry_at_no_time,
        a_change_at_no_time,
        a_heartbeat_at_no_time,
        a_term_that_no_mesh_comes_to,
    ],
    ids=lambda frame_of: frame_of.__name__,
)
def test_a_frame_that_lies_is_dropped_and_the_node_goes_on(
    node: Node, frame_of: Callable[[Node], Frame]
) -> None:
    frame, core = frame_of(node), node.core
    before = core.engine.term, core.engine.commit_index, core.engine.last_index
    refused_count = core.engine.counters.frames_refused

    core.frame_received("n2", frame)
    node.turn(1)

    assert core.engine.counters.frames_refused == refused_count + 1
    assert (core.engine.term, core.engine.commit_index, core.engine.last_index) == before
    assert node.lead()
    node.check()


def test_a_leader_that_would_cut_what_is_committed_stops_the_node(node: Node) -> None:
    """That is proof of a bug somewhere: to go on would be to guess who is right."""
    node.follow()
    frame, index = append_of(node), node.core.engine.commit_index
    frame.term += 1
    frame.append.prev_index = index - 1
    frame.append.prev_term = node.core.journal.term_at(index - 1)
    frame.append.entries.add(index=index, term=frame.term, command=NO_OP)

    with pytest.raises(Contradiction, match=f"entry {index} is committed"):
        node.core.frame_received("n2", frame)

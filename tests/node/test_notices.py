"""What a node says while it runs: what changed, once, in words for people."""

from __future__ import annotations

from dataclasses import replace

import pytest
from quorumesh.v1.mesh_pb2 import Member

from consensus.view import ReplicaView
from node.notices import Notices, voters_text

VIEW = ReplicaView(
    node_id="a", role="follower", leader_id="", term=1, revision=1, commit_index=1,
    writable=False, leader_age_ms=0, counted_ms=0, digest=b"", voters=("a",), waiting_count=0,
    compaction_count=0, snapshot_install_count=0, journal_bytes=0, ledger_bytes=0, trouble="",
)  # fmt: skip
HERE = Member(node_id="a", name="node-1", address="h:1", alive=True)
THERE = Member(node_id="b", name="node-2", address="h:2", alive=True)
GONE = Member(node_id="b", name="node-2", address="h:2", alive=False)


def said(
    notices: Notices, view: ReplicaView, members: tuple[Member, ...] = (), why: str = ""
) -> list[str]:
    return [notice.text for notice in notices.changes(view, members, why)]


def test_a_start_says_only_that_it_can_write() -> None:
    notices = Notices()

    assert said(notices, VIEW, (HERE,)) == []
    leads = replace(VIEW, writable=True, role="leader")
    assert said(notices, leads, (HERE,)) == ["can write, as leader"]
    assert said(notices, leads, (HERE,)) == []


def test_a_second_voter_is_told_that_none_may_be_lost() -> None:
    notices = Notices()
    said(notices, VIEW, (HERE,))

    two = replace(VIEW, voters=("a", "b"))
    assert said(notices, two, (HERE, THERE)) == [
        "two voters survive no loss: while either is down, nothing can be written",
        "node-2 is up (h:2)",
    ]


def test_a_cut_is_told_with_its_reason_and_its_end() -> None:
    notices = Notices()
    fine = replace(VIEW, writable=True)
    said(notices, fine, (HERE, THERE))

    assert said(notices, VIEW, (HERE, GONE), "read-only: 1 of 3") == [
        "node-2 is down (h:2)",
        "read-only: 1 of 3",
    ]
    assert said(notices, fine, (HERE, THERE)) == [
        "node-2 is up (h:2)",
        "can write again, as follower",
    ]


def test_a_disk_that_refuses_is_told_once_and_so_is_its_return() -> None:
    notices, full = Notices(), replace(VIEW, trouble="the disk is full; reads go on")

    assert said(notices, full) == ["the disk is full; reads go on"]
    assert said(notices, full) == []
    assert said(notices, VIEW)[0] == "the storage works again"


@pytest.mark.parametrize(
    ("count", "part"), [(1, "one voter"), (3, "one of them"), (4, "one of them"), (5, "2 of them")]
)
def test_how_many_losses_are_survived(count: int, part: str) -> None:
    assert part in voters_text(count)

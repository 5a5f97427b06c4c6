"""What the library does as shipped: each function says whether its violation showed.

Run in a process of its own, because the engine replaces the library's module globals. Prints JSON.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as library
from pysyncobj import SyncObj, SyncObjConf, replicated
from pysyncobj.journal import FileJournal, ResizableFile
from pysyncobj.node import Node
from pysyncobj.transport import Transport

NOW_S = [1000.0]
OTHERS = ("b", "c")


class Wire(Transport):  # type: ignore[misc]  # the library is untyped
    """Keeps what was sent; `is_open` says whether sending works."""

    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.sent: list[dict[str, Any]] = []
        self.is_open = True

    @property
    def ready(self) -> bool:
        return True

    def addNode(self, node: Node) -> None:
        pass

    def dropNode(self, node: Node) -> None:
        pass

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        self.sent.append(message)
        return self.is_open

    def destroy(self) -> None:
        pass


class Stock(SyncObj):  # type: ignore[misc]  # the library is untyped
    def __init__(self, wire: Wire, **options: Any) -> None:
        self.seen: list[bytes] = []
        conf = SyncObjConf(
            autoTick=False, dynamicMembershipChange=True, pollerType="select", **options
        )
        others = [Node(name) for name in OTHERS]
        super().__init__(Node("a"), others, conf, nodeClass=Node, transport=wire)

    @replicated  # type: ignore[untyped-decorator]  # the library is untyped
    def put(self, value: bytes) -> None:
        self.seen.append(value)
        if value == b"poison":
            raise ValueError("a command that raises")


def make(**options: Any) -> tuple[Stock, Wire]:
    wire = Wire()
    node = Stock(wire, **options)
    for other in OTHERS:
        wire._onNodeConnected(Node(other))
    return node, wire


def private(node: Stock, name: str) -> Any:
    return getattr(node, f"_SyncObj__{name}")


def leading(**options: Any) -> tuple[Stock, Wire]:
    """A stock node elected, whose no-op is acknowledged by b."""
    node, wire = make(**options)
    node.doTick()
    NOW_S[0] += 5
    node.doTick()
    wire._onMessageReceived(Node("b"), {"type": "response_vote", "term": node.raftCurrentTerm})
    acknowledge(node, wire, "b")
    node.doTick()
    assert node._isLeader() and node.raftCommitIndex > 1
    return node, wire


def acknowledge(node: Stock, wire: Wire, peer: str, **changed: Any) -> None:
    reply = {"type": "next_node_idx", "reset": False, "success": True}
    reply["next_node_idx"] = private(node, "raftLog")[-1][1] + 1
    wire._onMessageReceived(Node(peer), {**reply, **changed})


def append_to(wire: Wire, previous: tuple[int, int], entries: list[Any], **more: Any) -> None:
    message = {"type": "append_entries", "term": 5, "commit_index": 1, "entries": entries}
    message.update(prevLogIdx=previous[0], prevLogTerm=previous[1], **more)
    wire._onMessageReceived(Node("b"), message)


def rows(first: int, last: int) -> list[tuple[bytes, int, int]]:
    return [(b"\x01", index, 5) for index in range(first, last + 1)]


def row_1_a_flipped_byte_is_served_as_data(folder: Path) -> bool:
    path = folder / "journal"
    FileJournal(str(path)).add(b"\x00" + b"A" * 100, 1, 1)
    data = bytearray(path.read_bytes())
    data[data.index(b"AAAA") + 50] = ord("B")
    path.write_bytes(bytes(data))
    return bool(b"B" in FileJournal(str(path))[0][0])


def row_1_entries_are_acknowledged_that_were_never_synced(folder: Path) -> bool:
    synced: list[str] = []
    os.fsync = lambda fd: synced.append("fsync")  # type: ignore[assignment]  # a process of its own
    os.fdatasync = lambda fd: synced.append("fdatasync")  # type: ignore[assignment]
    ResizableFile.flush = lambda file: synced.append("msync")
    _, wire = make(journalFile=str(folder / "journal"))
    append_to(wire, (1, 0), rows(2, 6))
    said = [message for message in wire.sent if message.get("success")]
    return bool(said) and said[-1]["next_node_idx"] == 7 and synced == []


def row_2_a_damaged_vote_is_no_vote(folder: Path) -> bool:
    path = str(folder / "journal")
    ask = {"type": "request_vote", "term": 9, "last_log_index": 99, "last_log_term": 9}
    _, wire = make(journalFile=path)
    wire._onMessageReceived(Node("b"), ask)
    Path(path + ".meta").write_bytes(b"")
    _, wire_again = make(journalFile=path)
    wire_again._onMessageReceived(Node("c"), ask)
    granted = [message for message in wire.sent + wire_again.sent if message["term"] == 9]
    return len(granted) == 2


class Killed(BaseException):
    """The process ends here."""


def row_3_a_kill_while_compacting_loses_the_tail(folder: Path) -> bool:
    journal = FileJournal(str(folder / "journal"))
    for index in range(1, 21):
        journal.add(b"\x01", index, 1)
    add, left = journal.add, [3]

    def dying(*entry: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        add(*entry)

    journal.add = dying
    try:
        journal.deleteEntriesTo(5)
    except Killed:
        pass
    return bool(FileJournal(str(folder / "journal"))[-1][1] < 20)


def row_4_an_old_append_cuts_agreeing_entries(folder: Path) -> bool:
    node, wire = make()
    append_to(wire, (1, 0), rows(2, 6))
    append_to(wire, (1, 0), rows(2, 3))
    return bool(private(node, "raftLog")[-1][1] == 3)


def row_5_an_answer_without_term_commits(folder: Path) -> bool:
    node, wire = leading()
    node.put(b"held by nobody")
    node.doTick()
    before = node.raftCommitIndex
    acknowledge(node, wire, "c")  # of an older leadership: there is no telling
    node.doTick()
    return bool(node.raftCommitIndex > before)


def row_6_a_snapshot_chunk_commits_an_unverified_tail(folder: Path) -> bool:
    node, wire = make()
    append_to(wire, (1, 0), rows(2, 6))
    chunk = {"type": "append_entries", "term": 6, "commit_index": 900, "serialized": None}
    wire._onMessageReceived(Node("c"), chunk)
    return bool(node.raftCommitIndex == 6)


def row_7_a_later_reset_undoes_backing_up(folder: Path) -> bool:
    node, wire = leading()
    acknowledge(node, wire, "c", reset=True, success=False, next_node_idx=2)
    acknowledge(node, wire, "c", reset=True, success=False, next_node_idx=9)
    return bool(private(node, "raftNextIndex")[Node("c")] == 9)


def row_8_a_raising_command_runs_again_and_again(folder: Path) -> bool:
    node, wire = leading()
    node.put(b"poison")
    node.doTick()
    acknowledge(node, wire, "b")
    for _ in range(3):
        try:
            node.doTick()
        except ValueError:
            continue
    return node.seen.count(b"poison") == 3


def row_9_a_lost_forward_is_never_answered(folder: Path) -> bool:
    node, wire = make()
    append_to(wire, (1, 0), [])
    wire.is_open = False
    answers: list[Any] = []
    node.put(b"forwarded", callback=lambda result, error: answers.append(error))
    for _ in range(10):
        node.doTick()
    return not answers and len(private(node, "commandsWaitingReply")) == 1


def row_10_two_changes_are_in_force_at_once(folder: Path) -> bool:
    node, _ = leading()
    node.addNodeToCluster(Node("d"))
    node.addNodeToCluster(Node("e"))
    node.doTick()
    return len(node.otherNodes) == 4


def row_11_a_returning_node_deposes_a_leader(folder: Path) -> bool:
    node, wire = leading()
    ask = {"type": "request_vote", "term": 50, "last_log_index": 0, "last_log_term": 0}
    wire._onMessageReceived(Node("c"), ask)
    return not node._isLeader()


class Payload:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (self.path,)


def row_13_an_entry_is_code(folder: Path) -> bool:
    _, wire = make()
    made = folder / "made-by-an-entry"
    append_to(wire, (1, 0), [(b"\x02" + pickle.dumps(Payload(str(made))), 2, 5)])
    return made.exists()


def row_12_a_leader_that_nobody_hears_answers_reads(folder: Path) -> bool:
    node, wire = leading()
    node.put(b"old")
    node.doTick()
    acknowledge(node, wire, "b")
    node.doTick()
    for _ in range(20):  # b and c have long elected another and written there
        NOW_S[0] += 1
        node.doTick()
    return node._isLeader() and node.isReady() and node.seen == [b"old"]


def row_16_a_new_voter_counts_before_it_holds_anything(folder: Path) -> bool:
    node, wire = leading()
    node.addNodeToCluster(Node("d"))
    node.doTick()
    before = node.raftCommitIndex
    node.put(b"held by two of what were three")
    node.doTick()
    acknowledge(node, wire, "b")
    node.doTick()
    return Node("d") in node.otherNodes and node.raftCommitIndex == before


def row_14_it_forks_beside_threads_to_dump(folder: Path) -> bool:
    counts: list[int] = []

    def fork() -> int:
        counts.append(threading.active_count())
        return os.getpid()

    os.fork = fork
    is_over = threading.Event()
    beside = threading.Thread(target=is_over.wait)
    beside.start()
    node, _ = leading(fullDumpFile=str(folder / "dump"))
    node.forceLogCompaction()
    node.doTick()
    is_over.set()
    return counts == [2]


def row_15_a_large_entry_is_finished_twice(folder: Path) -> bool:
    node, wire = leading()
    batch = node.conf.appendEntriesBatchSizeBytes
    node._applyCommand(b"\x00" + b"z" * (2 * batch - 6), None)
    node.doTick()
    NOW_S[0] += 0.2
    wire.sent.clear()
    node.doTick()
    finishes = [m for m in wire.sent if m.get("transmission") == "finish"]
    return len(finishes) > len(OTHERS)


def main() -> None:
    library.monotonicTime = lambda: NOW_S[0]
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(globals()[name](Path(folder))))


if __name__ == "__main__":
    main()

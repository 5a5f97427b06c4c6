"""PySyncObj's Raft state behind plain names: the one file that knows the library's private ones.

What is the library's: state, term and vote variables, election deadline and its random choice, the
step to leadership with its no-op, membership plumbing and access to the log. What is said to peers,
counted and stored is not.
"""

from __future__ import annotations

import zlib
from typing import Any, cast

from pysyncobj import SyncObj, SyncObjConf
from pysyncobj.node import Node
from pysyncobj.syncobj import _RAFT_STATE
from pysyncobj.transport import Transport

from consensus.engine.config import EngineConfig
from consensus.engine.journal import Journal
from consensus.engine.library import monotonic_s
from consensus.engine.opening import Row
from consensus.engine.vote import VoteRecord

LIBRARY_BATCH_BYTES = (
    4 << 20
)  # entries stay far below it, so its path for larger ones is never taken


class PeerNode(Node):  # type: ignore[misc]  # the library is untyped
    """A node whose hash does not change from process to process."""

    def __hash__(self) -> int:
        return zlib.crc32(self.id.encode())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and other.id == self.id


class _Silent(Transport):  # type: ignore[misc]  # the library is untyped
    """The library is never let near a wire: engine and link speak for it."""

    def __init__(self) -> None:
        super().__init__(None, None, [])

    @property
    def ready(self) -> bool:
        return True

    def addNode(self, node: Node) -> None:
        pass

    def dropNode(self, node: Node) -> None:
        pass

    def send(self, node: Node, message: Any) -> bool:
        raise AssertionError("the library tried to send a message of its own")

    def destroy(self) -> None:
        pass


class LogView:
    """Journal and vote record in the shape the library expects of a journal."""

    def __init__(self, journal: Journal, vote: VoteRecord, commit_index: int) -> None:
        self._journal = journal
        self._vote = vote
        self._commit_index = commit_index

    @property
    def rows(self) -> list[Row]:
        return self._journal.rows

    def __len__(self) -> int:
        return len(self._journal.rows)

    def __getitem__(self, at: int | slice) -> Any:
        return self._journal.rows[at]

    def add(self, command: bytes, index: int, term: int) -> None:
        self._journal.append(index, term, command)

    def deleteEntriesFrom(self, at: int) -> None:
        self._journal.truncate_from(self._journal.base_index + at)

    def deleteEntriesTo(self, at: int) -> None:
        raise AssertionError("only the owner drops segments")

    def clear(self) -> None:
        raise AssertionError("only the owner resets the journal")

    def getCurrentTerm(self) -> int:
        return self._vote.term

    def getVotedForNodeId(self) -> str | None:
        return self._vote.voted_for

    def setCurrentTerm(self, term: int, voted_for: str | None) -> None:
        self._vote.save(term, voted_for)

    def getRaftCommitIndex(self) -> int:
        return self._commit_index

    def setRaftCommitIndex(self, index: int) -> None:
        self._commit_index = index

    def onOneSecondTimer(self) -> None:
        pass

    def _destroy(self) -> None:
        pass


def library_config(config: EngineConfig, log: LogView) -> Any:
    return SyncObjConf(
        autoTick=False,
        raftMinTimeout=config.election_ms_min / 1000,
        raftMaxTimeout=config.election_ms_max / 1000,
        appendEntriesPeriod=config.heartbeat_ms / 1000,
        leaderFallbackTimeout=config.leader_fallback_ms / 1000,
        appendEntriesUseBatch=True,
        appendEntriesBatchSizeBytes=LIBRARY_BATCH_BYTES,
        dynamicMembershipChange=True,
        useFork=False,
        fullDumpFile=None,
        journalFile=log,
        pollerType="select",
    )


class _SyncObj(SyncObj):  # type: ignore[misc]  # the library is untyped
    """The library's class under its own name, so that private names mean the same in both."""

    def __init__(self, config: EngineConfig, log: LogView, applied_index: int) -> None:
        others = [PeerNode(peer) for peer in sorted(config.voters) if peer != config.node_id]
        self.__raftCommitIndex: int
        self.__changeClusterIDx: int | None
        super().__init__(
            PeerNode(config.node_id),
            others,
            library_config(config, log),
            nodeClass=PeerNode,
            transport=_Silent(),
        )
        self.__raftLastApplied = applied_index

    def _onTick(self, timeToWait: float = 0.0) -> None:
        raise AssertionError("the engine ticks: the library's tick counts an unsynced leader")

    def __sendAppendEntries(self) -> None:
        """Taking the lead asks for this; the engine's next turn sends, with its own windows."""

    @property
    def state(self) -> int:
        return cast(int, self.__raftState)

    @property
    def is_leader(self) -> bool:
        return self.__raftState == _RAFT_STATE.LEADER  # type: ignore[no-any-return]  # untyped

    @property
    def is_candidate(self) -> bool:
        return self.__raftState == _RAFT_STATE.CANDIDATE  # type: ignore[no-any-return]  # untyped

    @property
    def term(self) -> int:
        return cast(int, self.__raftCurrentTerm)

    @property
    def voted_for(self) -> str | None:
        return cast("str | None", self.__votedForNodeId)

    @property
    def leader_id(self) -> str:
        return self.__raftLeader.id if self.__raftLeader is not None else ""

    @property
    def noop_index(self) -> int:
        return self.__noopIDx or 0

    @property
    def commit_index(self) -> int:
        return int(self.__raftCommitIndex)

    @commit_index.setter
    def commit_index(self, index: int) -> None:
        assert self.__raftCommitIndex <= index <= self.__raftLog[-1][1], "commit beyond the log"
        self.__raftCommitIndex = index
        self.__raftLog.setRaftCommitIndex(index)

    def jumped_to(self, index: int) -> None:
        """A snapshot was installed: everything up to here is committed and applied."""
        self.__raftLastApplied = index
        self.commit_index = max(index, self.__raftCommitIndex)

    @property
    def applied_index(self) -> int:
        return self.__raftLastApplied

    @applied_index.setter
    def applied_index(self, index: int) -> None:
        assert index == self.__raftLastApplied + 1, "entries are applied one by one"
        self.__raftLastApplied = index

    @property
    def is_election_due(self) -> bool:
        return self.__raftElectionDeadline <= monotonic_s()

    def wait_for_election(self, wait_s: float | None = None) -> None:
        """Set the election deadline; by default the library's random time from now."""
        chosen = self.__generateRaftTimeout() if wait_s is None else wait_s
        self.__raftElectionDeadline = monotonic_s() + chosen

    def enter_term(self, term: int, voted_for: str | None = None) -> None:
        """Durably, before anything is said in it."""
        self.__raftLog.setCurrentTerm(term, voted_for)
        self.__setCurrentTerm(term, voted_for)

    def follow(self, leader: str | None) -> None:
        self.__setState(_RAFT_STATE.FOLLOWER)
        self.__raftLeader = PeerNode(leader) if leader is not None else None

    def stand(self) -> None:
        self.__setState(_RAFT_STATE.CANDIDATE)
        self.__raftLeader = None

    def lead(self) -> None:
        self.__changeClusterIDx = None
        self.__onBecomeLeader()

    def may_change(self) -> bool:
        """One membership change at a time, and none before this leader's no-op is applied."""
        if self.__raftLastApplied < self.noop_index:
            return False
        return self.__changeClusterIDx is None or self.__raftLastApplied >= self.__changeClusterIDx

    def note_change(self, index: int) -> None:
        self.__changeClusterIDx = index

    def set_others(self, peers: list[str]) -> None:
        """Make the library's member set these, through its own plumbing."""
        wanted = {PeerNode(peer) for peer in peers}
        for node in sorted(wanted - self.__otherNodes, key=lambda node: node.id):
            self.__doChangeCluster(["add", node.id, node])
        for node in sorted(self.__otherNodes - wanted, key=lambda node: node.id):
            self.__doChangeCluster(["rem", node.id, node])

    def change_in(self, command: bytes) -> Any:
        """The library's parse of an entry: a membership request or None."""
        return self.__parseChangeClusterRequest(command)

    def rows_from(self, index: int, count: int, bytes_max: int) -> list[Row]:
        return cast("list[Row]", self.__getEntries(index, count, bytes_max))

    def truncate_from(self, index: int) -> None:
        assert index > self.__raftCommitIndex, (
            f"entry {index} is committed and may not be withdrawn"
        )
        self.__deleteEntriesFrom(index)


Raft = _SyncObj

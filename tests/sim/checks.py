"""What must hold whatever happens, checked as it happens.

It sees everything that any node applies, and what clients and workers were told; it changes
nothing. What does not hold raises Violation at once, so that the trace ends where it went wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from quorumesh.v1.peer_pb2 import Frame
from quorumesh.v1.tasks_pb2 import TaskEvent

from consensus.copying import digest_of_rows
from consensus.errors import Damaged
from consensus.ledger import Applied, invariants
from tests.sim.world import Beyond, Violation, World

if TYPE_CHECKING:
    from tests.sim.node import Process, SimNode

INVARIANTS_EVERY = 400  # entries applied by one node
ENDED = {
    TaskEvent.TASK_SUCCEEDED: 2,
    TaskEvent.TASK_FAILED: 3,
    TaskEvent.TASK_CANCELLED: 4,
}
SHORT_LIVED = b"~"  # ids of tasks that begin so are soon forgotten, and may then be submitted anew
DONE = (TaskEvent.SUBTASK_SUCCEEDED, TaskEvent.DELEGATED)


class Checks:
    """The witness of a whole run."""

    def __init__(self, world: World, nodes: dict[str, SimNode]) -> None:
        self.world, self.nodes = world, nodes
        self.leaders: dict[int, str] = {}
        self.digests: dict[int, bytes] = {0: bytes(32)}
        self.last_index = 0
        self.last_fence = 0
        self.fence_of: dict[int, int] = {}  # subtask to the fence of its last grant
        self.delegated: set[int] = set()  # subtasks whose completion added others
        self.done_by: dict[int, int] = {}  # subtask to the fence under which it took effect
        self.submitted: dict[bytes, int] = {}  # task to the revision of its submission
        self.ended: dict[bytes, int] = {}  # task to its final state, as first applied anywhere
        self.voters: dict[str, str] = {}
        self.members: dict[str, str] = {}
        self.applied_count = 0
        self.install_count = 0
        self.compaction_count = 0
        self.refused_count = 0
        self.beyond_count = 0  # 1: more came to pass than the mesh promises to stand
        self.has_rot = False
        self.doubtful: set[str] = set()  # whose rows may be others, for rot or for a copy
        # Of each revision, the hash of all rows, as sound nodes have it.
        self._wholes: dict[int, bytes] = {}
        self._copies: dict[int, tuple[str, bytes]] = {}  # the same of copies that were installed
        self.lost_commits = 0
        self.listeners: list[Listener] = []
        self.crowned: list[Callable[[Process], None]] = []

    # What nodes do.

    def leads(self, process: Process) -> None:
        """A node has become the leader of its term."""
        engine = process.core.engine
        known = self.leaders.setdefault(engine.term, process.node.node_id)
        if known != process.node.node_id:
            raise Violation(f"two leaders in term {engine.term}: {known}, {process.node.node_id}")
        for tell in self.crowned:
            tell(process)

    def believes(self, leader: Process, name: str, index: int) -> None:
        """A leader takes its entries to be durable at another node up to here: they must be there.

        What a leader commits rests on that alone (Raft, 5.3 and 5.4). It sees into the other's
        journal, which only a simulation can; a later leader may have cut what an older one believes.
        """
        engine, node = leader.core.engine, self.nodes[name]
        if node.process is None or node.is_harmed or node.core.engine.term > engine.term:
            return
        own, other = engine._seat.journal, node.core.engine._seat.journal
        is_cut_off = index < max(own.base_index, other.base_index)
        holds = index <= other.synced_index and own.term_at(index) == other.term_at(index)
        if node.core.engine.term < engine.term or not (is_cut_off or holds):
            raise Violation(
                f"{leader.node.node_id} counts in term {engine.term} on entry {index} at {name}, "
                f"which is in term {node.core.engine.term} and has synced {other.synced_index}"
            )

    def opened(self, process: Process) -> None:
        if process.node.is_rotten:
            return
        self._digest(process)

    def replaced(self, process: Process) -> None:
        self.install_count += 1
        if process.node.is_rotten:
            return
        if process.core.ledger.applied_index > self.last_index and self.has_rot:
            self.last_index = process.core.ledger.applied_index  # only a rotten node has seen these
        self._digest(process)
        self._invariants(process)
        self._installed(process)

    def _installed(self, process: Process) -> None:
        """A copy was sent: it must hold what sound nodes hold at its index, once one says what."""
        name, revision = process.node.node_id, process.core.ledger.applied_index
        if self.has_rot and revision not in self._wholes:
            self.doubtful.add(name)  # a copy may be sent that nobody compared
            self._rot_spreads(process)
        found = digest_of_rows(process.core.ledger_path, may_go_on=lambda: True)
        self._copies[revision] = (name, found)
        self._compare_copy(revision)

    def _rot_spreads(self, process: Process) -> None:
        """Nothing could be committed without the copy of a leader whose own ledger had rotted.

        docs/reliability.md names that as a limit. Once a majority of the voters holds what rotted,
        no comparison tells any more who is right.
        """
        sender = self.nodes.get(process.core.engine.leader_id)
        if sender is None or not sender.is_rotten:
            return
        process.node.is_harmed = process.node.is_rotten = True
        voters = process.core.ledger.voters()
        rotten = [name for name in voters if self.nodes[name].is_rotten]
        if 2 * len(rotten) > len(voters):
            raise Beyond(f"{', '.join(rotten)} hold what rotted at {sender.node_id}")

    def said(self, name: str, frame: Frame) -> None:
        """A node tells others what all its rows are at a revision."""
        digest, revision = frame.scrub_digest.whole_digest, frame.scrub_digest.revision
        if digest and name not in self.doubtful:
            self._wholes[revision] = digest
            self._compare_copy(revision)

    def _compare_copy(self, revision: int) -> None:
        name, found = self._copies.get(revision, ("", b""))
        if name and self._wholes.get(revision, found) != found:
            raise Violation(f"{name} was sent a copy at {revision} that sound nodes do not hold")

    def ended_process(self, process: Process) -> None:
        compaction = getattr(process.core, "compaction", None)
        if compaction is not None:
            self.compaction_count += compaction.done_count

    def refused(self, node: SimNode, damage: Damaged) -> None:
        self.refused_count += 1
        if not node.is_harmed:
            raise Violation(f"{node.node_id} refuses a folder that nothing damaged: {damage}")

    def applied(self, process: Process, applied: Applied) -> None:
        """One entry was applied by one node."""
        if process.node.is_rotten:
            return
        index = process.core.ledger.applied_index
        self.applied_count += 1
        self.world.note("apply", process.node.node_id, process.core.ledger.digest, f"{index}")
        self._digest(process)
        if applied.faults:
            raise Violation(f"a bug in apply at {index}: {applied.faults}")
        if index == self.last_index + 1:
            self._first_seen(process, index, applied)
        if self.applied_count % INVARIANTS_EVERY == 0:
            self._invariants(process)
        for listener in self.listeners:
            listener(process, applied)

    def _digest(self, process: Process) -> None:
        index, digest = process.core.ledger.applied_index, process.core.ledger.digest
        if index > self.last_index + 1:
            raise Violation(
                f"{process.node.node_id} is at {index}, nobody at {self.last_index + 1}"
            )
        known = self.digests.setdefault(index, digest)
        if known != digest:
            raise Violation(f"{process.node.node_id} differs at revision {index}")

    def _first_seen(self, process: Process, index: int, applied: Applied) -> None:
        self.last_index = index
        for grant in applied.grants:
            if grant.fence <= self.last_fence:
                raise Violation(f"fence {grant.fence} after {self.last_fence} at {index}")
            self.last_fence = self.fence_of[grant.subtask_ref] = grant.fence
        for event in applied.events:
            self._saw_event(index, event)
        if process.core.ledger.voters() != self.voters:
            self.voters = process.core.ledger.voters()

    def _saw_event(self, index: int, event: TaskEvent) -> None:
        if event.kind == TaskEvent.SUBMITTED:
            is_anew = event.task_id.startswith(SHORT_LIVED) and event.task_id in self.ended
            if event.task_id in self.submitted and not is_anew:
                raise Violation(f"task {event.task_id.hex()} was submitted twice, again at {index}")
            self.submitted[event.task_id] = index
            self.ended.pop(event.task_id, None)
        elif event.kind in ENDED:
            if event.task_id in self.ended:
                raise Violation(f"task {event.task_id.hex()} ended twice, again at {index}")
            self.ended[event.task_id] = ENDED[event.kind]
        elif event.kind in DONE:
            if event.kind == TaskEvent.DELEGATED:
                self.delegated.add(event.subtask_ref)
            self._saw_effect(index, event)

    def _saw_effect(self, index: int, event: TaskEvent) -> None:
        ref, fence = event.subtask_ref, event.fence
        known = self.done_by.setdefault(ref, fence)
        # What was delegated succeeds later under the same fence, once its join has.
        if known != fence:
            raise Violation(f"subtask {ref} took effect under {known} and again under {fence}")
        if self.fence_of.get(ref) != fence:
            raise Violation(
                f"subtask {ref} took effect under {fence}, granted {self.fence_of[ref]}"
            )

    def _invariants(self, process: Process) -> None:
        found = invariants.violations(process.core.ledger.connection)
        if found:
            raise Violation(f"{process.node.node_id}: {found[0]}")

    # What the mesh told.

    def told_accepted(self, task_id: bytes, revision: int) -> None:
        """A client was told that its task is there. (Who observes entries is told after it.)"""
        self.world.after_us(1, lambda: self._is_there(task_id, revision))

    def _is_there(self, task_id: bytes, revision: int) -> None:
        if self.submitted.get(task_id) != revision and not self.has_rot:
            raise Violation(
                f"task {task_id.hex()} was acknowledged at {revision}, but is of "
                f"{self.submitted.get(task_id)}"
            )

    def told_refused(self, task_id: bytes) -> None:
        """A client was told that nothing was written, and never sent it again."""
        if task_id in self.submitted:
            raise Violation(f"task {task_id.hex()} was said to be unwritten, but is there")

    def told_effect(self, ref: int, fence: int, *, has_spawned: bool) -> None:
        """A worker was told that its result counts."""
        self.world.after_us(1, lambda: self._has_effect(ref, fence, has_spawned))

    def _has_effect(self, ref: int, fence: int, has_spawned: bool) -> None:
        if has_spawned and ref not in self.delegated and not self.has_rot:
            raise Violation(f"what {ref} added under {fence} is lost")
        if self.done_by.get(ref) != fence and not self.has_rot:
            raise Violation(
                f"the result of {ref} under {fence} was accepted, but counted under "
                f"{self.done_by.get(ref)}"
            )

    # At the end.

    def settled(self, processes: list[Process]) -> None:
        """Everything has healed and been quiet: all ledgers are one, sound and finished."""
        for process in processes:
            self._invariants(process)
        digests = {process.core.ledger.full_digest() for process in processes}
        if len(digests) != 1:
            raise Violation("full digests differ at the end")


Listener = Callable[["Process", Applied], None]

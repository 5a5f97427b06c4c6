"""Whole copies of a ledger, bent and sent with their right digest: thrown away, or as good as sound."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from random import Random

from quorumesh.v1.peer_pb2 import Frame, SnapshotChunk

from consensus.copying import copy_ledger
from consensus.engine.config import CHUNK_BYTES_MAX
from consensus.engine.disk import Disk
from consensus.errors import Damaged
from tests.hostile.files import PAGE_BYTES, bent_page
from tests.hostile.mesh_of_one import SPECS, Node, copy_of_template
from tests.hostile.running import Kind
from tests.ledger.world import submit_command

TURNS_MAX = 6
COPIES = 16
NODE_EVERY_INPUTS = 50
_copies: list[tuple[int, int, bytes]] = []  # index, term and bytes; made once in a process


def copies(folder: Path) -> list[tuple[int, int, bytes]]:
    """Copies of one ledger as it grows."""
    if not _copies:
        ahead = Node(copy_of_template(folder, -1), Random(1))
        assert ahead.lead()
        for number in range(COPIES):
            ahead.propose(submit_command(f"more{number}", SPECS[number % len(SPECS)]))
            made = copy_ledger(ahead.core.ledger_path, folder, Disk())
            _copies.append((made.index, made.term, made.path.read_bytes()))
        ahead.core.close()
    return _copies


class Copied:
    """A follower that is sent copies by its leader, each of a later revision than the one it took."""

    def __init__(self, rng: Random, folder: Path) -> None:
        self._rng, self._folder, self._number = rng, folder, 0
        self._node: Node | None = None
        self._copies, self._taken_count = copies(folder), 0

    def make(self, rng: Random) -> object:
        return bent_page(rng, self._copies[self._taken_count][2])

    def feed(self, given: object) -> bool:
        assert isinstance(given, bytes)
        self._number += 1
        if self._node is None:
            self._node = Node(copy_of_template(self._folder, self._number), self._rng)
        try:
            is_taken = self._send(self._node, given)
        except Damaged:
            # Found only as it was read: the node takes itself out, as with a disk that decays.
            self._end()
            return False
        self._taken_count += is_taken
        if self._taken_count == len(self._copies) or self._number % NODE_EVERY_INPUTS == 0:
            self._end()
        return is_taken

    def _end(self) -> None:
        """The next is sent to another node, which has taken none yet."""
        if self._node is not None:
            self._node.core.close()
            shutil.rmtree(self._node.core.config.root)
        self._node, self._taken_count = None, 0

    def _send(self, node: Node, data: bytes) -> bool:
        if node.core.engine.leader_id != "n2":
            node.follow()
        engine, before = node.core.engine, node.core.applied_index
        index, term, _ = self._copies[self._taken_count]
        digest = hashlib.sha256(data).digest()
        for offset in range(0, len(data), CHUNK_BYTES_MAX):
            chunk = SnapshotChunk(
                index=index,
                entry_term=term,
                offset=offset,
                data=data[offset : offset + CHUNK_BYTES_MAX],
                total_bytes=len(data),
                digest=digest,
                commit_index=index,
            )
            node.core.frame_received("n2", Frame(term=engine.term, snapshot=chunk))
        assert node.core.snapshots.is_complete(), "a copy did not arrive"
        for _ in range(TURNS_MAX):
            node.turn(1)
            if not node.core.snapshots.is_complete():
                break
        else:
            raise AssertionError("a copy is neither taken nor thrown away")
        is_taken = node.core.applied_index == index
        assert is_taken or node.core.applied_index == before, "a copy was taken in part"
        assert not is_taken or len(data) % PAGE_BYTES == 0, "a copy of half pages was taken"
        return is_taken

    def check(self) -> None:
        """A sound one is taken, whatever this node threw away before."""
        if self._taken_count:
            self._end()  # it may have taken one that is not as sound as it looks
        self._node = self._node or Node(copy_of_template(self._folder, 0), self._rng)
        assert self._send(self._node, self._copies[self._taken_count][2])
        self._end()

    def close(self) -> None:
        self._end()


KINDS = (
    Kind(
        "copy-of-ledger",
        Copied,
        round_inputs=2_000,
        check_every_inputs=500,
        ci_inputs=30,
    ),
)

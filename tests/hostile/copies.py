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
from tests.hostile.mesh_of_one import Node, copy_of_template, honest_commands
from tests.hostile.running import Kind

TURNS = 6
NODE_EVERY_INPUTS = 50


class Copied:
    """A follower that is sent copies by its leader, one bent copy each time."""

    def __init__(self, rng: Random, folder: Path) -> None:
        self._rng, self._folder, self._number = rng, folder, 0
        self._node: Node | None = None
        ahead = Node(copy_of_template(folder, -1), rng)
        assert ahead.lead()
        ahead.propose(*honest_commands()[-2:])
        made = copy_ledger(ahead.core.ledger_path, folder, Disk())
        self._index, self._term, self._data = made.index, made.term, made.path.read_bytes()
        ahead.core.close()

    def make(self, rng: Random) -> object:
        return bent_page(rng, self._data)

    def feed(self, given: object) -> bool:
        assert isinstance(given, bytes)
        self._number += 1
        node = self._node or Node(copy_of_template(self._folder, self._number), self._rng)
        self._node = None
        is_refused = False
        try:
            is_refused = not self._send(node, given)
        except Damaged:
            # Found only as it was read: the node takes itself out, as with a disk that decays.
            return False
        finally:
            # One that threw a copy away is as it was before, and is sent the next.
            if is_refused and self._number % NODE_EVERY_INPUTS:
                self._node = node
            else:
                node.core.close()
                shutil.rmtree(node.core.config.root)
        return not is_refused

    def _send(self, node: Node, data: bytes) -> bool:
        if node.core.engine.leader_id != "n2":
            node.follow()
        engine, before = node.core.engine, node.core.applied_index
        digest = hashlib.sha256(data).digest()
        for offset in range(0, len(data), CHUNK_BYTES_MAX):
            chunk = SnapshotChunk(
                index=self._index,
                entry_term=self._term,
                offset=offset,
                data=data[offset : offset + CHUNK_BYTES_MAX],
                total_bytes=len(data),
                digest=digest,
                commit_index=self._index,
            )
            node.core.frame_received("n2", Frame(term=engine.term, snapshot=chunk))
        for _ in range(TURNS):
            node.turn(1)
        is_taken = node.core.applied_index == self._index
        assert is_taken or node.core.applied_index == before, "a copy was taken in part"
        assert not is_taken or len(data) % PAGE_BYTES == 0, "a copy of half pages was taken"
        return is_taken

    def check(self) -> None:
        assert self._send(Node(copy_of_template(self._folder, 0), self._rng), self._data)
        shutil.rmtree(self._folder / "state-0")

    def close(self) -> None:
        if self._node is not None:
            self._node.core.close()


KINDS = (
    Kind(
        "copy-of-ledger",
        Copied,
        round_inputs=300,
        check_every_inputs=300,
        ci_inputs=30,
        is_costly=True,
    ),
)

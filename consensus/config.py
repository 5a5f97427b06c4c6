"""What a replica is made of, and what of the world is handed to it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from quorumesh.v1.ledger_pb2 import Bootstrap

from consensus.backlog import UNAPPLIED_ENTRIES_MAX
from consensus.engine.disk import Disk
from consensus.ledger import Applied
from consensus.ports import Background, Clock, Link


class Observer(Protocol):
    """Who wants to know what was applied here. Called on the loop, in log order."""

    def entry_applied(self, applied: Applied) -> None: ...

    def ledger_replaced(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """What a replica is made of. `founding` only for the first node of a new mesh.

    `joined_voters` are the voters that a joining node was told of (node id to address); they hold
    until its ledger knows better.
    """

    node_id: str
    address: str
    root: Path
    founding: Bootstrap | None = None
    joined_voters: dict[str, str] = field(default_factory=dict)
    compact_entries: int = 20_000
    compact_wal_bytes: int = 32 << 20
    compact_journal_bytes: int = 64 << 20
    keep_entries: int = 4_000
    unapplied_entries_max: int = UNAPPLIED_ENTRIES_MAX  # by a ledger that cannot be written
    voters_max: int = 5
    segment_bytes_max: int = 8 << 20
    scrub_ms: int = 600_000  # between two comparisons of whole ledgers; 0: never
    hash_pace_ms: int = 4  # between two pieces of a whole ledger: nodes that share a machine go on


@dataclass(frozen=True, slots=True)
class Ports:
    """The world, as it is handed in."""

    link: Link
    clock: Clock
    background: Background
    rng: random.Random
    incarnation: int
    disk: Disk = field(default_factory=Disk)
    # Of the journal, so that they wait for no other work; None: they run in the background too.
    syncs: Background | None = None

"""Raft for one node: PySyncObj's ordering with our storage, replication rules and wire."""

from consensus.engine.config import EngineConfig
from consensus.engine.engine import Engine
from consensus.engine.journal import Journal
from consensus.engine.ports import Machine, SnapshotFile, SnapshotStore
from consensus.engine.vote import VoteRecord

__all__ = [
    "Engine",
    "EngineConfig",
    "Journal",
    "Machine",
    "SnapshotFile",
    "SnapshotStore",
    "VoteRecord",
]

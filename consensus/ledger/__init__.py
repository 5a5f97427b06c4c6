"""The task ledger: a deterministic machine over SQLite."""

from consensus.ledger import invariants
from consensus.ledger.limits import APPLY_VERSION, LEASE_MS
from consensus.ledger.machine import Ledger
from consensus.ledger.reader import Counts, OutOfRange, Reader
from consensus.ledger.results import Applied, CannotApply, GrantRef, RevokeRef

__all__ = [
    "APPLY_VERSION",
    "LEASE_MS",
    "Applied",
    "CannotApply",
    "Counts",
    "GrantRef",
    "Ledger",
    "OutOfRange",
    "Reader",
    "RevokeRef",
    "invariants",
]

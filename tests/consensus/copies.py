"""The copies of one ledger without a core around them, as several tests want them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consensus.directory import LedgerDirectory
from consensus.snapshots import Snapshots
from tests.consensus.cluster import AtOnce, World


def copies_of(path: Path, directory: LedgerDirectory, **others: Any) -> Snapshots:
    """Of the ledger at this path; what runs in the background is done at once, if `others` say nothing else."""
    usual: dict[str, Any] = {
        "background": AtOnce(),
        "clock": World(),
        "ledger_path": lambda: path,
        "replace": lambda copy, index: None,
    }
    return Snapshots(directory, **(usual | others))

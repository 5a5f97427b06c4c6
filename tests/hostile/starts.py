"""Whole nodes started on a folder with one hostile file: they start, or say why they cannot.

What reads each of these files is fed by itself as well, at less cost; here it is seen that nothing
between that reader and the start of a node takes its refusal for something else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from consensus.core import Core
from consensus.errors import ConsensusError
from consensus.ledger import CannotApply
from tests.hostile.files import bent_page
from tests.hostile.mesh_of_one import Node, copy_of_template, template
from tests.hostile.mutating import bend
from tests.hostile.papers import One
from tests.hostile.running import Kind, Target

BAR_INPUTS = 100_000


def _starts(name: str) -> Callable[[Random, Path], Target]:
    """A whole node is started on a folder in which one file is bent."""

    def begin(rng: Random, folder: Path) -> Target:
        source = template(folder)
        data = (source / name).read_bytes()
        places = [0]

        def take(given: object) -> None:
            assert isinstance(given, bytes)
            places[0] += 1
            root = copy_of_template(folder, places[0])
            (root / name).write_bytes(given)
            core: Core | None = None
            try:
                core = Node(root, rng).core
                core.turn()
            finally:
                if core is not None:
                    core.close()
                shutil.rmtree(root)

        bent = bent_page if name.endswith(".db") else bend

        def make(rng: Random) -> object:
            return bent(rng, data) if places[0] else data  # the first start is an honest one

        return One(take, make, (ConsensusError, CannotApply))

    return begin


KINDS = tuple(
    Kind(
        f"file-{word}-of-node",
        _starts(name),
        round_inputs=400,
        ci_inputs=30,
        bar_inputs=BAR_INPUTS,
    )
    for word, name in (("current", "CURRENT"), ("vote", "vote"), ("ledger", "ledger-0/ledger.db"))
)

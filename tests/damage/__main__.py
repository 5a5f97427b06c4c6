"""scripts/damage: flips bits and cuts files of nodes that have lived, and prints how each one ended."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.damage.campaign import damages, run, table
from tests.damage.folder import lived


def main() -> int:
    asked = argparse.ArgumentParser(prog="scripts/damage", description=__doc__)
    asked.add_argument("--seed", type=int, default=1)
    asked.add_argument("--flips", type=int, default=200, help="for each of two folders")
    asked.add_argument("--truncations", type=int, default=50, help="for each of two folders")
    given = asked.parse_args()
    bad = 0
    for is_killed in (False, True):
        with tempfile.TemporaryDirectory() as scratch:
            folder = lived(Path(scratch) / "lived", is_killed=is_killed)
            rng = random.Random(given.seed)
            found = damages(folder, rng, flips=given.flips, truncations=given.truncations)
            results = run(folder, Path(scratch) / "copy", found)
        print(f"a node that was {'killed' if is_killed else 'stopped'}, seed {given.seed}:")
        print(table(results))
        for one in results:
            if not one.is_allowed:
                print(f"NOT ALLOWED: {one}")
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

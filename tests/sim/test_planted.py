"""Each planted bug is caught within 200 seeds, by a promise that it breaks."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.sim import planted
from tests.sim.test_sim import ROOT

SEEDS_MAX = 200
# A bug that is planted where nothing grows any more ends in one of these, and has not been caught.
WITHERED = re.compile(r"(Name|Attribute|Type|Key|Index|Value|Import|ModuleNotFound)Error: ")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", planted.names())
def test_a_planted_bug_is_caught(name: str) -> None:
    command = [sys.executable, "-m", "tests.sim", "--planted", name, "--minutes", "1"]
    command += ["--seeds", f"0..{SEEDS_MAX - 1}", "--first", "--no-shrink", "--json"]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    last = json.loads(ended.stdout.splitlines()[-1])
    print(f"{name}: seed {last['seed']}: {last['violation']}")
    assert ended.returncode == 1, "not caught"
    assert last["violation"] and not WITHERED.match(last["violation"])

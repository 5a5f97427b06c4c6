"""Conversations with the ledger, replayed. REWRITE_GOLDEN=1 writes what it answers now."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.ledger.script import run_script

SCRIPTS = sorted((Path(__file__).parent / "golden").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_the_ledger_answers_as_it_did(path: Path) -> None:
    told = path.read_text(encoding="utf-8")

    answered = run_script(told)

    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(answered, encoding="utf-8")
    else:
        assert answered == told

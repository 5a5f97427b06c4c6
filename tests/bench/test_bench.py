"""The bench itself works: a run with few trials gives every figure that it promises."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from tests.bench.__main__ import ROWS, Trials, measure, table_of
from tests.e2e.mesh_process import ROOT

FEW = Trials(flow_subtasks=200, roundtrips=5, chains=1, fans=1, failovers=1, restart_tasks=1_000)


@pytest.mark.slow
def test_a_run_gives_every_figure_with_its_count(tmp_path: Path) -> None:
    figures = measure(tmp_path, FEW, lambda text: None)

    for key, *_ in ROWS:
        name, _, part = key.partition(".")
        figure = figures[name]
        assert isinstance(figure, dict)
        assert figure[part or "value"] > 0, key
        assert figure["n"] >= 1, key
    console = Console(width=120, record=True, quiet=True)
    console.print(table_of(figures))


def test_every_figure_is_explained() -> None:
    text = (ROOT / "tests" / "bench" / "README.md").read_text(encoding="utf-8")

    assert [key for key, *_ in ROWS if key.split(".")[0] not in text] == []

"""Fixtures for tests on real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh_process import LocalMesh


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[LocalMesh]:
    """An empty mesh: the test grows it. All its nodes have ended when the test is over."""
    with LocalMesh(tmp_path, slots=4, agents=["tests.workers.bad_agents"]) as local:
        yield local

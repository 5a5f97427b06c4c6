"""Faults on a folder of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faultlib.child import need_library
from tests.faultlib.control import Faults


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Faults]:
    need_library()
    switched = Faults(tmp_path / "data", near=tmp_path / "near", logs=True)
    yield switched
    switched.close()

"""All kinds of hostile input that the fuzzer knows, by name."""

from __future__ import annotations

from tests.hostile import frames, papers
from tests.hostile.running import Kind

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*frames.KINDS, *papers.KINDS)}

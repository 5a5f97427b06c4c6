"""All kinds of hostile input that the fuzzer knows, by name."""

from __future__ import annotations

from tests.hostile import commands, files, frames, papers
from tests.hostile.running import Kind

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (*frames.KINDS, *commands.KINDS, *files.KINDS, *papers.KINDS)
}

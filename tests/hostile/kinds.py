"""All kinds of hostile input that the fuzzer knows, by name."""

from __future__ import annotations

from tests.hostile import commands, copies, files, frames, papers, services
from tests.hostile.running import Kind

KINDS: dict[str, Kind] = {
    kind.name: kind
    for part in (frames, copies, commands, files, papers, services)
    for kind in part.KINDS
}

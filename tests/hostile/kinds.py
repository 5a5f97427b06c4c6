"""All kinds of hostile input that the fuzzer knows, by name, in the order in which a run feeds them."""

from __future__ import annotations

from tests.hostile import commands, copies, files, frames, papers, services, starts
from tests.hostile.running import Kind

# What a whole node is needed for comes last: it is slow, and other kinds have had the same bytes.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for part in (frames, commands, files, copies, papers, services, starts)
    for kind in part.KINDS
}

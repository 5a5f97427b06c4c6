"""The one file that reaches into PySyncObj's module and replaces clock, chance, journal and codec.

Done once, at import, and only for the exact source that this was written against.
"""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path
from typing import Any

import pysyncobj.syncobj as library
from pysyncobj.version import VERSION

from consensus.engine import codec
from consensus.ports import Clock

LIBRARY_VERSION = "0.3.17"
SYNCOBJ_SHA256 = "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4"


class _Ambient(threading.local):
    """Clock and chance of the engine that runs on this thread now; each entry point sets them."""

    clock: Clock | None = None
    rng: random.Random | None = None

    def enter(self, clock: Clock, rng: random.Random) -> None:
        self.clock, self.rng = clock, rng

    def monotonic_s(self) -> float:
        assert self.clock is not None, "the library ran outside an engine's entry point"
        return self.clock.monotonic_ms() / 1000

    def random(self) -> float:
        assert self.rng is not None, "the library ran outside an engine's entry point"
        return self.rng.random()


ambient = _Ambient()


def monotonic_s() -> float:
    """The time that the library sees."""
    return ambient.monotonic_s()


def _given_journal(journal: Any) -> Any:
    assert hasattr(journal, "rows"), "the library's own journals are not used"
    return journal


def check_source(version: str, source: bytes) -> None:
    """Refuse any PySyncObj but the one whose private names are used here."""
    found = hashlib.sha256(source).hexdigest()
    if version != LIBRARY_VERSION or found != SYNCOBJ_SHA256:
        raise ImportError(
            f"this engine is written against PySyncObj {LIBRARY_VERSION} (syncobj.py "
            f"{SYNCOBJ_SHA256[:12]}…), but {version} ({found[:12]}…) is installed"
        )


def _install() -> None:
    check_source(VERSION, Path(library.__file__).read_bytes())
    library.monotonicTime = ambient.monotonic_s
    library.random = ambient
    library.createJournal = _given_journal
    library.pickle = codec


_install()

"""What clients and workers saw, one operation a line, and how much of it was acknowledged when.

All of it is written on the load's loop; counts may be read from any thread.
"""

from __future__ import annotations

import itertools
import json
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

WRITES = frozenset({"submit", "cancel", "complete"})


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of one sequential process, ended or given up."""

    process: int
    node: str
    op: str
    key: str
    args: Mapping[str, object]
    result: str  # ok, refused, unknown
    value: Mapping[str, object]
    call_ns: int
    return_ns: int | None  # None: the outcome is unknown

    def line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


class History:
    """A file of operations, and the times of those that were acknowledged."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.operation_count = 0
        self.unknown_count = 0
        self._file = path.open("w", encoding="utf-8")
        self._process_count = 0
        self._ok_ns: list[int] = []
        self._write_ok_ns: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def new_process(self) -> int:
        """A number for one more sequential process; numbers are never used again."""
        self._process_count += 1
        return self._process_count

    def note(self, operation: Operation) -> None:
        self._file.write(operation.line() + "\n")
        self.operation_count += 1
        self.unknown_count += operation.result == "unknown"
        if operation.result == "ok" and operation.return_ns is not None:
            self._ok_ns.append(operation.return_ns)
            if operation.op in WRITES:
                self._write_ok_ns.append(operation.return_ns)

    def flush(self) -> None:
        self._file.flush()

    def rate_per_s(self, window_s: float) -> float:
        """Acknowledged operations a second over the window that ends now."""
        since_ns = now_ns() - int(window_s * 1e9)
        count = 0
        for at_ns in reversed(self._ok_ns):
            if at_ns < since_ns:
                break
            count += 1
        return count / window_s

    def has_write_after(self, at_ns: int) -> bool:
        return bool(self._write_ok_ns) and self._write_ok_ns[-1] > at_ns

    def write_gap_s(self, since_ns: int, until_ns: int, *, knows_before: bool = True) -> float:
        """The longest time between two acknowledged writes that touches this stretch.

        `knows_before=False`: nothing before it counts, the first gap begins with it.
        """
        times_ns = (
            self._write_ok_ns
            if knows_before
            else [at_ns for at_ns in self._write_ok_ns if at_ns >= since_ns]
        )
        return longest_gap_ns(times_ns, since_ns, until_ns) / 1e9

    def fewest_writes(self, since_ns: int, until_ns: int, window_s: float) -> int | None:
        """Acknowledged writes in the emptiest window of this stretch; None: no window fits."""
        return fewest_in_window(self._write_ok_ns, since_ns, until_ns, int(window_s * 1e9))


def fewest_in_window(
    times_ns: Sequence[int], since_ns: int, until_ns: int, window_ns: int
) -> int | None:
    """How many of the ordered times lie in the emptiest window inside a stretch."""
    last_ns = until_ns - window_ns
    if last_ns < since_ns:
        return None
    # The emptiest begins where the stretch does, just after one of the times, or ends with it.
    starts = [since_ns, last_ns, *(at + 1 for at in times_ns if since_ns <= at < last_ns)]
    return min(
        bisect_left(times_ns, start + window_ns) - bisect_left(times_ns, start) for start in starts
    )


def longest_gap_ns(times_ns: Sequence[int], since_ns: int, until_ns: int) -> int:
    """The longest gap in ordered times, the one that reaches into the stretch included.

    What is still open at the end of the stretch counts up to its end.
    """
    before = [at for at in times_ns if at < since_ns]
    inside = [at for at in times_ns if since_ns <= at <= until_ns]
    marks = [before[-1] if before else since_ns, *inside, until_ns]
    return max(late - early for early, late in itertools.pairwise(marks))


def now_ns() -> int:
    """The one clock of a history."""
    return time.monotonic_ns()

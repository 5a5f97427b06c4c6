"""How much is committed and waits for the machine: what a follower that cannot apply must bound."""

from __future__ import annotations

from collections import deque

from consensus.engine.journal import Journal


class Backlog:
    """The bytes of commands that are committed and not applied, counted as both ends move on.

    More than `bytes_max` is too much, and stays so until half of it is left: who catches up is then
    sent long runs of entries and not one at a time. Only what is committed counts, for that can be
    applied without anybody's help; a bound on other entries might keep them from being committed.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._lengths: deque[int] = deque()  # of the commands after `_applied_index`, in order
        self._applied_index = 0
        self._is_too_much = False
        self.bytes_waiting = 0

    def is_too_much(self, journal: Journal, *, applied_index: int, commit_index: int) -> bool:
        """Whether the owner should take no more entries, as of these two indexes."""
        self._count(journal, applied_index, min(commit_index, journal.last_index))
        limit = self._bytes_max // 2 if self._is_too_much else self._bytes_max
        self._is_too_much = self.bytes_waiting > limit
        return self._is_too_much

    def _count(self, journal: Journal, applied_index: int, last_index: int) -> None:
        while self._lengths and self._applied_index < applied_index:
            self.bytes_waiting -= self._lengths.popleft()
            self._applied_index += 1
        if not self._lengths:
            self._applied_index = applied_index
        for index in range(self._applied_index + len(self._lengths) + 1, last_index + 1):
            length_bytes = len(journal.command_at(index))
            self._lengths.append(length_bytes)
            self.bytes_waiting += length_bytes

"""Frames that must not leave before what they say is on disk."""

from __future__ import annotations

from collections import deque

from quorumesh.v1.peer_pb2 import Frame

from consensus.engine.config import OUTBOX_FRAMES_MAX
from consensus.ports import Link


class Outbox:
    """Holds frames back until the journal is synced up to the offset that each one needs.

    When full, a frame is refused and counted: to its receiver it is a frame that the network lost.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._held: deque[tuple[int, str, Frame]] = deque()
        self.refused_count = 0

    def __len__(self) -> int:
        return len(self._held)

    def send(self, peer: str, frame: Frame, *, needs_offset: int, synced_offset: int) -> bool:
        """Send now if nothing is missing, else hold. False: not sent and not held."""
        if needs_offset <= synced_offset:
            return self._link.send(peer, frame)
        if len(self._held) >= OUTBOX_FRAMES_MAX:
            self.refused_count += 1
            return False
        self._held.append((needs_offset, peer, frame))
        return True

    def release(self, synced_offset: int, term: int) -> None:
        """Send what has become true. What was meant for an older term says nothing any more."""
        while self._held and self._held[0][0] <= synced_offset:
            _, peer, frame = self._held.popleft()
            if frame.term == term:
                self._link.send(peer, frame)

    def drop_peer(self, peer: str) -> None:
        """Forget what a broken connection would have carried."""
        self._held = deque(held for held in self._held if held[1] != peer)

    def clear(self) -> None:
        self._held.clear()

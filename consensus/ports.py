"""What consensus needs of the world, as small Protocols. It is handed them; it makes none itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from quorumesh.v1.peer_pb2 import Frame


class Clock(Protocol):
    """Time, handed in. Monotonic time never goes back; wall time may do anything."""

    def monotonic_ms(self) -> int: ...

    def wall_ms(self) -> int: ...


class LinkHandler(Protocol):
    """What a link tells its owner. Called on the loop, never from inside `send`."""

    def link_up(self, peer: str) -> None: ...

    def link_down(self, peer: str) -> None: ...

    def frame_received(self, peer: str, frame: Frame) -> None: ...


class Link(Protocol):
    """Ordered, typed frames to peers; at most one live connection per peer.

    Promises: frames of one connection arrive in the order sent or not at all; after `link_down`
    no frame of that connection arrives any more.
    """

    def bind(self, handler: LinkHandler) -> None: ...

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        """Make these the peers: node id to host:port. Absent ones are disconnected."""

    def send(self, peer: str, frame: Frame) -> bool:
        """Queue a frame. False: not connected, or the bounded queue is full; nothing was queued."""

    def is_up(self, peer: str) -> bool: ...


class Background(Protocol):
    """Runs blocking work off the loop, and its `done` on the loop, with the exception or None."""

    def run(
        self, work: Callable[[], None], done: Callable[[BaseException | None], None]
    ) -> None: ...

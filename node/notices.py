"""What a node says of itself while it runs: only what changed, in words for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorumesh.v1.mesh_pb2 import Member

from consensus.view import ReplicaView


@dataclass(frozen=True, slots=True)
class Notice:
    """One line. `is_plain`: for whoever started the node, to be printed; otherwise for the log."""

    text: str
    is_plain: bool = False
    is_bad: bool = False


class Notices:
    """Compares how things are with how they were told last."""

    def __init__(self) -> None:
        self._voters: tuple[str, ...] = ()
        self._trouble = ""
        self._is_writable = False
        self._has_led = False
        self._alive: dict[str, bool] = {}

    def changes(self, view: ReplicaView, members: Sequence[Member], why: str) -> list[Notice]:
        """What is new since the last call. `why`: why nothing can be written, if that is known."""
        found = [
            *self._voters_changed(view),
            *self._peers_changed(view, members),
            *self._trouble_changed(view),
        ]
        if view.writable != self._is_writable:
            self._is_writable = view.writable
            if view.writable:
                text = "can write again" if self._has_led else "can write"
                found.append(Notice(f"{text}, as {view.role}"))
                self._has_led = True
            else:
                told = why or "no leader is heard"
                if told != view.trouble:
                    found.append(
                        Notice(f"read-only: {told.removeprefix('read-only: ')}", is_bad=True)
                    )
        return found

    def _voters_changed(self, view: ReplicaView) -> list[Notice]:
        before, self._voters = self._voters, view.voters
        if not before or before == view.voters:
            return []
        return [Notice(voters_text(len(view.voters)), is_plain=True)]

    def _peers_changed(self, view: ReplicaView, members: Sequence[Member]) -> list[Notice]:
        found = []
        for member in members:
            before = self._alive.get(member.node_id, False)
            if member.node_id != view.node_id and member.alive != before:
                now = "is up" if member.alive else "is down"
                text = f"{member.name or member.node_id} {now} ({member.address})"
                found.append(Notice(text, is_bad=not member.alive))
        self._alive = {member.node_id: member.alive for member in members}
        return found

    def _trouble_changed(self, view: ReplicaView) -> list[Notice]:
        if view.trouble == self._trouble:
            return []
        self._trouble = view.trouble
        if not view.trouble:
            return [Notice("the storage works again")]
        return [Notice(view.trouble, is_bad=True)]


def voters_text(count: int) -> str:
    """How many losses so many voters survive, in a sentence."""
    spare = (count - 1) // 2
    if count == 1:
        return "one voter: while it is down, nothing can be written"
    if count == 2:
        return "two voters survive no loss: while either is down, nothing can be written"
    are = "one of them may" if spare == 1 else f"{spare} of them may"
    return f"{count} voters: {are} be down at a time"

"""The only serialisation the library is left with: membership requests, as protobuf. Never code.

It stands in for the name `pickle` inside the library. Whatever is not a membership request is
refused, in both directions.
"""

from __future__ import annotations

from typing import NoReturn

from google.protobuf.message import DecodeError
from quorumesh.v1.ledger_pb2 import MembershipChange

from consensus.engine.config import COUNTED_MS_MAX

MEMBERSHIP_BYTES_MAX = 4_096
REGULAR, NO_OP, MEMBERSHIP = 0, 1, 2


class Undecodable(ValueError):
    """Bytes that are no membership request."""


class Malformed(ValueError):
    """A frame that no engine of ours sends. It is dropped and counted."""


def loads(data: bytes) -> list[str]:
    """The library's form of a membership request: ['add' or 'rem', node id]."""
    change = decode_change(data)
    return ["add" if change.add else "rem", change.node_id]


def dumps(value: object, protocol: int | None = None) -> NoReturn:
    raise Undecodable(f"the library may not serialise a {type(value).__name__}")


def to_bytes(data: bytes) -> bytes:
    return data


def load(file: object) -> NoReturn:
    raise Undecodable("the library may not read files")


def dump(value: object, file: object, protocol: int | None = None) -> NoReturn:
    raise Undecodable("the library may not write files")


def decode_change(data: bytes) -> MembershipChange:
    """A membership change out of bytes. Undecodable when it is none."""
    if len(data) > MEMBERSHIP_BYTES_MAX:
        raise Undecodable(f"a membership change of {len(data)} bytes")
    try:
        change = MembershipChange.FromString(data)
    except DecodeError as error:
        raise Undecodable("bytes that are no membership change") from error
    if not change.node_id:
        raise Undecodable("a membership change that names no node")
    if change.wall_ms > COUNTED_MS_MAX:
        raise Undecodable("a membership change at no time")
    return change


def is_command(command: bytes) -> bool:
    """Whether bytes from a peer may become a log entry at all."""
    if not 0 < len(command) <= 1 << 20 or command[0] > MEMBERSHIP:
        return False
    if command[0] != MEMBERSHIP:
        return True
    try:
        decode_change(command[1:])
    except Undecodable:
        return False
    return True

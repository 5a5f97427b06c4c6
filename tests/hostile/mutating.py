"""Makes hostile inputs of honest ones: bytes that are bent, messages whose fields lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

BYTES_MAX = 1 << 16  # an input grows no larger than this, unless its seed is
HONEST_SHARE = 0.02
EDGES = (0, 1, 2, 3, 127, 128, 255, 256, 4_095, 4_096, 1 << 20, (1 << 31) - 1, 1 << 31)
WIDE_EDGES = (
    *((1 << 32) - 1, 1 << 32, 1 << 40, (1 << 53) + 1, (1 << 62) - 1, 1 << 62),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 2, (1 << 64) - 1),
)
TEXTS = (
    *("", "n1", "n2", "n9", "x", "a" * 300, "\x00", "../../etc/passwd", "ledger-0", "é" * 40),
    *(
        "'; DROP TABLE task; --",
        "\ud7ff\U0010ffff",
        "node:n1",
        "127.0.0.1:1",
        "a..b:1",
        "_a:1",
        "[zz]:1",
        "%s%n",
        "a\nb",
    ),
)
BLOBS = (
    *(b"", b"\x00", b"\xff" * 16, b"\x80\x04cos\nsystem\n(S'true'\ntR.", b"\x00" * 5_000),
    *(b"\x08" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"[" * 3_000, b"SQLite format 3\x00"),
)
M = TypeVar("M", bound=Message)


def bend(rng: Random, data: bytes) -> bytes:
    """A few changes anywhere: bits, runs, copies of parts, edges, a cut. Now and then none."""
    if rng.random() < HONEST_SHARE:
        return data
    bent = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(bent) + 1)
        match rng.randrange(8):
            case 0 | 1 if at < len(bent):
                bent[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(bent):
                bent[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 3:
                del bent[at : at + rng.choice((1, 2, 4, 16, 256))]
            case 4:
                bent[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))
            case 5:
                start = rng.randrange(len(bent) + 1)
                bent[at:at] = bent[start : start + rng.choice((4, 16, 64, 1_024))]
            case 6:
                width = rng.choice((2, 4, 8))
                edge = rng.choice(EDGES + WIDE_EDGES) & ((1 << 8 * width) - 1)
                bent[at : at + width] = edge.to_bytes(width, rng.choice(("little", "big")))
            case _:
                bent[at:] = b"" if rng.random() < 0.5 else rng.choice(BLOBS)
    return bytes(bent[: max(BYTES_MAX, len(data))])


def bend_text(rng: Random, text: str) -> str:
    """Like bend, for text: what comes out may hold any characters."""
    return bend(rng, text.encode()).decode("utf-8", rng.choice(("replace", "ignore")))


def lie(rng: Random, message: M, near: Sequence[int] = ()) -> M:
    """A copy with one to three fields changed, at any depth. `near`: numbers that would matter."""
    made = type(message)()
    made.CopyFrom(message)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _lie_once(rng, made, near, depth=0)
    return made


def _lie_once(rng: Random, message: Message, near: Sequence[int], depth: int) -> None:
    fields = message.DESCRIPTOR.fields
    if not fields:
        return
    inner = [field for field, _ in message.ListFields() if field.message_type is not None]
    if inner and depth < 6 and rng.random() < 0.7:
        field = rng.choice(inner)
        value = getattr(message, field.name)
        if not field.is_repeated:
            _lie_once(rng, value, near, depth + 1)
        elif value and rng.random() < 0.7:
            _lie_once(rng, rng.choice(value), near, depth + 1)
        else:
            _rearrange(rng, value)
        return
    _set(rng, message, rng.choice(fields), near)


def _rearrange(rng: Random, values: object) -> None:
    """Drop, double or swap elements of a repeated field of messages."""
    kept = list(values)  # type: ignore[call-overload]
    match rng.randrange(4):
        case 0 if kept:
            kept.pop(rng.randrange(len(kept)))
        case 1 if kept:
            kept.append(rng.choice(kept))
        case 2:
            rng.shuffle(kept)
        case _:
            kept = kept * rng.choice((2, 2, 20)) if len(kept) < 100 else kept[:1]
    copies = [type(one).FromString(one.SerializeToString()) for one in kept]
    del values[:]  # type: ignore[attr-defined]
    values.extend(copies)  # type: ignore[attr-defined]


def _set(rng: Random, message: Message, field: FieldDescriptor, near: Sequence[int]) -> None:
    if rng.random() < 0.1:
        message.ClearField(field.name)
        return
    if field.message_type is not None:
        if field.is_repeated:
            getattr(message, field.name).add()
        else:
            getattr(message, field.name).SetInParent()
        return
    value = _VALUES[field.cpp_type](rng, field, near)
    if not field.is_repeated:
        setattr(message, field.name, value)
        return
    held = getattr(message, field.name)
    if held and rng.random() < 0.4:
        held[rng.randrange(len(held))] = value
    elif rng.random() < 0.2 and len(held) < 2_000:
        held.extend([value] * rng.choice((2, 10, 300)))
    else:
        held.append(value)


def _number(rng: Random, near: Sequence[int], edges: Sequence[int], bits: int) -> int:
    if near and rng.random() < 0.6:
        value = rng.choice(near) + rng.choice((-2, -1, 0, 0, 0, 1, 2))
    elif rng.random() < 0.9:
        value = rng.choice(edges)
    else:
        value = rng.getrandbits(bits)
    return max(0, value) & ((1 << bits) - 1)


def _signed(bits: int) -> Callable[[Random, FieldDescriptor, Sequence[int]], int]:
    def value(rng: Random, field: FieldDescriptor, near: Sequence[int]) -> int:
        unsigned = _number(rng, near, EDGES + WIDE_EDGES, bits)
        return unsigned - (1 << bits) if unsigned >> (bits - 1) else unsigned

    return value


def _chars(rng: Random, field: FieldDescriptor, near: Sequence[int]) -> str | bytes:
    is_bytes = field.type == FieldDescriptor.TYPE_BYTES
    if rng.random() < 0.8:
        return rng.choice(BLOBS) if is_bytes else rng.choice(TEXTS)
    data = rng.randbytes(rng.choice((1, 16, 32, 64)))
    return data if is_bytes else data.decode("latin-1")


_VALUES: dict[int, Callable[[Random, FieldDescriptor, Sequence[int]], object]] = {
    FieldDescriptor.CPPTYPE_UINT64: lambda rng, _, near: _number(rng, near, EDGES + WIDE_EDGES, 64),
    FieldDescriptor.CPPTYPE_UINT32: lambda rng, _, near: _number(rng, near, EDGES, 32),
    FieldDescriptor.CPPTYPE_INT64: _signed(64),
    FieldDescriptor.CPPTYPE_INT32: _signed(32),
    FieldDescriptor.CPPTYPE_BOOL: lambda rng, _, near: rng.random() < 0.5,
    FieldDescriptor.CPPTYPE_ENUM: lambda rng, _, near: rng.choice((0, 1, 2, 9, 100, -1)),
    FieldDescriptor.CPPTYPE_STRING: _chars,
    FieldDescriptor.CPPTYPE_DOUBLE: lambda rng, _, near: rng.choice(
        (0.0, -1.0, 1e308, float("inf"), float("-inf"), float("nan"))
    ),
    FieldDescriptor.CPPTYPE_FLOAT: lambda rng, _, near: rng.choice(
        (0.0, -1.0, 3e38, float("inf"), float("nan"))
    ),
}

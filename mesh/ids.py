"""Identifiers that callers choose: UUIDv7 (RFC 9562 section 5.7), so that they sort by time."""

from __future__ import annotations

import os
import time
import uuid


def uuid7() -> bytes:
    """Return a fresh UUIDv7 as 16 bytes. Two calls never give the same one."""
    stamp_ms = time.time_ns() // 1_000_000
    raw = bytearray(stamp_ms.to_bytes(6, "big") + os.urandom(10))
    raw[6] = 0x70 | (raw[6] & 0x0F)
    raw[8] = 0x80 | (raw[8] & 0x3F)
    return bytes(raw)


def id_text(raw: bytes) -> str:
    """Write a 16-byte id the way people see it: 8-4-4-4-12 hexadecimal digits."""
    return str(uuid.UUID(bytes=raw))


def id_bytes(text: str) -> bytes:
    """Read an id, dashes or not. ValueError: it is not a UUID."""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise ValueError(
            f"{text!r} is not a task id (32 hexadecimal digits, dashes allowed)"
        ) from None

"""Turns messages into plain data for `--json`: ids and digests as text, values unwrapped."""

from __future__ import annotations

import base64
import json
from typing import Any

from google.protobuf.message import Message
from quorumesh.v1.values_pb2 import Value

from mesh.ids import id_text
from mesh.specs import data_of


def plain(message: Message) -> dict[str, Any]:
    """Return every field by its name in the protobuf file, absent messages as None."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def plain_value(value: Value) -> Any:
    """Return what a value holds; bytes that are no JSON and no text are given in base64."""
    try:
        data = data_of(value)
    except ValueError:
        data = value.data
    if isinstance(data, bytes):
        text = base64.b64encode(data).decode()
        return {"content_type": value.content_type, "base64": text}
    return data


def dump(data: object) -> str:
    """One line of JSON."""
    return json.dumps(data, ensure_ascii=False)


def _field(message: Message, field: Any) -> Any:
    held = getattr(message, field.name)
    if field.is_repeated:
        return [_one(item, field) for item in held]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _one(held, field)


def _one(held: Any, field: Any) -> Any:
    if isinstance(held, Value):
        return plain_value(held)
    if isinstance(held, Message):
        return plain(held)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(held)
        return known.name if known else held
    if isinstance(held, bytes):
        return id_text(held) if len(held) == 16 and field.name.endswith("_id") else held.hex()
    return held

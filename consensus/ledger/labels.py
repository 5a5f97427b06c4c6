"""Which label an output votes for when its worker named none."""

from __future__ import annotations

import json
from hashlib import blake2b

LABEL_CHARS_MAX = 256


def label_of(data: bytes, content_type: str) -> str:
    """The text of a JSON string, cut to 256 characters; of anything else its digest in hex."""
    if content_type in ("", "application/json") and data[:1] == b'"':
        try:
            text = json.loads(data)
        except ValueError:
            text = None
        if isinstance(text, str):
            # A lone surrogate cannot be stored as text.
            return text[:LABEL_CHARS_MAX].encode("utf-8", "replace").decode()
    return blake2b(data, digest_size=16).hexdigest()

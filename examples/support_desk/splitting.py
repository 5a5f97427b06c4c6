"""Decides, without a model, whether a question is several questions, and which.

It splits at question marks and semicolons, and at "and" or a comma only where what follows opens a
question of its own: "is and ==" stays whole, "…, and how do I …" does not.
"""

from __future__ import annotations

import re

PARTS_MAX = 8
WORDS_MIN = 2  # fewer are a greeting

_CODE = re.compile(r"`[^`]*`|(?<!\w)'[^'\n]{1,60}'(?!\w)|\"[^\"]*\"")
_ENDS = re.compile(r"[?;!]+\s*|(?<=[a-z])\.\s+(?=[A-Z])|\n+")
_OPENER = (
    r"(?:how|what|why|when|where|which|who)\b|(?:is|are|do|does|can|could|should|will)\s+"
    r"(?:i|it|the|a|an|there|you|we|they|this|that)\b"
)
_JOINT = re.compile(
    rf"(?:,\s*|\s+)(?:(?:and|or|but|also|then)\s+)+(?=(?:{_OPENER}))", re.IGNORECASE
)
_COMMA = re.compile(
    r",\s+(?=(?:how|what|why|when|where|which|who)\s+(?:do|does|is|are|can)\b)", re.I
)
_POLITE = re.compile(
    r"^(?:(?:hi|hello|hey|please|thanks|thank you|so|also|and|then|ok)\b[,.!\s]*)+", re.IGNORECASE
)
_POINTS_BACK = re.compile(r"\b(?:it|its|them|they|that|those|this|these)\b", re.IGNORECASE)


def split_question(text: str) -> list[str]:
    """The questions in a text, in order, each able to stand alone. Never empty for text with words.

    A part that only points back ("when do I use it?") is given the part before it in brackets.
    """
    hidden: list[str] = []

    def hide(match: re.Match[str]) -> str:
        hidden.append(match.group())
        return f"\x00{len(hidden) - 1}\x00"

    masked = _CODE.sub(hide, text)
    parts = [piece for end in _ENDS.split(masked) for piece in _COMMA.split(end)]
    parts = [piece for part in parts for piece in _JOINT.split(part)]
    found: list[str] = []
    for part in parts:
        plain = re.sub(r"\x00(\d+)\x00", lambda match: hidden[int(match.group(1))], part)
        plain = _POLITE.sub("", plain.strip()).strip(" ,.")
        if len(plain.split()) < WORDS_MIN:
            continue
        if found and _POINTS_BACK.search(plain) and len(plain.split()) <= 7:
            plain = f"{plain} ({found[-1].split(' (')[0].rstrip('?')})"
        found.append(_asked(plain))
    return found or [text.strip()]


def _asked(part: str) -> str:
    return part[0].upper() + part[1:] + ("" if part.endswith("?") else "?")

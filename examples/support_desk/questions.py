"""The questions people ask, and the topics whose text answers each.

Wordings are those of people, not of the documentation; nothing was reworded so that an agent finds
it. A question with several topics is answered by any of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Question:
    """One question of the batch: q01, q02, …"""

    id: str
    text: str
    topics: frozenset[str]


@cache
def load_questions() -> tuple[Question, ...]:
    """All questions, in order."""
    file = resources.files("examples.support_desk").joinpath("questions.json")
    return tuple(
        Question(f"q{n:02}", item["question"], frozenset(item["topics"]))
        for n, item in enumerate(json.loads(file.read_text("utf-8")), start=1)
    )

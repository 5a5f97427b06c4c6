"""The documentation that ships inside Python (`pydoc_data.topics`), cut into passages.

The same topic names exist on Python 3.11 to 3.14; the texts differ a little. Nothing is downloaded.
"""

from __future__ import annotations

import platform
import pydoc
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

PASSAGE_CHARS_MIN = 240  # shorter paragraphs are joined with the next one under the same heading
PASSAGE_CHARS_MAX = 1_100
SHARED_CHARS_MIN = 40  # shorter paragraphs ("See also:") may repeat without being the same text

_UNDERLINE = re.compile(r"^([*=\-~\"^+#])\1{2,}$")
_QUOTED = re.compile(r'"([^"\s]+)"')
_DEFINED = re.compile(r"^(?:class |async )?((?:[a-z]+\.)?[A-Za-z_]\w{2,})\([^\n]*\)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Passage:
    """A few paragraphs that belong together, and where they stand."""

    topic: str
    title: str
    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class Topic:
    """One text of the documentation, by all the names under which people look for it."""

    name: str
    title: str
    chars: int  # of the whole text
    headings: tuple[str, ...]
    help_names: tuple[str, ...]  # what `help()` calls it: FORMATTING, TRUTHVALUE
    keywords: tuple[str, ...]  # reserved words whose help leads here
    symbols: tuple[str, ...]  # operators and delimiters whose help leads here
    defined: tuple[str, ...]  # functions, methods and attributes that it defines
    related: tuple[str, ...]  # topics that it names as related
    passages: tuple[Passage, ...]

    @property
    def source(self) -> str:
        """Where a reader finds it: what to type at Python's own prompt."""
        names = (*self.help_names, *self.keywords, self.name)
        name = self.name if self.name in self.keywords else names[0]
        return f"help({name!r}), Python {platform.python_version()}, topic {self.name}"


@cache
def topics() -> dict[str, Topic]:
    """Every topic of this Python that has a text of its own, by name."""
    texts = _texts()
    names = _names_of_help()
    passages = _passages(texts)
    found: dict[str, Topic] = {}
    for name in sorted(texts):
        if not passages[name]:
            continue
        helps = names.get(name, _Names())
        title, headings = _headings(texts[name])
        found[name] = Topic(
            name=name,
            title=title or name,
            chars=len(texts[name]),
            headings=headings,
            help_names=tuple(helps.helps),
            keywords=tuple(helps.keywords),
            symbols=tuple(helps.symbols),
            defined=tuple(sorted(set(_DEFINED.findall(texts[name])))),
            related=tuple(helps.related),
            passages=passages[name],
        )
    return found


@cache
def passages() -> tuple[Passage, ...]:
    """All passages, in the order of their topics' names."""
    return tuple(passage for topic in topics().values() for passage in topic.passages)


class _Names:
    """What `pydoc.Helper` calls one text."""

    def __init__(self) -> None:
        self.helps: list[str] = []
        self.keywords: list[str] = []
        self.symbols: list[str] = []
        self.related: list[str] = []


def _texts() -> dict[str, str]:
    from pydoc_data import topics as shipped

    return dict(shipped.topics)


def _names_of_help() -> dict[str, _Names]:
    """Invert the tables of `pydoc.Helper`: text name to help names, keywords, symbols, related."""
    helper = pydoc.Helper
    found: dict[str, _Names] = {}
    for kind, table in (("helps", helper.topics), ("keywords", helper.keywords)):
        for name, target in table.items():
            label = _label_of(name, table)
            if label:
                getattr(found.setdefault(label, _Names()), kind).append(name)
            if label and isinstance(target, tuple):
                labels = (_label_of(other, helper.topics) for other in target[1].split())
                found[label].related.extend(other for other in labels if other)
    for symbol, targets in helper.symbols.items():
        for target in targets.split():
            label = _label_of(target, helper.topics) or _label_of(target, helper.keywords)
            if label:
                found.setdefault(label, _Names()).symbols.append(symbol)
    return found


def _label_of(name: str, table: Mapping[str, object]) -> str:
    """Follow a help name to the name of its text; empty when there is none."""
    for _ in range(4):
        target = table.get(name) or pydoc.Helper.topics.get(name) or pydoc.Helper.keywords.get(name)
        if isinstance(target, tuple):
            return str(target[0])
        if not isinstance(target, str) or not target:
            return ""
        if target == name:
            return target
        name = target
    return ""


def _passages(texts: dict[str, str]) -> dict[str, tuple[Passage, ...]]:
    """Cut all texts. A paragraph that several topics share belongs to the shortest of them.

    Long chapters repeat their sections' texts: without this rule they would win every question.
    """
    taken: set[str] = set()
    found: dict[str, tuple[Passage, ...]] = {}

    def specific_first(name: str) -> tuple[int, bool, str]:
        return len(texts[name]), name not in texts[name].split("\n", 1)[0], name

    for name in sorted(texts, key=specific_first):
        kept = []
        for title, heading, paragraph in _paragraphs(texts[name]):
            plain = " ".join(paragraph.split())
            if len(plain) >= SHARED_CHARS_MIN and plain in taken:
                continue
            taken.add(plain)
            kept.append(Passage(topic=name, title=title, heading=heading, text=paragraph))
        found[name] = _joined(kept)
    return found


def _joined(paragraphs: list[Passage]) -> tuple[Passage, ...]:
    """Join short paragraphs with what follows them under the same heading."""
    done: list[Passage] = []
    for passage in paragraphs:
        last = done[-1] if done else None
        if (
            last is not None
            and last.heading == passage.heading
            and (len(last.text) < PASSAGE_CHARS_MIN or passage.text.startswith(" "))
            and len(last.text) + len(passage.text) <= PASSAGE_CHARS_MAX
        ):
            text = f"{last.text}\n\n{passage.text}"
            done[-1] = Passage(last.topic, last.title, last.heading, text)
        else:
            done.append(passage)
    return tuple(passage for passage in done if len(passage.text) >= SHARED_CHARS_MIN)


def _paragraphs(text: str) -> list[tuple[str, str, str]]:
    """(title, heading, paragraph) for each block between blank lines that is not a heading."""
    title = heading = ""
    found = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        lines = block.split("\n")
        if len(lines) >= 2 and _UNDERLINE.match(lines[1].strip()):
            heading = lines[0].strip()
            title = title or heading
            lines = lines[2:]
        paragraph = "\n".join(lines).rstrip()
        if paragraph.strip():
            found.append((title, heading or title, paragraph))
    return found


def _headings(text: str) -> tuple[str, tuple[str, ...]]:
    lines = text.split("\n")
    found = [
        line.strip()
        for line, below in pairwise(lines)
        if line.strip() and _UNDERLINE.match(below.strip())
    ]
    return (found[0] if found else ""), tuple(found)

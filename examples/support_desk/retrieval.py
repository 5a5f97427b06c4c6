"""Three different ways to find the passage that answers a question; none is a language model.

Bm25: word counts of passages with the Okapi BM25 formula (library bm25s). Tfidf: cosine of TF-IDF
vectors of whole topics, over words and pairs of words (scikit-learn). Names: what topics are
called and what they define, no prose at all.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from examples.support_desk import corpus

STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """a about all an are at be been between by can could did difference different do does doing
        don done down for from get gets give gives go goes good had happen happens has have how i if
        in into is isn it its just like make makes many me mean means more much my need no not of on
        one only or our out over own python s same should so some something such t than that the
        their them then there these they thing this those to two up use used uses using want was way
        we what when where whether which while who why will with work works would you your""",
    )
)
# Reserved words that are common English too: they count only where they are marked as code.
ORDINARY_WORDS = frozenset(
    re.findall(r"\w+", "and as for from if in is not or pass return try while with else")
)
FUZZY_CHARS_MIN = 6

_MARKED = (
    r"[`'\"“”‘’]?{0}[`'\"“”‘’]?\s+(?:keyword|statement|loop|clause|operator|block|expression)s?\b"
)


@dataclass(frozen=True, slots=True)
class Found:
    """The best passage for a question, and how sure the agent is, in its own unit."""

    topic: str
    score: float
    passage: str
    source: str


Search = Callable[[str], Found]


@cache
def bm25() -> Search:
    """Rank passages by Okapi BM25 over their words."""
    import bm25s

    passages = corpus.passages()
    index = bm25s.BM25()
    texts = [f"{passage.title} {passage.heading} {passage.text}" for passage in passages]
    index.index([stems(text) for text in texts], show_progress=False)

    def search(question: str) -> Found:
        known = [stem for stem in stems(question) if stem in index.vocab_dict]
        if not known:
            return _found(0, 0.0)
        scores = index.get_scores(known)
        best = int(scores.argmax())
        return _found(best, float(scores[best]))

    return search


@cache
def tfidf() -> Search:
    """Rank whole topics by the cosine between TF-IDF vectors of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    topics = list(corpus.topics().values())
    vectorizer = TfidfVectorizer(stop_words="english", ngram_range=(1, 2), sublinear_tf=True)
    matrix = vectorizer.fit_transform(_whole_text(topic) for topic in topics)

    def search(question: str) -> Found:
        scores = (matrix @ vectorizer.transform([question]).T).toarray().ravel()
        best = int(scores.argmax())
        return best_in_topic(question, topics[best].name, float(scores[best]))

    return search


@cache
def names() -> Search:
    """Rank topics by the names in the question: symbols, reserved words, methods, headings."""
    index = _NameIndex()

    def search(question: str) -> Found:
        topic, score = index.best(question)
        return best_in_topic(question, topic, score)

    return search


def best_in_topic(question: str, name: str, score: float = 0.0) -> Found:
    """The passage of one topic that shares most of its rarer words with the question."""
    topic = corpus.topics()[name]
    wanted = set(stems(question))
    rarity = _rarity()

    def overlap(passage: corpus.Passage) -> float:
        words = Counter(stems(passage.text))
        return sum(rarity.get(word, 1.0) for word in wanted if word in words)

    best = max(topic.passages, key=overlap)
    return Found(topic=name, score=score, passage=best.text, source=topic.source)


def stems(text: str) -> list[str]:
    """Words without common endings and without stop words, in lower case."""
    found = []
    for word in re.findall(r"[a-z_][a-z_0-9]+", text.lower()):
        if word not in STOPWORDS:
            found.append(_stem(word))
    return found


def _stem(word: str) -> str:
    if word.startswith("__"):
        return word
    for ending, put in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("s", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            return word[: -len(ending)] + put
    return word


def _whole_text(topic: corpus.Topic) -> str:
    """All that a topic owns, its title three times: that says more than any other word."""
    parts = [topic.title] * 3
    parts.extend(f"{passage.heading} {passage.text}" for passage in topic.passages)
    return " ".join(parts)


def _found(index: int, score: float) -> Found:
    passage = corpus.passages()[index]
    source = corpus.topics()[passage.topic].source
    return Found(topic=passage.topic, score=score, passage=passage.text, source=source)


@cache
def _rarity() -> dict[str, float]:
    """How telling a stem is: the share of passages that do without it, squared."""
    passages = corpus.passages()
    seen = Counter(word for passage in passages for word in set(stems(passage.text)))
    return {word: (1 - count / len(passages)) ** 2 for word, count in seen.items()}


class _NameIndex:
    """All names of all topics, each with what it is worth there."""

    def __init__(self) -> None:
        self.weights: dict[str, dict[str, float]] = {}
        self.symbols: dict[str, dict[str, float]] = {}
        self._taken: set[str] = set()
        for topic in sorted(corpus.topics().values(), key=lambda topic: topic.chars):
            self._add_topic(topic)
        for table in (self.weights, self.symbols):
            for holders in table.values():
                for name in holders:  # a name that many topics share says little about each
                    holders[name] /= len(holders) ** 0.7
        self.fuzzy = sorted(name for name in self.weights if len(name) >= FUZZY_CHARS_MIN)

    def _add_topic(self, topic: corpus.Topic) -> None:
        def put(name: str, worth: float) -> None:
            holders = self.weights.setdefault(name, {})
            holders[topic.name] = max(worth, holders.get(topic.name, 0.0))

        for symbol in topic.symbols:
            self.symbols.setdefault(symbol, {})[topic.name] = 4.0
        for keyword in topic.keywords:
            put(keyword.lower(), 6.0)
        # What a chapter repeats from its sections is the section's: shorter topics come first.
        for defined in set(topic.defined) - self._taken:
            put(defined.rsplit(".", 1)[-1].lower(), 5.0)
        for name in (topic.name, *topic.help_names):
            for word in stems(name.replace("-", " ")):
                put(word, 4.0)
        for word in stems(topic.title):
            put(word, 3.0)
        for heading in set(topic.headings) - self._taken:
            for word in stems(heading):
                put(word, 2.0)
        self._taken.update(topic.defined, topic.headings)

    def best(self, question: str) -> tuple[str, float]:
        """The topic whose names fit best. Ties go to the name that sorts first."""
        scores: dict[str, float] = defaultdict(float)
        for name in self._names_in(question):
            for topic, worth in self.weights.get(name, {}).items():
                scores[topic] += worth
        for symbol in re.findall(r"(?<![\w])[^\w\s?,.!()'`\"]{1,3}(?![\w.])", question):
            for topic, worth in self.symbols.get(symbol, {}).items():
                scores[topic] += worth
        for topic in sorted(scores):  # what the related topics have in common speaks for them too
            for related in set(corpus.topics()[topic].related):
                if related in scores and related != topic:
                    scores[related] += 0.1 * scores[topic]
        if not scores:
            return "types", 0.0
        topic = min(scores, key=lambda name: (-scores[name], name))
        return topic, float(scores[topic])

    def _names_in(self, question: str) -> list[str]:
        lowered = question.lower()
        found = []
        for raw in re.findall(r"[a-z_][a-z_0-9]*", lowered):
            if raw in ORDINARY_WORDS and not self._is_marked(raw, lowered):
                continue
            if raw in self.weights:
                found.append(raw)
            elif raw in STOPWORDS:
                continue
            elif _stem(raw) in self.weights:
                found.append(_stem(raw))
            elif len(raw) >= FUZZY_CHARS_MIN:
                found.extend(difflib.get_close_matches(raw, self.fuzzy, n=1, cutoff=0.85))
        return list(dict.fromkeys(found))

    @staticmethod
    def _is_marked(word: str, question: str) -> bool:
        quoted = re.search(rf"[`'\"“‘]{word}[`'\"”’]", question)
        return bool(quoted or re.search(_MARKED.format(rf"\b{word}\b"), question))

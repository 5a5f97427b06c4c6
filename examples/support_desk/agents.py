"""The desk's agents, loaded by workers: `mesh node start --agents examples.support_desk.agents`.

A question becomes three voters, a ballot and a writer, all spawned by `desk.answer`; `desk.split`
and `desk.batch` spawn one `desk.answer` per part or question, and a subtask that joins them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from examples.support_desk import corpus, retrieval
from examples.support_desk.splitting import PARTS_MAX, split_question
from mesh import Agent, Ballot, Context, Final, NeedOutput, Spawn, Subtask

VOTERS = ("bm25", "tfidf", "names")
QUESTIONS_MAX = 500
QUESTION_CHARS_MAX = 2_000
QUOTE_CHARS_MAX = 420  # a batch's join reads all answers: together they must stay a small value

desk = Agent("support-desk")


class Ask(msgspec.Struct, frozen=True):
    """A question, and how long each voter takes: retrieval is quick, models are not."""

    question: str
    think_ms: dict[str, int] = {}
    hear_all: bool = False  # decide only when all three have voted


class Write(msgspec.Struct, frozen=True):
    question: str


class Batch(msgspec.Struct, frozen=True):
    questions: list[str]
    think_ms: dict[str, int] = {}


class Answer(msgspec.Struct, frozen=True):
    """What the writer hands on."""

    question: str
    topic: str
    answer: str
    quote: str
    source: str
    votes: dict[str, int]


@desk.skill("desk.bm25")
def by_bm25(ask: Ask, context: Context) -> retrieval.Found | None:
    """Vote by word statistics of passages."""
    return _vote(retrieval.bm25(), "bm25", ask, context)


@desk.skill("desk.tfidf")
def by_tfidf(ask: Ask, context: Context) -> retrieval.Found | None:
    """Vote by the angle between the question and whole topics."""
    return _vote(retrieval.tfidf(), "tfidf", ask, context)


@desk.skill("desk.names")
def by_names(ask: Ask, context: Context) -> retrieval.Found | None:
    """Vote by names: symbols, reserved words, methods, headings."""
    return _vote(retrieval.names(), "names", ask, context)


@desk.skill("desk.answer")
def answer(ask: Ask) -> Spawn:
    """Put one question to the three voters; the writer answers from what they decide."""
    question = _checked(ask.question)
    voters = [
        Subtask(
            voter, f"desk.{voter}", msgspec.structs.replace(ask, question=question), ballot="vote"
        )
        for voter in VOTERS
    ]
    writer = Subtask("write", "desk.write", Write(question), needs=["vote"])
    ballot = Ballot("vote", hear_all=ask.hear_all, plurality=True)
    return Spawn([*voters, writer], join="write", ballots=[ballot])


@desk.skill("desk.write")
def write(ask: Write, needs: dict[str, NeedOutput]) -> Answer:
    """Quote the passage that the winning side found, and say where it stands."""
    (ballot,) = needs.values()
    passage, source = ballot.value["passage"], ballot.value["source"]  # of the first winning voter
    quote = shorten(passage, QUOTE_CHARS_MAX)
    return Answer(
        question=ask.question,
        topic=ballot.label,
        answer=f"See “{corpus.topics()[ballot.label].title}”. The documentation says:\n{quote}",
        quote=quote,
        source=source,
        votes=ballot.tallies,
    )


@desk.skill("desk.split")
def split(ask: Ask) -> Spawn:
    """Cut a compound question into its parts; each is answered on its own, then put together."""
    parts = split_question(_checked(ask.question))
    if len(parts) > PARTS_MAX:
        raise Final(f"{len(parts)} questions in one: ask at most {PARTS_MAX}", code="BAD_INPUT")
    asks = {f"part{n}": part for n, part in enumerate(parts, start=1)}
    subtasks = [
        Subtask(name, "desk.answer", msgspec.structs.replace(ask, question=part))
        for name, part in asks.items()
    ]
    join = Subtask("compose", "desk.compose", needs=list(asks))
    return Spawn([*subtasks, join], join="compose")


@desk.skill("desk.compose")
def compose(needs: dict[str, NeedOutput]) -> dict[str, Any]:
    """One answer out of the answers to the parts, in the order they were asked."""
    parts = [needs[name].value for name in sorted(needs, key=_number)]
    text = "\n\n".join(
        f"{n}. {part['question']}\n{part['quote']}\n[{part['source']}]"
        for n, part in enumerate(parts, start=1)
    )
    return {"answer": text, "parts": parts}


@desk.skill("desk.batch")
def batch(asked: Batch) -> Spawn:
    """One `desk.answer` per question, and one subtask that collects what came of them."""
    if not 1 <= len(asked.questions) <= QUESTIONS_MAX:
        raise Final(f"a batch has 1 to {QUESTIONS_MAX} questions", code="BAD_INPUT")
    asks = {
        f"q{n:02}": Ask(_checked(question), asked.think_ms, hear_all=True)
        for n, question in enumerate(asked.questions, start=1)
    }
    subtasks = [Subtask(name, "desk.answer", ask) for name, ask in asks.items()]
    join = Subtask("collect", "desk.collect", needs=list(asks))
    return Spawn([*subtasks, join], join="collect")


@desk.skill("desk.collect")
def collect(needs: dict[str, NeedOutput]) -> dict[str, Any]:
    """Topic and votes per question; the quotes stay with the writers' own outputs."""
    answers = {}
    for name in sorted(needs, key=_number):
        value = needs[name].value
        answers[name] = {"topic": value["topic"], "votes": value["votes"]}
    return {"answered": len(answers), "answers": answers}


def shorten(text: str, chars_max: int) -> str:
    """Cut at the end of a sentence or line, else of a word."""
    text = text.strip()
    if len(text) <= chars_max:
        return text
    cut = text[: chars_max - 1]
    for end in (". ", ".\n", "\n", " "):
        at = cut.rfind(end)
        if at > chars_max // 2:
            return cut[: at + 1].rstrip() + ("" if end.startswith(".") else " …")
    return cut + "…"


def _vote(
    search: retrieval.Search, voter: str, ask: Ask, context: Context
) -> retrieval.Found | None:
    if context.pause(ask.think_ms.get(voter, 0) / 1_000):
        return None  # the claim is lost: nobody would read it
    found = search(_checked(ask.question))
    context.vote(found.topic)
    return found


def _checked(question: str) -> str:
    question = question.strip()
    if not question or len(question) > QUESTION_CHARS_MAX:
        raise Final(f"a question has 1 to {QUESTION_CHARS_MAX} characters", code="BAD_INPUT")
    return question


def _number(name: str) -> int:
    """The number in q07 or part2, whatever path stands before it."""
    return int(name.rsplit("/", 1)[-1].strip("qpart"))


# Built when a worker loads this module, so that its first claim is as quick as its last.
for _build in (retrieval.bm25, retrieval.tfidf, retrieval.names):
    _build()("How do I begin?")

"""The desk's parts alone: corpus, questions, retrieval, splitting. No mesh, no ledger."""

from __future__ import annotations

from collections import Counter

import pytest

from examples.support_desk import corpus, retrieval
from examples.support_desk.agents import QUOTE_CHARS_MAX, shorten
from examples.support_desk.facts import verdict
from examples.support_desk.questions import load_questions
from examples.support_desk.splitting import split_question

AGENTS = {"bm25": retrieval.bm25, "tfidf": retrieval.tfidf, "names": retrieval.names}
ACCURACY_MIN = 0.5  # each agent alone, on any Python; measured 0.6 to 0.7 on 3.11
# Of the 79 texts of 3.11 to 3.14, those that only repeat another one have no passages of their own.
TOPICS_MIN = 75


def test_every_topic_has_a_title_and_passages_of_bounded_size() -> None:
    topics = corpus.topics()

    assert len(topics) >= TOPICS_MIN
    for topic in topics.values():
        assert topic.title and topic.passages
        assert topic.name in topic.source
    assert max(len(passage.text) for passage in corpus.passages()) < 8_000


def test_a_paragraph_that_topics_share_is_kept_once() -> None:
    paragraphs = Counter(
        " ".join(paragraph.split())
        for passage in corpus.passages()
        for paragraph in passage.text.split("\n\n")
    )

    long_ones = {text: count for text, count in paragraphs.items() if len(text) > 200}
    assert max(long_ones.values()) == 1


def test_a_topic_knows_the_names_under_which_people_look_for_it() -> None:
    topics = corpus.topics()

    assert "with" in topics["with"].keywords
    assert "FORMATTING" in topics["formatstrings"].help_names
    assert "**" in topics["power"].symbols
    assert "object.__init__" in topics["customization"].defined


def test_there_are_enough_questions_and_their_topics_exist() -> None:
    from pydoc_data.topics import topics as shipped

    questions = load_questions()

    assert len(questions) >= 40
    assert len({question.text for question in questions}) == len(questions)
    for question in questions:
        assert question.topics and question.topics <= set(shipped), question.id


@pytest.mark.parametrize("name", AGENTS)
def test_each_agent_alone_finds_most_topics(name: str) -> None:
    search = AGENTS[name]()

    right = sum(search(one.text).topic in one.topics for one in load_questions())

    assert right / len(load_questions()) >= ACCURACY_MIN


def test_the_agents_are_distinct() -> None:
    texts = [question.text for question in load_questions()]
    votes = {name: [build()(text).topic for text in texts] for name, build in AGENTS.items()}

    for one, other in (("bm25", "tfidf"), ("bm25", "names"), ("tfidf", "names")):
        differing = sum(a != b for a, b in zip(votes[one], votes[other], strict=True))
        assert differing >= len(texts) // 5


@pytest.mark.parametrize("question", ["", "?", "xyzzy plugh", "≠", "__nosuchname__", "a" * 5_000])
@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_answers_whatever_it_is_asked(name: str, question: str) -> None:
    found = AGENTS[name]()(question)

    assert found.topic in corpus.topics()
    assert found.passage and found.source


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("What is a raw string?", ["What is a raw string?"]),
        (
            "What is the difference between is and ==?",
            ["What is the difference between is and ==?"],
        ),
        (
            "Do 'and' and 'or' return True or one of their operands?",
            ["Do 'and' and 'or' return True or one of their operands?"],
        ),
        (
            "What is a descriptor, and when does the finally clause run?",
            ["What is a descriptor?", "When does the finally clause run?"],
        ),
        (
            "how do I merge two dictionaries; what is a generator",
            ["How do I merge two dictionaries?", "What is a generator?"],
        ),
        (
            "Hi! What is async with and when do I use it? Thanks",
            ["What is async with?", "When do I use it (What is async with)?"],
        ),
        (
            "What does 'a; b and how' mean? Is there a pass?",
            ["What does 'a; b and how' mean?", "Is there a pass?"],
        ),
        ("thanks", ["thanks"]),
    ],
)
def test_a_compound_question_is_split_where_a_new_question_opens(
    text: str, parts: list[str]
) -> None:
    assert split_question(text) == parts


def test_each_question_of_the_batch_stays_whole_unless_it_is_two() -> None:
    split = {one.text: split_question(one.text) for one in load_questions()}

    assert sum(len(parts) > 1 for parts in split.values()) <= 1


def test_a_quote_is_cut_at_the_end_of_a_sentence() -> None:
    text = "One sentence stands here. " * 40

    short = shorten(text, QUOTE_CHARS_MAX)

    assert len(short) <= QUOTE_CHARS_MAX
    assert short.endswith("here.")


@pytest.mark.parametrize(
    ("vote", "words"),
    [(9, "1 more than its best"), (8, "no better than"), (6, "voting does not beat")],
)
def test_the_verdict_says_honestly_whether_voting_pays(vote: int, words: str) -> None:
    assert words in verdict({"bm25": 8, "tfidf": 5, "names": 7, "vote": vote}, 10)

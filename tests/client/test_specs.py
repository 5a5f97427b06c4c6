"""Task files: what people write, and one clear line for each mistake."""

from __future__ import annotations

import json

import pytest
from quorumesh.v1.values_pb2 import Value

from mesh import Ballot, Subtask
from mesh.specs import BadSpec, data_of, parse_spec, spec_of, value_of

FULL = """
name: answer
band: 2
deadline_ms: 60000
output: write
subtasks:
  - id: bm25
    skill: answer.bm25
    input: {question: "Why?", big: 9007199254740993}
    ballot: topic
    where: {zone: eu, gpu: true}
    retry: {max_attempts: 2, backoff_ms: 50}
    timeout_ms: 5000
    optional: true
  - {id: write, skill: write, needs: [topic]}
ballots:
  - {id: topic, plurality: true}
"""


def test_every_key_finds_its_field() -> None:
    spec = parse_spec(FULL)

    first = spec.subtasks[0]
    assert (spec.name, spec.band, spec.deadline_ms, spec.output) == ("answer", 2, 60_000, "write")
    assert data_of(first.input) == {"question": "Why?", "big": 9007199254740993}
    assert [(label.key, label.value) for label in first.where] == [("zone", "eu"), ("gpu", "true")]
    assert (first.retry.max_attempts, first.retry.backoff_ms) == (2, 50)
    assert (first.timeout_ms, first.ballot, first.optional) == (5_000, "topic", True)
    assert list(spec.subtasks[1].needs) == ["topic"]
    assert spec.ballots[0].plurality


def test_json_reads_the_same_as_yaml() -> None:
    text = json.dumps({"subtasks": [{"id": "a", "skill": "s", "input": None}]})

    assert parse_spec(text) == parse_spec("subtasks: [{id: a, skill: s, input: null}]")


def test_a_list_of_subtasks_and_the_python_classes_will_do() -> None:
    mapped = spec_of([{"id": "a", "skill": "s"}])
    typed = spec_of({"subtasks": [Subtask("a", "s")], "ballots": [Ballot("b")]})

    assert mapped.subtasks[0].id == typed.subtasks[0].id == "a"
    assert typed.ballots[0].id == "b"
    assert mapped.band == 4


def test_map_makes_one_subtask_an_item_and_needs_of_it_mean_all() -> None:
    spec = parse_spec(
        "subtasks:\n"
        " - {id: q, map: {over: [x, y], skill: answer}, timeout_ms: 9}\n"
        " - {id: sum, skill: combine.list, needs: [q]}"
    )

    assert [one.id for one in spec.subtasks] == ["q.0", "q.1", "sum"]
    assert [data_of(one.input) for one in spec.subtasks[:2]] == ["x", "y"]
    assert [one.timeout_ms for one in spec.subtasks[:2]] == [9, 9]
    assert list(spec.subtasks[2].needs) == ["q.0", "q.1"]


def test_dates_stay_text_and_values_come_back_as_they_went() -> None:
    spec = parse_spec("subtasks: [{id: a, skill: s, input: {on: 2026-01-02}}]")

    assert "2026-01-02" in spec.subtasks[0].input.data.decode()
    assert data_of(value_of(b"\x00")) == b"\x00"
    assert data_of(Value(data=b"hi", content_type="text/plain; charset=utf-8")) == "hi"
    assert data_of(Value()) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("subtasks: [", "f.yaml: line 1, column 12: "),
        ("a: b: c", "f.yaml: line 1, column 5: mapping values are not allowed here"),
        ("name: a\nname: b", "f.yaml: line 2, column 1: the key 'name' is given twice"),
        ("", "f.yaml: the task must be a mapping with keys such as name, subtasks, ballots"),
        ("just text", "f.yaml: the task must be a mapping"),
        ("name: x", "f.yaml: the task has no subtasks"),
        ("subtask: []", "f.yaml: the task: unknown key 'subtask'; did you mean 'subtasks'?"),
        ("subtasks: 5", "f.yaml: the task: 'subtasks' must be a list"),
        ("subtasks: [5]", "f.yaml: subtask 1 must be a mapping"),
        ("subtasks: [{id: a, skil: s}]", "subtask 1: unknown key 'skil'; did you mean 'skill'"),
        ("subtasks: [{id: a}]", "f.yaml: subtask a has no 'skill'"),
        ("subtasks: [{skill: a}]", "f.yaml: subtask 1 has no 'id'"),
        ("subtasks: [{id: a, skill: s, needs: [[b]]}]", "subtask a: 'needs' must be a list of ids"),
        ("subtasks: [{id: a, skill: s, where: [b]}]", "subtask a: 'where' must map labels"),
        ("subtasks: [{id: a, skill: s, where: {b: [1]}}]", "the value of 'b' must be text"),
        ("subtasks: [{id: a, skill: s, retry: {max: 1}}]", "'retry': unknown key 'max'"),
        ("subtasks: [{id: a, skill: s, timeout_ms: -1}]", "'timeout_ms' must be a whole number"),
        ("subtasks: [{id: a, skill: s, optional: 1}]", "'optional' must be true or false"),
        ("subtasks: [{id: a, skill: s, input: .nan}]", "subtask a: 'input': the value cannot"),
        ("band: 10\nsubtasks: [{id: a, skill: s}]", "'band' must be a whole number from 0 to 9"),
        ("ballots: [{}]\nsubtasks: [{id: a, skill: s}]", "ballot 1 has no 'id'"),
        ("subtasks: [{id: a, map: {over: [], skill: s}}]", "'over' is empty or missing"),
        ("subtasks: [{id: a, input: 1, map: {over: [1], skill: s}}]", "leave out 'input'"),
        ("subtasks: [{map: {over: [1], skill: s}}]", "has no 'id'"),
        ('{"name": "a", "name": "b"}', "f.yaml: the key 'name' is given twice"),
        ('{"name": "a",, }', "f.yaml: line 1, column 14: "),
        ("x: !!python/object:os.system {}", "f.yaml: line 1, column 4: could not determine"),
        ("\x00", "f.yaml: "),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_that_says_where(text: str, said: str) -> None:
    with pytest.raises(BadSpec) as caught:
        parse_spec(text, source="f.yaml")

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_map_over_too_many_items_is_refused() -> None:
    with pytest.raises(BadSpec, match="10001 items, at most 10000"):
        spec_of([{"id": "a", "map": {"over": [0] * 10_001, "skill": "s"}}])

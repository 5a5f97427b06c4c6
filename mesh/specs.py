"""Turns what people write (YAML, JSON, Python dicts) into a `TaskSpec`. Strict: a key that it does
not know is an error that names the nearest one it does. What the ledger checks (cycles, unknown
needs, sizes) is left to the ledger, which says it with the same words to every client.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence

import yaml
from quorumesh.v1.tasks_pb2 import BallotSpec, RetryPolicy, SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Label, Value

from mesh.agent import Ballot, Subtask

BAND_DEFAULT = 4
BAND_MAX = 9
JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain"
MAP_ITEMS_MAX = 10_000
FILE_BYTES_MAX = 64 * 1024 * 1024

_TASK_KEYS = (
    "name", "subtasks", "ballots", "output", "band", "deadline_ms", "retain_ms",
)  # fmt: skip
_SUBTASK_KEYS = (
    "id", "skill", "input", "needs", "where", "retry", "timeout_ms", "ballot", "optional", "map",
)  # fmt: skip
_MAP_KEYS = ("over", "skill", "id")
_RETRY_KEYS = ("max_attempts", "backoff_ms", "backoff_ms_max")
_BALLOT_KEYS = ("id", "hear_all", "plurality")


class BadSpec(ValueError):
    """A task description breaks a rule of the format. The text is one line that says where."""


def parse_spec(text: str, *, source: str = "task") -> TaskSpec:
    """Read a task from YAML or JSON text. BadSpec: one line with the place of the mistake."""
    if len(text) > FILE_BYTES_MAX:
        raise BadSpec(f"{source}: larger than {FILE_BYTES_MAX} characters")
    try:
        document = _read(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise BadSpec(f"{source}: {place}{error.problem or 'not valid YAML'}") from None
    except yaml.YAMLError as error:
        raise BadSpec(f"{source}: {' '.join(str(error).split())}") from None
    except BadSpec as error:
        raise BadSpec(f"{source}: {error}") from None
    except RecursionError:
        raise BadSpec(f"{source}: nested too deeply") from None
    except ValueError as error:  # such as a number of more digits than any program reads
        raise BadSpec(f"{source}: {error}") from None
    try:
        return spec_of(document)
    except BadSpec as error:
        raise BadSpec(f"{source}: {error}") from None


def spec_of(task: object) -> TaskSpec:
    """Make a `TaskSpec` of a mapping, of a list of subtasks, or of a `TaskSpec` (left as it is)."""
    if isinstance(task, TaskSpec):
        return task
    if isinstance(task, Sequence) and not isinstance(task, str | bytes):
        task = {"subtasks": task}
    fields = _mapping(task, "the task", _TASK_KEYS)
    spec = TaskSpec(
        name=_text(fields, "name", "the task"),
        output=_text(fields, "output", "the task"),
        band=_count(fields, "band", "the task", default=BAND_DEFAULT, most=BAND_MAX),
        deadline_ms=_count(fields, "deadline_ms", "the task"),
        retain_ms=_count(fields, "retain_ms", "the task"),
    )
    groups: dict[str, list[str]] = {}
    parts = _listing(fields, "subtasks", "the task")
    if not parts:
        raise BadSpec("the task has no subtasks: give it a list named 'subtasks'")
    for number, part in enumerate(parts, start=1):
        made = _subtasks_of(part, number, groups)
        spec.subtasks.extend(made)
    for subtask in spec.subtasks:
        _spread_needs(subtask, groups)
    for number, ballot in enumerate(_listing(fields, "ballots", "the task"), start=1):
        spec.ballots.append(_ballot_of(ballot, number))
    return spec


def value_of(data: object) -> Value:
    """Wrap a Python value: `Value` as it is, bytes as octets, all else as JSON, or BadSpec."""
    if isinstance(data, Value):
        return data
    if isinstance(data, bytes):
        return Value(data=data, content_type="application/octet-stream")
    try:
        text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return Value(data=text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise BadSpec(f"the value cannot be written as JSON: {error}") from None


def data_of(value: Value) -> object:
    """Unwrap a value: JSON is read, text is decoded, anything else stays bytes."""
    kind = value.content_type.partition(";")[0].strip() or JSON_TYPE
    if kind == JSON_TYPE:
        return json.loads(value.data) if value.data else None
    return value.data.decode() if kind.startswith("text/") else value.data


def _read(text: str) -> object:
    """JSON is YAML, but its own reader is a hundred times quicker; so it is asked first."""
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text, object_pairs_hook=_once)
        except json.JSONDecodeError:
            pass  # it may still be YAML in flow style, whose reader says what is wrong and where
    return yaml.load(text, Loader=_Loader)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made: dict[str, object] = {}
    for key, value in pairs:
        if key in made:
            raise BadSpec(f"the key {key!r} is given twice")
        made[key] = value
    return made


class _Loader(yaml.SafeLoader):
    """YAML without its two traps: a key given twice is an error, and dates stay text."""

    yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag != "tag:yaml.org,2002:timestamp"]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {name!r} is given twice", key.start_mark
                )
            seen.add(name)
        made: dict[object, object] = super().construct_mapping(node, deep)
        return made


def _subtasks_of(part: object, number: int, groups: dict[str, list[str]]) -> list[SubtaskSpec]:
    if isinstance(part, Subtask):
        return [part.to_proto()]
    if isinstance(part, SubtaskSpec):
        return [SubtaskSpec.FromString(part.SerializeToString())]
    fields = _mapping(part, f"subtask {number}", _SUBTASK_KEYS)
    if "map" not in fields:
        return [_subtask_of(fields, f"subtask {fields.get('id', number)!s}")]
    return _mapped(fields, number, groups)


def _mapped(
    fields: Mapping[str, object], number: int, groups: dict[str, list[str]]
) -> list[SubtaskSpec]:
    """One subtask per item of `over`: ids are `<id>.0`, `<id>.1`, …; `needs: [<id>]` means all."""
    place = f"the map of subtask {number}"
    rules = _mapping(fields["map"], place, _MAP_KEYS)
    stem = _text(rules, "id", place) or _text(fields, "id", place)
    if not stem:
        raise BadSpec(f"{place} has no 'id'")
    if "input" in fields:
        raise BadSpec(f"{place}: leave out 'input', each item of 'over' is one")
    items = _listing(rules, "over", place)
    if not items:
        raise BadSpec(f"{place}: 'over' is empty or missing")
    if len(items) > MAP_ITEMS_MAX:
        raise BadSpec(f"{place}: {len(items)} items, at most {MAP_ITEMS_MAX}")
    rest = {key: value for key, value in fields.items() if key != "map"}
    if "skill" in rules:
        rest["skill"] = rules["skill"]
    made = [
        _subtask_of({**rest, "id": f"{stem}.{at}", "input": item}, f"{place}, item {at}")
        for at, item in enumerate(items)
    ]
    groups[stem] = [subtask.id for subtask in made]
    return made


def _spread_needs(subtask: SubtaskSpec, groups: Mapping[str, list[str]]) -> None:
    needs = [one for need in subtask.needs for one in groups.get(need, [need])]
    if needs != list(subtask.needs):
        del subtask.needs[:]
        subtask.needs.extend(needs)


def _subtask_of(fields: Mapping[str, object], place: str) -> SubtaskSpec:
    for key in ("id", "skill"):
        if not _text(fields, key, place):
            raise BadSpec(f"{place} has no {key!r}")
    subtask = SubtaskSpec(
        id=_text(fields, "id", place),
        skill=_text(fields, "skill", place),
        timeout_ms=_count(fields, "timeout_ms", place),
        ballot=_text(fields, "ballot", place),
        optional=_flag(fields, "optional", place),
    )
    if "input" in fields:
        try:
            subtask.input.CopyFrom(value_of(fields["input"]))
        except BadSpec as error:
            raise BadSpec(f"{place}: 'input': {error}") from None
    subtask.needs.extend(_names(fields, "needs", place))
    where = fields.get("where", {})
    if not isinstance(where, Mapping):
        raise BadSpec(f"{place}: 'where' must map labels to values, such as {{zone: eu}}")
    for key, value in where.items():
        if not isinstance(value, str | int):
            raise BadSpec(f"{place}: 'where': the value of {key!r} must be text")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        subtask.where.append(Label(key=str(key), value=text))
    if "retry" in fields:
        subtask.retry.CopyFrom(_retry_of(fields["retry"], place))
    return subtask


def _retry_of(rules: object, place: str) -> RetryPolicy:
    fields = _mapping(rules, f"{place}: 'retry'", _RETRY_KEYS)
    counts = {key: _count(fields, key, f"{place}: 'retry'") for key in fields}
    return RetryPolicy(**counts)


def _ballot_of(ballot: object, number: int) -> BallotSpec:
    if isinstance(ballot, str):
        return BallotSpec(id=ballot)
    if isinstance(ballot, Ballot):
        return ballot.to_proto()
    place = f"ballot {number}"
    fields = _mapping(ballot, place, _BALLOT_KEYS)
    if not _text(fields, "id", place):
        raise BadSpec(f"{place} has no 'id'")
    return BallotSpec(
        id=_text(fields, "id", place),
        hear_all=_flag(fields, "hear_all", place),
        plurality=_flag(fields, "plurality", place),
    )


def _mapping(data: object, place: str, known: Sequence[str]) -> Mapping[str, object]:
    if not isinstance(data, Mapping):
        raise BadSpec(f"{place} must be a mapping with keys such as {', '.join(known[:3])}")
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise BadSpec(f"{place}: unknown key {key!r}; did you mean {near!r}?")
    return data


def _listing(fields: Mapping[str, object], key: str, place: str) -> Sequence[object]:
    data = fields.get(key)
    if data is None:
        return ()
    if isinstance(data, str | bytes) or not isinstance(data, Sequence):
        raise BadSpec(f"{place}: {key!r} must be a list")
    return data


def _names(fields: Mapping[str, object], key: str, place: str) -> list[str]:
    names = [fields[key]] if isinstance(fields.get(key), str) else _listing(fields, key, place)
    if not all(isinstance(name, str | int) and not isinstance(name, bool) for name in names):
        raise BadSpec(f"{place}: {key!r} must be a list of ids")
    return [str(name) for name in names]


def _text(fields: Mapping[str, object], key: str, place: str) -> str:
    data = fields.get(key)
    if data is None:
        return ""
    if isinstance(data, bool) or not isinstance(data, str | int):
        raise BadSpec(f"{place}: {key!r} must be text")
    return str(data)


def _count(
    fields: Mapping[str, object], key: str, place: str, *, default: int = 0, most: int = 2**31
) -> int:
    data = fields.get(key, default)
    if isinstance(data, bool) or not isinstance(data, int) or not 0 <= data <= most:
        raise BadSpec(f"{place}: {key!r} must be a whole number from 0 to {most}")
    return data


def _flag(fields: Mapping[str, object], key: str, place: str) -> bool:
    data = fields.get(key, False)
    if not isinstance(data, bool):
        raise BadSpec(f"{place}: {key!r} must be true or false")
    return data

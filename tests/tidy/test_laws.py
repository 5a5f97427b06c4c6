"""docs/laws.md names, for each rule and law, the tests that hold it: they are there, and run."""

from __future__ import annotations

import ast
import re

from tests.tidy.sources import ROOT

TEXT = (ROOT / "docs/laws.md").read_text(encoding="utf-8")
ROWS = range(1, 17)
LAWS = (
    "pure",
    "the same everywhere, or not at all",
    "versions",
    "time is counted",
    "idempotent by name",
    "fences",
    "durable before said",
    "who lost journal or vote never comes back under its identity",
)


def line_of(first_cell: str) -> str:
    [line] = [line for line in TEXT.splitlines() if line.startswith(f"| {first_cell} |")]
    return line


def functions_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


def named_tests(text: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def test_every_rule_and_every_law_names_tests_that_exist() -> None:
    for cell in (*map(str, ROWS), *LAWS):
        named = named_tests(line_of(cell))
        assert named, f"nothing holds {cell!r}"
        missing = [(path, name) for path, name in named if name not in functions_of(path)]
        assert missing == []


def test_every_rule_shows_what_the_library_does_as_shipped() -> None:
    shown = functions_of("tests/engine/stock.py")
    run = (ROOT / "tests/engine/test_stock.py").read_text(encoding="utf-8")
    for row in ROWS:
        named = re.findall(rf"`(row_{row}_\w+)`", line_of(str(row)))
        assert named and all(name in shown and f'"{name}"' in run for name in named), row


def test_every_test_named_for_a_rule_or_a_law_is_in_the_table() -> None:
    named = {name for _, name in named_tests(TEXT)}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        found = {
            name
            for name in functions_of(str(path.relative_to(ROOT)))
            if re.match(r"test_(rule_\d+|law)_", name)
        }
        assert found <= named, path.name

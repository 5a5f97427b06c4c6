"""Lists the project's own source files for the tests of form. Works without git."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("consensus", "mesh", "node")
PYTHON_TREES = (*PACKAGES, "examples", "tests")


def is_generated(path: Path) -> bool:
    return path.name.endswith(("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"))


def python_files(*trees: str) -> list[Path]:
    """Python files that people wrote, ordered, below these folders (default: all)."""
    found = [path for tree in (trees or PYTHON_TREES) for path in (ROOT / tree).rglob("*.py")]
    return sorted(path for path in found if not is_generated(path))


def scripts() -> list[Path]:
    return sorted(path for path in (ROOT / "scripts").iterdir() if path.is_file())


def documents() -> list[Path]:
    trees = ("docs", *PACKAGES, "examples", "tests")
    below = [path for tree in trees for path in (ROOT / tree).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *below])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full module name of each import in a file, wherever it stands."""
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield node.lineno, module


def shown(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"

"""The form that the project agreed on, where no linter knows it."""

from __future__ import annotations

import ast
import re

from tests.tidy.sources import (
    PACKAGES,
    ROOT,
    documents,
    functions,
    imported,
    python_files,
    scripts,
    shown,
    tree_of,
)

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 50
# Written apart, so that this file does not hold the words that it bans.
BANNED_WORDS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
BANNED_CLASS_NAME = re.compile(r"(Manager|Util|Utils|Helper|Base|V2)$")
LEDGER_FORBIDDEN = {
    *("asyncio", "time", "random", "os", "socket", "threading", "logging", "grpc", "pysyncobj"),
    *("datetime", "secrets", "uuid", "multiprocessing", "subprocess", "concurrent"),
}
NETWORK_CODECS_BANNED = {"pickle", "cPickle", "marshal", "shelve", "cloudpickle", "dill"}


def test_no_file_is_longer_than_500_lines() -> None:
    long = [
        f"{shown(path, count)}"
        for path in [*python_files(), *scripts()]
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > FILE_LINES_MAX
    ]

    assert long == []


def test_no_function_is_longer_than_50_lines() -> None:
    long = [
        f"{shown(path, function.lineno)} {function.name}"
        for path in python_files()
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX
    ]

    assert long == []


def test_no_promise_of_later_work_stands_in_code() -> None:
    found = [
        shown(path, number)
        for path in [*python_files(), *scripts(), *documents()]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if BANNED_WORDS.search(line)
    ]

    assert found == []


def test_no_class_has_a_name_that_says_nothing() -> None:
    found = [
        f"{shown(path, node.lineno)} {node.name}"
        for path in python_files(*PACKAGES)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and BANNED_CLASS_NAME.search(node.name)
    ]

    assert found == []


def test_the_ledger_imports_nothing_that_could_differ_between_nodes() -> None:
    found = [
        f"{shown(path, line)} {name}"
        for path in python_files("consensus/ledger")
        for line, name in imported(path)
        if name.split(".")[0] in LEDGER_FORBIDDEN
    ]

    assert found == []


def test_no_package_imports_a_codec_that_runs_what_it_reads() -> None:
    found = [
        f"{shown(path, line)} {name}"
        for path in python_files(*PACKAGES)
        for line, name in imported(path)
        if name.split(".")[0] in NETWORK_CODECS_BANNED
    ]

    assert found == []


def test_only_the_engine_imports_pysyncobj() -> None:
    found = [
        f"{shown(path, line)} {name}"
        for path in python_files(*PACKAGES)
        for line, name in imported(path)
        if name.split(".")[0] == "pysyncobj" and "engine" not in path.relative_to(ROOT).parts
    ]

    assert found == []


def test_tests_do_not_sleep_the_thread_or_patch() -> None:
    found = [
        f"{shown(path, node.lineno)} {ast.unparse(node.func)}"
        for path in python_files("tests")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"time.sleep", "patch", "mock.patch", "monkeypatch.setattr"}
        and not lowers_a_limit(node)
    ]

    assert found == []


def lowers_a_limit(call: ast.Call) -> bool:
    """A bound may be set lower for a test: reaching the real one would take too long."""
    return bool(call.args) and ast.unparse(call.args[0]) == "limits"


def test_no_failure_is_swallowed_whole() -> None:
    found = [
        shown(path, node.lineno)
        for path in python_files(*PACKAGES)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"})
        and all(isinstance(part, ast.Pass) for part in node.body)
    ]

    assert found == []


def test_public_modules_say_what_they_are_for() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in python_files(*PACKAGES)
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree_of(path))
    ]

    assert silent == []


def test_every_script_can_be_run_directly() -> None:
    not_executable = [
        path.name for path in scripts() if path.suffix != ".sh" and not path.stat().st_mode & 0o100
    ]

    assert not_executable == []

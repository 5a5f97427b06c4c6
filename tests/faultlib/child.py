"""Small Python programs run under the library: `Child(faults)` starts one, `end()` tells its output."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.faultlib.build import NoCompiler, library
from tests.faultlib.control import Faults

END_S = 60


def need_library() -> None:
    """Skip the test when there truly is no C compiler to be had."""
    try:
        library()
    except NoCompiler as error:
        pytest.skip(str(error))


class Child:
    """A Python program under faults. It finds its folder in sys.argv[1]."""

    def __init__(self, faults: Faults, program: str, *arguments: str | Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), str(faults.folder), *arguments],
            env={**os.environ, **faults.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        """Its next line of output."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        """Give it a line of input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str]:
        """Wait for its end: its exit code and what it printed."""
        output, _ = self.process.communicate(timeout=END_S)
        return self.process.returncode, output.strip()


def run(faults: Faults, program: str, *arguments: str | Path) -> str:
    """Run a program to its good end and return what it printed."""
    code, output = Child(faults, program, *arguments).end()
    assert code == 0, output
    return output

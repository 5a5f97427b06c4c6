"""What is installed, from what, and beside what."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib

from tests.tidy.sources import ROOT

BESIDE_PROTO_PLUS = """
import proto
class Point(proto.Message):
    x = proto.Field(proto.INT64, number=1)
assert Point.deserialize(Point.serialize(Point(x=7))).x == 7
from quorumesh.v1.values_pb2 import Value
assert Value.FromString(Value(data=b"1").SerializeToString()).data == b"1"
"""


def test_generated_code_is_what_the_sources_give() -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "genproto", "--check"],
        env={**os.environ, "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr


def test_the_folder_proto_is_no_package() -> None:
    assert not (ROOT / "proto" / "__init__.py").exists()


def test_proto_plus_and_our_messages_work_side_by_side_even_in_the_checkout() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BESIDE_PROTO_PLUS],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr


def test_every_package_with_code_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(settings["tool"]["setuptools"]["packages"])

    present = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for package in ("consensus", "mesh", "node")
        for path in (ROOT / package).rglob("__init__.py")
    } | {"quorumesh", "quorumesh.v1"}

    assert present == listed


def test_the_lock_names_versions_only_and_covers_what_is_required() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    asked = [*settings["dependencies"]]
    for extra in settings["optional-dependencies"].values():
        asked += extra

    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    locked = {pin.split("==")[0].lower().replace("_", "-") for pin in pins}
    required = {re.split(r"[<>=; ]", line)[0].lower().replace("_", "-") for line in asked}
    assert required - locked == set()


def test_the_engine_is_built_on_one_exact_version_of_pysyncobj() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert "pysyncobj==0.3.17" in settings["project"]["dependencies"]

"""Inputs that once broke something, each by itself."""

from __future__ import annotations

import pytest

from mesh.errors import IdentityError
from mesh.identity import requested_key
from mesh.specs import BadSpec, parse_spec

REQUEST_OF_NO_ALGORITHM = (
    "3081cb307402010030123110300e06035504030c076a6f696e696e673059301306072aa648ce3d020106082a8648ce"
    "3d03010703420004d516e3e44136429cecb97ebd24efbb72e8c80416b1f372edf17167c4fa8233bec93f32e073cf88"
    "d7b536587160a3f1788b10392497d0621783d099cb050c3699a000300a06082a8648ce3d0403020347003044022008"
    "d930066c7135fe30bc95578ade267d520503642857ae95a2479db570293c180220624c0d31a6c01c7960ad1c5d7187"
    "2d0ce45b118fda14a814f5d044bb383eed85"
)
REQUEST_OF_NO_VERSION = (
    "3081cc307402010830123110300e06035504030c076a6f696e696e673059301306072a8648ce3d020106082a8648ce"
    "3d030107034200048311304c38ee09dc30c17979387c0cdb32f2d0a11aa8e85e240e2b17eff8cced0494c8b09689bf"
    "3d8e57ec65d479295ba738b6b0b54d1e965aea20d644226388a000300a06082a8648ce3d0403020348003045022100"
    "be1f29a79964c3fd963c337e8c496d57cab7a5543146bdb7d98f3ea3e579d19302200ddb331423d0504cee3b1599dc"
    "321b133eda43211bd33d312c046693e7870f02"
)


@pytest.mark.parametrize("request_hex", [REQUEST_OF_NO_ALGORITHM, REQUEST_OF_NO_VERSION])
def test_a_certificate_request_of_an_unknown_kind_is_refused(request_hex: str) -> None:
    with pytest.raises(IdentityError, match="cannot be read"):
        requested_key(bytes.fromhex(request_hex))


@pytest.mark.parametrize("text", ["[{}]", "subtasks: [{{id: a, skill: s, timeout_ms: {}}}]"])
def test_a_number_of_thousands_of_digits_in_a_task_file_is_refused(text: str) -> None:
    with pytest.raises(BadSpec, match=r"task: .*digits"):
        parse_spec(text.format("9" * 5_000))

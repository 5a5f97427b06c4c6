"""Requests that once ended in an uncaught error, each by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from quorumesh.v1 import mesh_pb2, tasks_pb2

from mesh.identity import new_key, new_request
from node.api.errors import Refusal
from node.joining import dial_back
from tests.hostile.services import ANSWER_S_MAX, TASK, Aborted, Called, Context

WIDEST = (1 << 64) - 1


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[Called]:
    request = mesh_pb2.JoinRequest(csr=new_request(new_key()), name="two")
    called = Called("Mesh/Join", request, Random(1), tmp_path)
    yield called
    called.close()


def test_a_host_whose_name_no_certificate_can_bear_is_refused_before_it_is_admitted(
    joined: Called,
) -> None:
    """It was once a member with its token used up, and had no papers."""
    request = mesh_pb2.JoinRequest()
    request.CopyFrom(joined._honest)
    request.name = "zwei ü"
    members = joined.replica.ledger.members()

    with pytest.raises(Aborted, match="INVALID_ARGUMENT: name 'zwei ü'"):
        joined.run(joined._answer(request, Context(joined._principal, call_s=ANSWER_S_MAX)))

    assert joined.replica.ledger.members() == members
    joined.run(joined._answer(joined._honest, Context(joined._principal, call_s=ANSWER_S_MAX)))
    assert len(joined.replica.ledger.members()) == len(members) + 1


@pytest.mark.parametrize("address", ["a..b:1", "_a:1", "[zz]:1", f"{'a' * 64}.b:1"])
async def test_an_address_that_names_no_host_is_refused(address: str) -> None:
    with pytest.raises(Refusal):
        await dial_back(address)


@pytest.mark.parametrize(
    ("name", "request_of"),
    [
        ("Tasks/Story", tasks_pb2.StoryRequest(task_id=TASK, after_revision=WIDEST)),
        ("Tasks/Watch", tasks_pb2.WatchTaskRequest(after_revision=WIDEST)),
        ("Tasks/Watch", tasks_pb2.WatchTaskRequest(task_id=TASK, after_revision=WIDEST)),
        ("Mesh/Entries", mesh_pb2.EntriesRequest(after_revision=WIDEST)),
    ],
)
def test_what_is_asked_for_after_the_last_revision_of_all_is_nothing(
    tmp_path: Path, name: str, request_of: tasks_pb2.StoryRequest
) -> None:
    called = Called(name, request_of, Random(1), tmp_path)
    try:
        assert called.feed([request_of]) == 1
    finally:
        called.close()

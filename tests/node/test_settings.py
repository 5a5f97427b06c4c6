"""Settings, the error table and log lines: decided without a node."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from google.rpc import error_details_pb2
from quorumesh.v1.tasks_pb2 import TaskEvent
from quorumesh.v1.values_pb2 import Reason

from consensus.errors import OutcomeUnknown, Unavailable
from node.api.errors import KINDS, Refusal, status_of
from node.api.feed import BATCHES_WAITING_MAX, Batch, Watcher
from node.api.guard import roles_for
from node.config import ConfigError, NodeConfig
from node.logs import JsonLines, KeyValueLines


def test_every_reason_has_a_row() -> None:
    assert {name for name, number in Reason.items() if number} <= set(KINDS)


def test_waiting_helps_is_said_with_retry_info() -> None:
    for error in (Unavailable("no leader"), OutcomeUnknown("lost")):
        retry = error_details_pb2.RetryInfo()
        assert status_of(error).details[1].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() > 0
    assert len(status_of(Refusal("INVALID", "no")).details) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": "nowhere"},
        {"listen": "127.0.0.1:70000"},
        {"advertise": "0.0.0.0:7400"},
        {"advertise": "127.0.0.1:0"},
        {"name": "a b"},
        {"slots": 0},
        {"slots": 4_097},
        {"worker_count": 65},
        {"agents": ("a b",)},
        {"compact_entries": 0},
        {"scrub_ms": -1},
    ],
)
def test_a_setting_that_cannot_be_used_is_named(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="--"):
        NodeConfig(Path("data"), **settings)  # type: ignore[arg-type]


def test_a_concrete_listen_address_is_what_others_dial() -> None:
    assert NodeConfig(Path("d"), listen="127.0.0.1:0").advertised(7) == "127.0.0.1:7"
    assert NodeConfig(Path("d"), listen="[::1]:0").advertised(7) == "[::1]:7"


def test_an_unknown_method_is_for_nobody() -> None:
    assert roles_for("/quorumesh.v1.Other/Do") == frozenset()
    assert roles_for("/quorumesh.v1.Mesh/Join") == {"join", "node"}
    assert roles_for("/quorumesh.v1.Mesh/Entries") == {"node"}


def test_a_watcher_that_falls_behind_is_told_to_read_again() -> None:
    watcher = Watcher(b"t")
    watcher.catch_up()
    event = TaskEvent(task_id=b"t")

    for revision in range(1, BATCHES_WAITING_MAX + 2):
        watcher.put(Batch(revision, (event,)))

    assert watcher.is_behind
    assert watcher.take() == []


def test_events_are_logged_with_their_fields() -> None:
    record = logging.makeLogRecord({"msg": "lease granted", "levelname": "INFO", "fence": 7})
    assert KeyValueLines().format(record).endswith("lease granted fence=7")
    assert json.loads(JsonLines().format(record))["fence"] == 7

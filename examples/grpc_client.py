"""Submit a task, watch it and fetch its result with nothing but grpcio and the generated stubs.

    python examples/grpc_client.py ~/.config/quorumesh/profile.json [TEXT]

The profile is what a node wrote for the people of its host: addresses of nodes, and the paths of
the CA certificate, one's own certificate and key.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path

import grpc
from quorumesh.v1 import tasks_pb2, tasks_pb2_grpc, values_pb2

TIMEOUT_S = 30


def open_channel(profile_path: Path) -> grpc.Channel:
    """Mutual TLS to the first address of the profile. Every node answers to the name quorumesh."""
    profile = json.loads(profile_path.read_text())
    ca, key, certificate = (
        (profile_path.parent / profile[name]).read_bytes() for name in ("ca", "key", "certificate")
    )
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = [("grpc.ssl_target_name_override", "quorumesh")]
    return grpc.secure_channel(profile["addresses"][0], credentials, options)


def uuid7() -> bytes:
    """The caller names the task, so that sending the same submit twice is one task."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6], raw[8] = 0x70 | (raw[6] & 0x0F), 0x80 | (raw[8] & 0x3F)
    return bytes(raw)


def main(profile: str, text: str = "hello, mesh") -> int:
    with open_channel(Path(profile).expanduser()) as channel:
        tasks = tasks_pb2_grpc.TasksStub(channel)
        spec = tasks_pb2.TaskSpec(name="grpc example", band=4)
        spec.subtasks.add(id="say", skill="echo").input.data = json.dumps(text).encode()

        task_id = uuid7()
        tasks.Submit(tasks_pb2.SubmitRequest(task_id=task_id, spec=spec), timeout=TIMEOUT_S)
        print("submitted", uuid.UUID(bytes=task_id))

        ended = False
        watching = tasks.Watch(tasks_pb2.WatchTaskRequest(task_id=task_id), timeout=TIMEOUT_S)
        for reply in watching:
            for event in reply.events:
                kind = tasks_pb2.TaskEvent.Kind.Name(event.kind)
                print(f"r{event.revision}", kind, event.subtask, event.worker)
                ended = ended or kind in ("TASK_SUCCEEDED", "TASK_FAILED", "TASK_CANCELLED")
            if ended:
                watching.cancel()
                break

        request = tasks_pb2.ResultRequest(task_id=task_id)
        task = tasks.Result(request, timeout=TIMEOUT_S).task
        if task.state != values_pb2.TASK_SUCCEEDED:
            print("failed:", task.failure.code, task.failure.message)
            return 1
        print("result", json.loads(task.output.data))
        return 0


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))

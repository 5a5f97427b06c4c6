"""Nodes to poke at by hand: starts them, prints how to reach them, and ends them on Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.e2e.mesh_process import LocalMesh

NODES_MAX = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/cluster", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=3, help=f"1 to {NODES_MAX} nodes")
    parser.add_argument("--agents", action="append", default=[], metavar="MODULE")
    parser.add_argument("--slots", type=int, default=8, help="of the worker of each node")
    options = parser.parse_args()
    if not 1 <= options.count <= NODES_MAX:
        parser.error(f"{options.count} nodes: give 1 to {NODES_MAX}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        tempfile.TemporaryDirectory(prefix="quorumesh-cluster-") as folder,
        LocalMesh(Path(folder), slots=options.slots, agents=options.agents) as mesh,
    ):
        try:
            for _ in range(options.count):
                node = mesh.add()
                print(f"{node.name}  {node.address}  pid {node.pid}  log {node.log}", flush=True)
            print(f"\nIn another terminal:\n  export QUORUMESH_PROFILE={mesh.nodes[0].profile}")
            print("  .venv/bin/mesh status\n\nCtrl-C stops all of them.", flush=True)
            signal.pause()
        except KeyboardInterrupt:
            print("\nStopping.", flush=True)
            for node in mesh.running():
                node.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())

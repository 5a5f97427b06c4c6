"""Ask the desk of a running mesh:  python -m examples.support_desk.ask "When does finally run?"

Uses this host's profile, or the one that QUORUMESH_PROFILE names.
"""

from __future__ import annotations

import argparse

from rich.console import Console

from examples.support_desk.facts import part_rows
from examples.support_desk.report import compound_tree
from mesh import Client, MeshError

ANSWER_S_MAX = 60.0


def main() -> int:
    """Submit the question, wait, and draw who voted for what and what was found."""
    parser = argparse.ArgumentParser(description="Ask the support desk of a running mesh.")
    parser.add_argument("question")
    parser.add_argument("--profile", help="the profile of the mesh; default: this host's")
    given = parser.parse_args()
    ask = {"id": "ask", "skill": "desk.split", "input": {"question": given.question}}
    try:
        with Client(profile=given.profile) as client:
            names = {member.node_id: member.name for member in client.members()}
            task_id = client.submit({"name": "question", "subtasks": [ask]})
            client.result(task_id, ANSWER_S_MAX)
            task = client.get(task_id, outputs=True)
    except MeshError as error:
        print(f"ask: {error}")
        return 1
    console = Console(highlight=False)
    console.print(compound_tree(given.question, part_rows(task, names)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

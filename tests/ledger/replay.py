"""A long history of a ledger, and its replay in another process:

python -m tests.ledger.replay HISTORY [FOLDER]

Prints what the replica came to: digests, and a hash over all outcomes, events and grants.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from pathlib import Path

from quorumesh.v1.ledger_pb2 import (
    AddToken,
    Admit,
    Barrier,
    Bootstrap,
    Cancel,
    CloseSession,
    Command,
    Entry,
    MembershipChange,
    OpenSession,
    Renew,
    SessionEpoch,
    Suspect,
)
from quorumesh.v1.tasks_pb2 import BallotSpec, SubtaskSpec, TaskSpec
from quorumesh.v1.values_pb2 import Label
from quorumesh.v1.workers_pb2 import Spawn

from consensus.ledger import Applied, GrantRef, Ledger
from tests.ledger.world import (
    claim_command,
    complete_command,
    entry_of,
    fail_command,
    sub,
    submit_command,
)

REOPEN_ENTRIES = 37  # a ledger on disk is closed and opened again after so many
SKILLS = [f"skill-{number}" for number in range(8)]
LABELS = [Label(key=f"k{number}", value="v") for number in range(6)]


class History:
    """Entries chosen at random, each in view of what the ones before it did."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.ledger = Ledger.open(":memory:")
        self.entries: list[bytes] = []
        self.grants: list[GrantRef] = []
        self.now_ms = 0
        self.sequence = 0
        self.task_count = 0
        self.epochs: dict[str, int] = {}

    def grow(self, count: int) -> None:
        self._append(Command(bootstrap=Bootstrap(mesh_id="m", node_id="n1", address="n1:1")))
        for number in range(5):
            self._append(self._opening(number))
        for _ in range(count):
            if self.chance.random() < 0.04:
                add, node = self.chance.random() < 0.6, f"n{self.chance.randrange(2, 6)}"
                self._append(MembershipChange(add=add, node_id=node, address=f"{node}:1"))
            self.now_ms += self.chance.choice((0, 1, 20, 400, 4_000))
            self._append(*(self._command() for _ in range(self.chance.choice((0, 1, 1, 3, 9)))))

    def _append(self, *commands: Command | MembershipChange) -> None:
        if commands and isinstance(commands[0], MembershipChange):
            data = b"\x02" + commands[0].SerializeToString(deterministic=True)
        else:
            entry = entry_of(*commands, now_ms=self.now_ms)  # type: ignore[arg-type]
            data = b"\x00" + entry.SerializeToString(deterministic=True)
        self.entries.append(data)
        applied = apply(self.ledger, data)
        self.grants += applied.grants
        for command, outcome in zip(commands, applied.outcomes, strict=False):
            if outcome.epoch and isinstance(command, Command):
                self.epochs[command.open_session.name] = outcome.epoch

    def _opening(self, number: int) -> Command:
        opening = OpenSession(
            session=b"w%d" % number,
            node_id=f"n{1 + number % 3}",
            name=f"w{number}",
            skills=self.chance.sample(SKILLS, 5),
            labels=self.chance.sample(LABELS, 3),
            nonce=self.chance.randrange(3),
        )
        return Command(open_session=opening)

    def _command(self) -> Command:
        number, self.sequence = self.chance.randrange(5), self.sequence + 1
        name = f"w{number}"
        epoch = self.epochs[name] - (self.chance.random() < 0.1)
        match self.chance.randrange(24):
            case 0 | 1 | 2:
                return self._submit()
            case 3 | 4 | 5:
                return claim_command(name, epoch, self.sequence, self.chance.randrange(1, 9))
            case 6 if self.chance.random() < 0.3:
                return self._opening(number)
            case 6 | 7:
                sessions = [SessionEpoch(session=name.encode(), epoch=epoch)]
                return Command(renew=Renew(sessions=sessions))
            case 8:
                return Command(cancel=Cancel(task_id=b"t%d" % self.chance.randrange(40)))
            case 9:
                return self._rare(name, epoch)
            case _ if self.grants:
                return self._answer()
        return Command(barrier=Barrier())

    def _answer(self) -> Command:
        grant = self.chance.choice(self.grants[-20:])
        if self.chance.random() < 0.2:
            return fail_command(grant, final=self.chance.random() < 0.3)
        if self.chance.random() < 0.2:
            children = [sub("x", skill=SKILLS[0]), sub("y", skill=SKILLS[1]), sub("j", "x", "y")]
            return complete_command(grant, "", spawn=Spawn(subtasks=children, join="j"))
        return complete_command(grant, f'"{self.chance.randrange(3)}"')

    def _submit(self) -> Command:
        self.task_count += 1
        subtasks = [
            SubtaskSpec(
                id=f"s{at}",
                skill=self.chance.choice(SKILLS),
                where=self.chance.sample(LABELS, self.chance.randrange(3)),
                needs=[f"s{at - 1}"] if at and self.chance.random() < 0.5 else [],
                timeout_ms=self.chance.choice((0, 500)),
            )
            for at in range(self.chance.randrange(1, 6))
        ]
        ballots = []
        if self.chance.random() < 0.3:
            ballots = [BallotSpec(id="q", plurality=True)]
            subtasks += [sub(f"v{at}", skill=SKILLS[at], ballot="q") for at in range(3)]
        spec = TaskSpec(name="t", subtasks=subtasks, ballots=ballots)
        return submit_command(f"t{self.task_count}", spec)

    def _rare(self, name: str, epoch: int) -> Command:
        number = self.chance.randrange(12)
        token, digest = b"token%d" % (number % 4), b"d" * 32
        match number % 4:
            case 0:
                return Command(
                    add_token=AddToken(token_id=token, secret_digest=digest, ttl_ms=9_000)
                )
            case 1:
                node_id = f"n{self.chance.randrange(2, 9)}"
                return Command(
                    admit=Admit(token_id=token, secret_digest=digest, node_id=node_id, address="h")
                )
            case 2:
                return Command(suspect=Suspect(node_id=f"n{1 + number % 3}"))
        return Command(close_session=CloseSession(session=name.encode(), epoch=epoch))


def apply(ledger: Ledger, data: bytes) -> Applied:
    index = ledger.applied_index + 1
    if data[0] == 2:
        return ledger.apply_membership(index, 1, MembershipChange.FromString(data[1:]))
    return ledger.apply(index, 1, Entry.FromString(data[1:]))


def written(entries: list[bytes]) -> bytes:
    return b"".join(len(entry).to_bytes(4, "big") + entry for entry in entries)


def read(data: bytes) -> list[bytes]:
    entries, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        entries.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return entries


def replay(entries: list[bytes], path: str = ":memory:") -> dict[str, str]:
    """What a replica comes to that applies these entries."""
    ledger, said = Ledger.open(path), hashlib.sha256()
    for number, entry in enumerate(entries, 1):
        applied = apply(ledger, entry)
        for message in (*applied.outcomes, *applied.events):
            said.update(message.SerializeToString(deterministic=True))
        said.update(repr((applied.grants, applied.revokes, applied.withdrawn)).encode())
        if path != ":memory:" and number % REOPEN_ENTRIES == 0:
            ledger.close()
            ledger = Ledger.open(path)
    result = {
        "digest": ledger.digest.hex(),
        "full_digest": ledger.full_digest().hex(),
        "said": said.hexdigest(),
    }
    ledger.close()
    return result


def main() -> None:
    entries = read(Path(sys.argv[1]).read_bytes())
    path = str(Path(sys.argv[2]) / "ledger.db") if len(sys.argv) > 2 else ":memory:"
    print(json.dumps(replay(entries, path)))


if __name__ == "__main__":
    main()

"""Hostile commands of every kind, applied to ledgers: an outcome or a refusal, the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from quorumesh.v1 import ledger_pb2 as ledger
from quorumesh.v1.tasks_pb2 import BallotSpec, TaskSpec
from quorumesh.v1.values_pb2 import Failure, Reason, Value
from quorumesh.v1.workers_pb2 import Completion, FailureReport, Spawn, Vote

from consensus.engine.config import COUNTED_MS_MAX
from consensus.ledger import GrantRef, Ledger, invariants
from tests.hostile.mesh_of_one import SPECS, honest_commands
from tests.hostile.mutating import HONEST_SHARE, bend, lie
from tests.hostile.running import Kind, Target
from tests.ledger.world import entry_of, open_command, sub

GRANTS_KEPT = 64
ENTRY_COMMANDS = 16
JUMP_SHARE = 0.001  # of entries whose leader says that much time has gone by
SPAWN = Spawn(
    subtasks=[*(sub(f"v{n}", ballot="b") for n in range(3)), sub("j", "b")],
    ballots=[BallotSpec(id="b", plurality=True)],
    join="j",
)
Make = Callable[["Applying", Random], ledger.Command]


class Applying:
    """A ledger in use that is sent commands of one kind, with honest ones in between."""

    def __init__(self, make: Make, rng: Random, folder: Path) -> None:
        self._make, self._rng = make, rng
        self.ledger = Ledger.open(":memory:")
        self._log: list[bytes] = []
        self.grants = [GrantRef(b"w0", 1, 1 << 20 | 1, 1)]
        self.now_ms = self.sequence = 0
        bootstrap = ledger.Bootstrap(
            mesh_id="m", node_id="n1", name="one", address="h1:1", apply_version_max=1
        )
        self._apply(ledger.Command(bootstrap=bootstrap))
        for command in honest_commands():
            self._apply(command)

    def near(self) -> list[int]:
        grant = self._rng.choice(self.grants)
        meta = self.ledger
        return [grant.subtask_ref, grant.fence, grant.epoch, meta.applied_index, meta.counted_ms]

    def make(self, rng: Random) -> object:
        commands = []
        for _ in range(ENTRY_COMMANDS):
            command = self._make(self, rng)
            if rng.random() > HONEST_SHARE:
                command = lie(rng, command, self.near())
            commands.append(command)
        return entry_of(*commands)

    def feed(self, given: object) -> int:
        assert isinstance(given, ledger.Entry)
        self._apply(self._rng.choice(_REVIVING)(self))
        reasons = self._apply(*(proposal.command for proposal in given.proposals))
        assert Reason.INTERNAL not in reasons, "a bug in apply"
        return reasons.count(Reason.REASON_UNSPECIFIED)

    def _apply(self, *commands: ledger.Command) -> list[Reason.ValueType]:
        self.now_ms += self._rng.choice((0, 0, 1, 50, 3_000))
        if self._rng.random() < JUMP_SHARE:
            self.now_ms = min(COUNTED_MS_MAX, self.now_ms * 16)
        entry = entry_of(*commands, now_ms=self.now_ms)
        self._log.append(entry.SerializeToString())
        applied = self.ledger.apply(self.ledger.applied_index + 1, 1, entry)
        assert applied.faults == (), applied.faults
        self.grants = (self.grants + list(applied.grants))[-GRANTS_KEPT:]
        return [outcome.reason for outcome in applied.outcomes]

    def check(self) -> None:
        """The invariants hold, and a replica that applies the same comes to the same."""
        found = invariants.violations(self.ledger.connection)
        assert found == [], found
        replica = Ledger.open(":memory:")
        for index, data in enumerate(self._log, 1):
            replica.apply(index, 1, ledger.Entry.FromString(data))
        assert replica.digest == self.ledger.digest, "two replicas disagree"
        replica.close()

    def close(self) -> None:
        self.ledger.close()


def _submit(world: Applying, rng: Random) -> ledger.Command:
    world.sequence += 1
    spec = lie(rng, rng.choice(SPECS)) if rng.random() < 0.6 else rng.choice(SPECS)
    data = spec.SerializeToString()
    data = bend(rng, data) if rng.random() < 0.3 else data
    name = b"x%d" % rng.choice((world.sequence, world.sequence, 1))
    return ledger.Command(submit=ledger.Submit(task_id=name, spec=data, tenant="t"))


def _complete(world: Applying, rng: Random) -> ledger.Command:
    grant = rng.choice(world.grants)
    done = Completion(
        subtask_ref=grant.subtask_ref,
        fence=grant.fence,
        output=Value(data=b'"out"'),
        vote=Vote(label="yes", weight=1) if rng.random() < 0.5 else None,
        spawn=SPAWN if rng.random() < 0.3 else None,
    )
    return ledger.Command(complete=ledger.Complete(completion=done))


def _fail(world: Applying, rng: Random) -> ledger.Command:
    grant = rng.choice(world.grants)
    report = FailureReport(
        subtask_ref=grant.subtask_ref,
        fence=grant.fence,
        failure=Failure(code="E", message="m"),
        final=rng.random() < 0.3,
    )
    return ledger.Command(fail=ledger.Fail(report=report))


def _claim(world: Applying, rng: Random) -> ledger.Command:
    world.sequence += 1
    worker = rng.choice((b"w0", b"w1"))
    epoch = max((g.epoch for g in world.grants if g.session == worker), default=1)
    claim = ledger.Claim(session=worker, epoch=epoch, sequence=world.sequence, slots=3)
    return ledger.Command(claim=claim)


def _open(world: Applying, rng: Random) -> ledger.Command:
    world.sequence += 1
    return open_command(rng.choice(("w0", "w1", "w2")), "s s2", nonce=world.sequence)


def _other(kind: str, world: Applying, rng: Random) -> ledger.Command:
    worker, token = rng.choice((b"w0", b"w1")), bytes([rng.randrange(4)]) * 16
    match kind:
        case "close_session":
            return ledger.Command(close_session=ledger.CloseSession(session=worker, epoch=1))
        case "renew":
            epochs = [ledger.SessionEpoch(session=name, epoch=1) for name in (b"w0", b"w1")]
            return ledger.Command(renew=ledger.Renew(sessions=epochs))
        case "cancel":
            name = rng.choice((b"task%d" % rng.randrange(9), b"x%d" % rng.randrange(99)))
            return ledger.Command(cancel=ledger.Cancel(task_id=name))
        case "suspect":
            return ledger.Command(suspect=ledger.Suspect(node_id=rng.choice(("n1", "n2"))))
        case "add_token":
            add = ledger.AddToken(token_id=token, secret_digest=b"s" * 32, ttl_ms=60_000)
            return ledger.Command(add_token=add)
        case "admit":
            admit = ledger.Admit(
                token_id=token,
                secret_digest=b"s" * 32,
                node_id=f"n{rng.randrange(9)}",
                name="x",
                address="h:1",
                apply_version_max=1,
                replaces=rng.choice(("", "", "n2", "n3")),
            )
            return ledger.Command(admit=admit)
        case "bootstrap":
            first = ledger.Bootstrap(mesh_id="m", node_id="n1", name="one", address="h:1")
            return ledger.Command(bootstrap=first)
        case "barrier":
            return ledger.Command(barrier=ledger.Barrier())
        case _:
            scrub = ledger.Scrub(part=rng.randrange(9), rows_max=10, bytes_max=1_000)
            return ledger.Command(scrub=scrub)


# Of all kinds, so that workers come back and tasks go on whatever the hostile ones did.
_REVIVING: tuple[Callable[[Applying], ledger.Command], ...] = (
    lambda world: _submit_honest(world),
    lambda world: _open(world, world._rng),
    lambda world: _claim(world, world._rng),
    lambda world: _complete(world, world._rng),
)


def _submit_honest(world: Applying) -> ledger.Command:
    world.sequence += 1
    spec: TaskSpec = world._rng.choice(SPECS)
    submit = ledger.Submit(task_id=b"h%d" % world.sequence, spec=spec.SerializeToString())
    return ledger.Command(submit=submit)


_MAKERS: dict[str, Make] = {
    "submit": _submit,
    "complete": _complete,
    "fail": _fail,
    "claim": _claim,
    "open_session": _open,
    **{
        kind: partial(_other, kind)
        for kind in (
            *("close_session", "renew", "cancel", "suspect", "add_token"),
            *("admit", "bootstrap", "barrier", "scrub"),
        )
    },
}
ALL = {field.name for field in ledger.Command.DESCRIPTOR.oneofs[0].fields}


def _begin(make: Make, rng: Random, folder: Path) -> Target:
    return Applying(make, rng, folder)


KINDS = tuple(
    Kind(
        f"command-{name.replace('_', '-')}",
        partial(_begin, make),
        round_inputs=8_000,
        check_every_inputs=4_000,
        ci_inputs=800,
        inputs_per_feed=ENTRY_COMMANDS,
    )
    for name, make in _MAKERS.items()
)

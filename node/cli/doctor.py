"""`mesh doctor`: is the mesh well? It asks every node; with --data it reads a stopped node's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from quorumesh.v1 import mesh_pb2

from mesh.client import Client
from mesh.client_errors import MeshError
from node.cli import exits
from node.cli.plain import dump
from node.cli.session import Session, connected, console, json_option, pass_session

REACH_TIMEOUT_S = 4.0
CLOCK_SPREAD_MS_MAX = 2_000
DIGEST_ROUNDS_MAX = 5
MARKS = {True: "[green]ok  [/]", False: "[bold red]BAD [/]", None: "[yellow]--  [/]"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it is well, and what was seen or should be done."""

    check: str
    ok: bool | None  # None: it could not be looked at
    text: str


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Check the folder of a stopped node instead; nothing in it is changed.",
)
@click.option("--peer", "peers", multiple=True, metavar="HOST:PORT",
              help="With --data: compare with this node. Default: the members it knows.")  # fmt: skip
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=None,
    help="With --data: put a copy of the ledger there meanwhile. Default: beside the folder.",
)
@json_option
@pass_session
def doctor(
    session: Session,
    data: Path | None,
    peers: tuple[str, ...],
    work: Path | None,
    as_json: bool,
) -> int:
    """Check that every node is reachable, agrees and can work. Exit code 1 when not.

    With --data it checks what a stopped node has on disk, and compares its ledger with its peers' at
    the same revision. Exit code 66 when it must not be used again: then 'mesh node start --rejoin'
    brings it back as a new node, in place of the old one.

    \b
    Example:  mesh doctor
              mesh doctor --data ~/.quorumesh/node      (a stopped node, read-only)
              mesh node start --rejoin --data ~/.quorumesh/node      (when that says BAD)
    """
    if data is not None:
        from node.cli.folder import examine_folder  # here, so that other commands start quickly

        findings = [Finding(*found) for found in examine_folder(data.expanduser(), peers, work)]
    else:
        with connected(session) as client:
            findings = list(_examine_mesh(session, client))
    for finding in findings:
        if as_json:
            click.echo(dump(asdict(finding)))
        else:
            console().print(f"{MARKS[finding.ok]} [bold]{finding.check:10}[/]  ", end="")
            console().print(finding.text, markup=False)
    if all(finding.ok is not False for finding in findings):
        return exits.OK
    return exits.DAMAGED if data is not None else exits.TASK_FAILED


COMMANDS = (doctor,)


def _examine_mesh(session: Session, client: Client) -> Iterator[Finding]:
    members = client.members()
    seen: dict[str, mesh_pb2.StatusReply] = {}
    for member in members:
        try:
            with _only(session, member.address) as one:
                seen[member.node_id] = one.status()
            yield Finding("reach", True, f"{member.name} at {member.address} answers")
        except MeshError as error:
            advice = "start it again, or check the network between the hosts"
            yield Finding("reach", False, f"{member.name} at {member.address}: {error}; {advice}")
    yield from judge(members, seen)
    yield _compare_digests(session, [one for one in members if one.node_id in seen])


def judge(
    members: Sequence[mesh_pb2.Member], seen: dict[str, mesh_pb2.StatusReply]
) -> Iterator[Finding]:
    """Judge what the nodes said of themselves: quorum, leader, clock, workers, version."""
    voters = [member for member in members if member.voter]
    up = sum(member.node_id in seen for member in voters)
    text = f"{up} of {len(voters)} voters answer"
    if up * 2 <= len(voters):
        yield Finding("quorum", False, f"{text}: no majority, so the mesh is read-only")
    else:
        spare = up - len(voters) // 2 - 1
        advice = "" if spare else "; no further voter may be lost: start or add one"
        yield Finding("quorum", True, f"{text}{advice}")
    leaders = {status.leader_id for status in seen.values() if status.leader_id}
    mute = [status.name for status in seen.values() if not status.writable]
    agree = len(leaders) == 1 and not mute
    told = f"all follow {leaders.copy().pop()}" if agree else f"cannot write: {', '.join(mute)}"
    if len(leaders) > 1:
        told = f"the nodes name different leaders: {', '.join(sorted(leaders))}; look again soon"
    yield Finding("leader", agree, told)
    counted = [status.counted_ms for status in seen.values()] or [0]
    spread_ms = max(counted) - min(counted)
    yield Finding("clock", spread_ms <= CLOCK_SPREAD_MS_MAX, f"counted time within {spread_ms} ms")
    workers = {
        (worker.node_id, worker.name)
        for status in seen.values()
        for worker in status.workers
        if worker.open
    }
    advice = "" if workers else "; start a node with --agents MODULE"
    yield Finding("workers", bool(workers), f"{len(workers)} open{advice}")
    versions = sorted({status.version for status in seen.values()})
    yield Finding("version", len(versions) <= 1, ", ".join(versions) or "unknown")


def _compare_digests(session: Session, members: Sequence[mesh_pb2.Member]) -> Finding:
    """The same revision must have the same digest everywhere; a busy mesh is asked again."""
    revision = 0
    replies: list[mesh_pb2.DigestReply] = []
    for _ in range(DIGEST_ROUNDS_MAX):
        replies = []
        for member in members:
            try:
                with _only(session, member.address) as one:
                    replies.append(one.digest(revision))
            except MeshError as error:
                return Finding("digest", False, f"{member.name} gave none: {error}")
            revision = max(revision, replies[-1].revision)
        if len({reply.revision for reply in replies}) == 1:
            break
    same: dict[int, set[bytes]] = {}
    for reply in replies:
        same.setdefault(reply.revision, set()).add(reply.chain + reply.full)
    if any(len(digests) > 1 for digests in same.values()):
        return Finding("digest", False, f"the ledgers DIFFER at revision {revision}")
    if len(same) > 1:
        return Finding("digest", True, "the mesh is too busy to compare; none differs so far")
    return Finding("digest", True, f"{len(replies)} ledgers are equal at revision {revision}")


def _only(session: Session, address: str) -> Client:
    return Client([address], profile=session.profile, dial=session.dial, timeout_s=REACH_TIMEOUT_S)

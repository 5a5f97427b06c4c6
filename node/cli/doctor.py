"""`mesh doctor`: is the mesh well? Online it asks every node; with --data it reads a ledger."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from quorumesh.v1 import mesh_pb2

from mesh.client import Client
from mesh.client_errors import MeshError
from node.cli import exits
from node.cli.plain import dump
from node.cli.session import Failure, Session, connected, console, json_option, pass_session

REACH_TIMEOUT_S = 4.0
CLOCK_SPREAD_MS_MAX = 2_000
DIGEST_ROUNDS_MAX = 5
VIOLATIONS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: what was looked at, whether it is well, and what was seen or should be done."""

    check: str
    ok: bool
    text: str


@click.command()
@click.option("--data", type=click.Path(path_type=Path, file_okay=False), default=None,
              help="Check the ledger in this folder of a stopped node instead.")  # fmt: skip
@json_option
@pass_session
def doctor(session: Session, data: Path | None, as_json: bool) -> int:
    """Check that every node is reachable, agrees and can work. Exit code 1 when not.

    \b
    Example:  mesh doctor
              mesh doctor --data ~/.quorumesh/node      (a stopped node, read-only)
    """
    if data is not None:
        findings = list(examine_folder(data.expanduser()))
    else:
        with connected(session) as client:
            findings = list(_examine_mesh(session, client))
    for finding in findings:
        if as_json:
            click.echo(dump(asdict(finding)))
        else:
            mark = "[green]ok  [/]" if finding.ok else "[bold red]BAD [/]"
            console().print(f"{mark} [bold]{finding.check}[/]  ", end="")
            console().print(finding.text, markup=False)
    return exits.OK if all(finding.ok for finding in findings) else exits.TASK_FAILED


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


def examine_folder(data: Path) -> Iterator[Finding]:
    """Read a node's ledger without changing it, and check what must always hold."""
    ledger = _ledger_in(data)
    from consensus.ledger import invariants

    yield Finding("folder", True, f"{ledger}")
    try:
        connection = sqlite3.connect(f"{ledger.absolute().as_uri()}?mode=ro", uri=True)
    except sqlite3.Error as error:
        raise Failure(f"{ledger} cannot be opened: {error}") from None
    try:
        said = connection.execute("PRAGMA quick_check").fetchone()[0]
        yield Finding("file", said == "ok", "pages are sound" if said == "ok" else str(said))
        wrong = invariants.violations(connection)
    except sqlite3.Error as error:
        yield Finding("file", False, f"{error}; restore this node by joining anew")
        return
    finally:
        connection.close()
    for one in wrong[:VIOLATIONS_SHOWN_MAX]:
        yield Finding("invariant", False, one)
    if len(wrong) > VIOLATIONS_SHOWN_MAX:
        yield Finding("invariant", False, f"and {len(wrong) - VIOLATIONS_SHOWN_MAX} more")
    if not wrong:
        yield Finding("invariant", True, "everything that must always hold does")


def _ledger_in(data: Path) -> Path:
    """Find the ledger in force: the folder that CURRENT names, at the top or one level below."""
    for current in sorted([data / "CURRENT", *data.glob("*/CURRENT")]):
        if current.is_file():
            name = current.read_text("ascii", "replace").strip()
            ledger = current.parent / name / "ledger.db"
            if "/" in name or not ledger.is_file():
                raise Failure(f"{current} names {name!r}, which is not there: the ledger is lost")
            return ledger
    raise Failure(f"{data} holds no ledger: give the folder of 'mesh node start --data'")

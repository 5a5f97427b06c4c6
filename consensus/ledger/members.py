"""The mesh itself: its founding, invitations, nodes and voters."""

from __future__ import annotations

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import AddToken, Admit, Bootstrap, MembershipChange, Outcome

from consensus.ledger import limits
from consensus.ledger.claims import lose_all
from consensus.ledger.specs import Refused, check_text, invalid
from consensus.ledger.store import Store


def bootstrap(store: Store, command: Bootstrap) -> Outcome:
    """Found the mesh with its first node, a voter. ALREADY_EXISTS when it has another id."""
    if store.meta.mesh_id:
        if store.meta.mesh_id != command.mesh_id:
            raise Refused(values_pb2.ALREADY_EXISTS, "the mesh has been founded already")
        return Outcome(revision=store.meta.applied_index)
    if not command.mesh_id or not command.node_id:
        raise invalid("a mesh and its first node need ids")
    store.meta.mesh_id = command.mesh_id
    _put(store, command, voter=1)
    return Outcome(revision=store.meta.applied_index)


def _put(store: Store, command: Bootstrap | Admit, *, voter: int, replaces: str = "") -> None:
    store.db.execute(
        "INSERT INTO member (node_id, name, address, voter, admitted_wall_ms, apply_version_max,"
        " replaces, leaving) VALUES (?,?,?,?,?,?,?,0)",
        (
            command.node_id,
            command.name,
            command.address,
            voter,
            store.meta.wall_ms,
            command.apply_version_max,
            replaces,
        ),
    )


def add_token(store: Store, command: AddToken) -> Outcome:
    """Take up an invitation. The same id and digest again is accepted again."""
    if not 1 <= len(command.token_id) <= 64 or not 1 <= len(command.secret_digest) <= 64:
        raise invalid("a token has an id and a digest of 1 to 64 bytes each")
    if command.ttl_ms > limits.TOKEN_TTL_MS_MAX:
        raise invalid(f"a token lives at most {limits.TOKEN_TTL_MS_MAX} ms")
    check_text("the principal", command.principal, limits.NAME_CHARS_MAX)
    row = store.db.execute(
        "SELECT secret_digest FROM token WHERE token_id=?", (command.token_id,)
    ).fetchone()
    if row is not None:
        if row[0] != command.secret_digest:
            raise Refused(values_pb2.ALREADY_EXISTS, "the token id is taken")
        return Outcome(revision=store.meta.applied_index)
    now_ms = store.meta.counted_ms
    (live_count,) = store.db.execute(
        "SELECT count(*) FROM token WHERE expires_ms > ?", (now_ms - limits.TOKEN_TTL_MS_MAX,)
    ).fetchone()
    if live_count >= limits.TOKENS_MAX:
        raise Refused(values_pb2.OVERLOADED, "there are too many join tokens")
    # Expired ones are kept for a while, so that a late join hears TOKEN_EXPIRED.
    store.db.execute("DELETE FROM token WHERE expires_ms <= ?", (now_ms - limits.TOKEN_TTL_MS_MAX,))
    expires_ms = now_ms + (command.ttl_ms or limits.TOKEN_TTL_MS_MAX)
    store.db.execute(
        "INSERT INTO token (token_id, secret_digest, expires_ms, principal, used_by)"
        " VALUES (?,?,?,?,'')",
        (command.token_id, command.secret_digest, expires_ms, command.principal),
    )
    return Outcome(revision=store.meta.applied_index)


def admit(store: Store, command: Admit) -> Outcome:
    """Use up a token for a node, or let it come in place of a damaged one. Again is accepted again.

    Refused: INVALID, TOKEN_UNKNOWN, TOKEN_USED, TOKEN_EXPIRED, NOT_FOUND, ALREADY_EXISTS, OVERLOADED
    (in this order). That the caller is the damaged node itself is for the caller's host to check.
    """
    if not command.node_id or not command.address:
        raise invalid("a node needs an id and an address")
    for text in (command.node_id, command.name, command.address, command.replaces):
        check_text("the node's data", text, limits.NAME_CHARS_MAX)
    if command.replaces:
        return _replace(store, command)
    row = store.db.execute(
        "SELECT secret_digest, expires_ms, used_by FROM token WHERE token_id=?",
        (command.token_id,),
    ).fetchone()
    if row is None or row[0] != command.secret_digest:
        raise Refused(values_pb2.TOKEN_UNKNOWN, "the join token is not known here")
    if row[2] == command.node_id:
        return Outcome(revision=store.meta.applied_index)
    if row[2]:
        raise Refused(values_pb2.TOKEN_USED, "the join token has been used; make a new one")
    if row[1] <= store.meta.counted_ms:
        raise Refused(values_pb2.TOKEN_EXPIRED, "the join token has expired; make a new one")
    members = store.db.execute("SELECT node_id FROM member ORDER BY node_id").fetchall()
    if (command.node_id,) in members:
        raise Refused(values_pb2.ALREADY_EXISTS, "the node id is taken")
    if len(members) >= limits.MEMBERS_MAX:
        raise Refused(values_pb2.OVERLOADED, "the mesh has as many nodes as it may have")
    store.db.execute(
        "UPDATE token SET used_by=? WHERE token_id=?", (command.node_id, command.token_id)
    )
    _put(store, command, voter=0)
    return Outcome(revision=store.meta.applied_index)


def _replace(store: Store, command: Admit) -> Outcome:
    """Admit a new node in place of a member, whose work is lost at once and whose vote is to go."""
    if command.token_id or command.node_id == command.replaces:
        raise invalid("a node comes by a token or in place of another one")
    known = store.db.execute(
        "SELECT replaces FROM member WHERE node_id=?", (command.node_id,)
    ).fetchone()
    if known is not None:
        if known[0] != command.replaces:
            raise Refused(values_pb2.ALREADY_EXISTS, "the node id is taken")
        return Outcome(revision=store.meta.applied_index)
    old = store.db.execute(
        "SELECT voter, leaving FROM member WHERE node_id=?", (command.replaces,)
    ).fetchone()
    if old is None:
        raise Refused(values_pb2.NOT_FOUND, "the node to be replaced is no member (any more)")
    if old[1]:
        raise Refused(values_pb2.ALREADY_EXISTS, "another node has come in its place already")
    _put(store, command, voter=0, replaces=command.replaces)
    # A voter stays until the log has taken its vote: majorities are counted with it until then.
    query = "UPDATE member SET leaving=1" if old[0] else "DELETE FROM member"
    store.db.execute(f"{query} WHERE node_id=?", (command.replaces,))
    for name in sorted(store.sessions):
        session = store.sessions[name]
        if session.node_id == command.replaces and session.is_open:
            session.is_open = 0
            lose_all(store, session, "its node is damaged and has been replaced")
    return Outcome(revision=store.meta.applied_index)


def change_voters(store: Store, change: MembershipChange) -> Outcome:
    """What the log says about voters holds; a node it does not know yet is put down.

    Who leaves the mesh is forgotten with its vote. A vote that was on its way while its node was
    replaced is one that leaves.
    """
    store.db.execute(
        "INSERT INTO member (node_id, name, address, voter, admitted_wall_ms, apply_version_max,"
        " replaces, leaving) VALUES (?1,'',?2,?3,?4,1,'',"
        " EXISTS (SELECT 1 FROM member WHERE replaces=?1))"
        " ON CONFLICT (node_id) DO UPDATE SET voter=excluded.voter,"
        " address=CASE excluded.address WHEN '' THEN address ELSE excluded.address END",
        (change.node_id, change.address, int(change.add), store.meta.wall_ms),
    )
    store.db.execute(
        "DELETE FROM member WHERE node_id=? AND voter=0 AND leaving=1", (change.node_id,)
    )
    return Outcome(revision=store.meta.applied_index)

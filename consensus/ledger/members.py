"""The mesh itself: its founding, invitations, nodes and voters."""

from __future__ import annotations

from quorumesh.v1 import values_pb2
from quorumesh.v1.ledger_pb2 import AddToken, Admit, Bootstrap, MembershipChange, Outcome, Suspect

from consensus.ledger import limits, sessions
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

    Refused: INVALID, TOKEN_UNKNOWN, ALREADY_EXISTS (the id of a removed node), TOKEN_USED,
    TOKEN_EXPIRED, NOT_FOUND, ALREADY_EXISTS, OVERLOADED (in this order). That the caller is the
    damaged node itself is for the caller's host to check.
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
    if _has_departed(store, command.node_id):
        raise Refused(values_pb2.ALREADY_EXISTS, "a node of this id was removed from the mesh")
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
    if _has_departed(store, command.node_id):
        raise Refused(values_pb2.ALREADY_EXISTS, "a node of this id was removed from the mesh")
    old = store.db.execute(
        "SELECT voter, leaving FROM member WHERE node_id=?", (command.replaces,)
    ).fetchone()
    if old is None:
        raise Refused(values_pb2.NOT_FOUND, "the node to be replaced is no member (any more)")
    if old[1]:
        raise Refused(values_pb2.ALREADY_EXISTS, "another node has come in its place already")
    _put(store, command, voter=0, replaces=command.replaces)
    # A voter stays until the log has taken its vote: majorities are counted with it until then.
    if old[0]:
        store.db.execute("UPDATE member SET leaving=1 WHERE node_id=?", (command.replaces,))
    else:
        _remove(store, command.replaces)
    for name in sorted(store.sessions):
        session = store.sessions[name]
        if session.node_id == command.replaces and session.is_open:
            session.is_open = 0
            lose_all(store, session, "its node is damaged and has been replaced")
    return Outcome(revision=store.meta.applied_index)


def _has_departed(store: Store, node_id: str) -> bool:
    query = "SELECT 1 FROM departed WHERE node_id=?"
    return store.db.execute(query, (node_id,)).fetchone() is not None


def change_voters(store: Store, change: MembershipChange) -> Outcome:
    """What the log says about voters holds; a node it does not know yet is put down.

    A removal takes the node out of the mesh: no vote, no membership, and its id is spent. A vote
    that was on its way while its node was replaced is one that leaves.
    """
    if not change.add:
        _remove(store, change.node_id)
        return Outcome(revision=store.meta.applied_index)
    store.db.execute(
        "INSERT INTO member (node_id, name, address, voter, admitted_wall_ms, apply_version_max,"
        " replaces, leaving) VALUES (?1,'',?2,1,?3,1,'',"
        " EXISTS (SELECT 1 FROM departed WHERE node_id=?1))"
        " ON CONFLICT (node_id) DO UPDATE SET voter=1,"
        " address=CASE excluded.address WHEN '' THEN address ELSE excluded.address END",
        (change.node_id, change.address, store.meta.wall_ms),
    )
    return Outcome(revision=store.meta.applied_index)


def _remove(store: Store, node_id: str) -> None:
    row = store.db.execute("SELECT address FROM member WHERE node_id=?", (node_id,)).fetchone()
    if row is None:
        return
    store.db.execute("DELETE FROM member WHERE node_id=?", (node_id,))
    store.db.execute(
        "INSERT OR REPLACE INTO departed (node_id, address, revision, counted_ms) VALUES (?,?,?,?)",
        (node_id, row[0], store.meta.applied_index, store.meta.counted_ms),
    )
    store.db.execute(
        "DELETE FROM departed WHERE revision <="
        " (SELECT revision FROM departed ORDER BY revision DESC LIMIT 1 OFFSET ?)",
        (limits.DEPARTED_MAX,),
    )
    # Nobody suspects who is no member: its workers get nothing until they come through another node.
    sessions.suspect(store, Suspect(node_id=node_id))

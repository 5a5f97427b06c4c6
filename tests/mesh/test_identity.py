"""Identity: who is believed, and what is said to whoever is not."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mesh.credentials import ClientCredentials, NodeCredentials, principal_of
from mesh.errors import (
    BadPem,
    CertificateExpired,
    IdentityError,
    KeyMismatch,
    NoPrincipal,
    SealBroken,
    WrongAuthority,
)
from mesh.identity import (
    Authority,
    Principal,
    key_pem,
    new_key,
    new_request,
    node_id_of,
    requested_key,
)
from mesh.sealed import seal, unseal


def credentials_of(authority: Authority, principal: Principal) -> NodeCredentials:
    key = new_key()
    certificate = authority.issue(key.public_key(), principal, hosts=["10.0.0.7", "host.example"])
    return NodeCredentials(authority.certificate_pem, certificate, key_pem(key))


def test_saved_credentials_load_and_are_private(tmp_path: Path) -> None:
    credentials = credentials_of(Authority.create("m"), Principal("node", "n1"))

    credentials.save(tmp_path)

    assert NodeCredentials.load(tmp_path) == credentials
    assert credentials.node_id == "n1"
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert sorted(one.name for one in tmp_path.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]


def test_a_node_certificate_carries_its_names_and_a_client_one_cannot_serve() -> None:
    authority = Authority.create("m")

    node = x509.load_pem_x509_certificate(
        credentials_of(authority, Principal("node", "n1")).certificate_pem
    )
    client = x509.load_pem_x509_certificate(
        credentials_of(authority, Principal("client", "ann")).certificate_pem
    )

    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"quorumesh", "n1.quorumesh", "localhost", "host.example"} == set(
        names.get_values_for_type(x509.DNSName)
    )
    assert "10.0.0.7" in map(str, names.get_values_for_type(x509.IPAddress))
    usages = client.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [usage.dotted_string for usage in usages] == ["1.3.6.1.5.5.7.3.2"]


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_bad_or_missing_file_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    credentials_of(Authority.create("m"), Principal("node", "n1")).save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(BadPem, match=name):
        NodeCredentials.load(tmp_path)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    credentials_of(Authority.create("m"), Principal("node", "n1")).save(tmp_path)
    (tmp_path / "key.pem").write_bytes(key_pem(new_key()))

    with pytest.raises(KeyMismatch):
        NodeCredentials.load(tmp_path)


def test_an_expired_certificate_says_until_when_and_what_to_do(tmp_path: Path) -> None:
    credentials_of(Authority.create("m"), Principal("node", "n1")).save(tmp_path)
    later = datetime.now(UTC) + timedelta(days=366)

    with pytest.raises(CertificateExpired, match=r"good until .* UTC; let this host join again"):
        NodeCredentials.load(tmp_path, now=later)


def test_a_certificate_from_before_the_clock_says_to_set_it(tmp_path: Path) -> None:
    credentials_of(Authority.create("m"), Principal("node", "n1")).save(tmp_path)
    earlier = datetime.now(UTC) - timedelta(days=2)

    with pytest.raises(CertificateExpired, match="set this host's clock"):
        NodeCredentials.load(tmp_path, now=earlier)


def test_a_host_whose_clock_is_an_hour_behind_can_use_what_was_just_made(tmp_path: Path) -> None:
    credentials_of(Authority.create("m"), Principal("node", "n1")).save(tmp_path)
    behind = datetime.now(UTC) - timedelta(hours=1)

    assert NodeCredentials.load(tmp_path, now=behind).node_id == "n1"


def test_a_certificate_of_another_mesh_is_refused(tmp_path: Path) -> None:
    credentials_of(Authority.create("m"), Principal("node", "n1")).save(tmp_path)
    (tmp_path / "ca.pem").write_bytes(Authority.create("m").certificate_pem)

    with pytest.raises(WrongAuthority):
        NodeCredentials.load(tmp_path)


def test_a_client_certificate_does_not_make_a_node(tmp_path: Path) -> None:
    credentials_of(Authority.create("m"), Principal("client", "ann")).save(tmp_path)

    assert ClientCredentials.load(tmp_path).check() == Principal("client", "ann")
    with pytest.raises(IdentityError, match="client:ann"):
        NodeCredentials.load(tmp_path)


@pytest.mark.parametrize("text", ["", "node:", "node:A/B", "root:x", "join:12", "node:" + "a" * 99])
def test_nobody_is_issued_a_certificate_for_a_bad_name(text: str) -> None:
    kind, _, name = text.partition(":")

    with pytest.raises(IdentityError):
        Authority.create("m").issue(new_key().public_key(), Principal(kind, name))
    with pytest.raises(NoPrincipal):
        principal_of({"x509_common_name": [text.encode()]})


def test_a_call_without_a_certificate_has_no_principal() -> None:
    with pytest.raises(NoPrincipal):
        principal_of({})


def test_the_authority_survives_disk_and_seal(tmp_path: Path) -> None:
    authority, voter = Authority.create("m"), new_key()
    authority.save(tmp_path)

    loaded = Authority.load(tmp_path)
    travelled = Authority.from_parts(
        loaded.certificate_pem, unseal(seal(loaded.key_der, voter.public_key()), voter)
    )

    assert travelled.fingerprint == authority.fingerprint
    assert stat.S_IMODE((tmp_path / "ca-key.pem").stat().st_mode) == 0o600


def test_a_request_gives_its_key_and_always_the_same_node_id() -> None:
    key = new_key()

    assert requested_key(new_request(key)) == key.public_key()
    assert node_id_of(key.public_key()) == node_id_of(requested_key(new_request(key)))


def test_a_changed_or_foreign_request_is_refused() -> None:
    request = bytearray(new_request(new_key()))
    request[-1] ^= 1
    other = ec.generate_private_key(ec.SECP384R1())

    for csr in (bytes(request), b"", b"x" * 100, bytes(100_000), new_request(other)):
        with pytest.raises(IdentityError):
            requested_key(csr)


def test_a_sealed_box_opens_for_its_key_only_and_unchanged_only() -> None:
    key = new_key()
    box = seal(b"the CA key", key.public_key())

    assert unseal(box, key) == b"the CA key"
    with pytest.raises(SealBroken):
        unseal(box, new_key())
    for at in range(len(box)):
        changed = bytearray(box)
        changed[at] ^= 0x01
        with pytest.raises(SealBroken):
            unseal(bytes(changed), key)
    for end in range(len(box)):
        with pytest.raises(SealBroken):
            unseal(box[:end], key)


def test_a_key_of_another_curve_is_refused(tmp_path: Path) -> None:
    credentials_of(Authority.create("m"), Principal("node", "n1")).save(tmp_path)
    other = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "key.pem").write_bytes(other)

    with pytest.raises(BadPem, match="P-256"):
        NodeCredentials.load(tmp_path)

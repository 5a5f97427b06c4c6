"""Who is who: the mesh's certificate authority, and the certificates it issues.

Decides what a certificate may say; a request's own subject and extensions are never copied. Keeps
no list of what it issued and revokes nothing: admission and roles are checked at each call.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mesh.errors import BadPem, CertificateExpired, IdentityError, KeyMismatch, WrongAuthority, when

SERVER_NAME = "quorumesh"  # on every node's certificate, whatever its address
AUTHORITY_LIFETIME = timedelta(days=3_652)
LEAF_LIFETIME = timedelta(days=365)
# Hosts' clocks differ, by hours where a time zone is set wrong: certificates are good from a day
# before they were made, so that such a host can speak from the first day on.
CLOCK_SKEW = timedelta(hours=25)
PEM_BYTES_MAX = 65_536
NAME_CHARS_MAX = 48

CA_FILE = "ca.pem"
CA_KEY_FILE = "ca-key.pem"
CERTIFICATE_FILE = "cert.pem"
KEY_FILE = "key.pem"

# What is raised by bytes that are not the certificate, request or key that they should be.
UNREADABLE = (
    *(ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm),
    *(x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType),
)

_NODE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_CLIENT_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,48}")
_TOKEN_ID = re.compile(r"[0-9a-f]{32}")
_NAMES = {"node": _NODE_ID, "client": _CLIENT_NAME, "join": _TOKEN_ID}

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Principal:
    """Whom a certificate stands for. `kind` is node, client or join."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    @staticmethod
    def parse(text: str) -> Principal:
        """Read `kind:name`. Raises IdentityError where it names nobody."""
        kind, _, name = text.partition(":")
        pattern = _NAMES.get(kind)
        if pattern is None or not pattern.fullmatch(name):
            raise IdentityError(f"{text[:80]!r} is not a principal of a mesh")
        return Principal(kind, name)


@dataclass(frozen=True, slots=True)
class Authority:
    """The mesh's certificate authority. Every voter holds it, so that any can admit nodes."""

    certificate: x509.Certificate
    key: PrivateKey

    @staticmethod
    def create(mesh_id: str, *, now: datetime | None = None) -> Authority:
        """Make the authority of a new mesh, good for ten years."""
        now = now or datetime.now(UTC)
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"mesh:{mesh_id}"[:64])])
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(now + AUTHORITY_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        return Authority(certificate, key)

    @staticmethod
    def from_parts(certificate_pem: bytes, key_der: bytes) -> Authority:
        """Put together the authority from its certificate and its unsealed key."""
        certificate = read_certificate(certificate_pem, "the mesh's CA certificate")
        try:
            key = serialization.load_der_private_key(key_der, password=None)
        except UNREADABLE as error:
            raise BadPem(f"the mesh's CA key cannot be read: {error}") from error
        checked = _p256(key, "the mesh's CA key")
        _check_pair(certificate, checked, "the mesh's CA key")
        return Authority(certificate, checked)

    @staticmethod
    def load(folder: Path) -> Authority:
        """Read the authority that `save` wrote. Raises BadPem or KeyMismatch."""
        certificate = read_certificate(_read(folder / CA_FILE), str(folder / CA_FILE))
        key = read_key(_read(folder / CA_KEY_FILE), str(folder / CA_KEY_FILE))
        _check_pair(certificate, key, str(folder / CA_KEY_FILE))
        return Authority(certificate, key)

    def save(self, folder: Path) -> None:
        """Write certificate and key, the key readable by its owner only."""
        write_atomic(folder / CA_KEY_FILE, key_pem(self.key))
        write_atomic(folder / CA_FILE, self.certificate_pem)

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def key_der(self) -> bytes:
        """The private key, to be sealed to a voter. Never send it otherwise."""
        return key_der(self.key)

    @property
    def fingerprint(self) -> bytes:
        return fingerprint(self.certificate_der)

    def issue(
        self,
        public_key: PublicKey,
        principal: Principal,
        *,
        hosts: Sequence[str] = (),
        lifetime: timedelta = LEAF_LIFETIME,
        now: datetime | None = None,
    ) -> bytes:
        """Certify that the key belongs to the principal. PEM.

        Only a node's certificate can serve, and only it carries names: `hosts` are those that it
        is reached at besides `quorumesh`, `<id>.quorumesh` and `localhost`.
        """
        Principal.parse(str(principal))
        _check_p256(public_key, "the key to be certified")
        now = now or datetime.now(UTC)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if principal.kind == "node":
            usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        until = min(now + lifetime, self.certificate.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(principal))]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCK_SKEW)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
        )
        if principal.kind == "node":
            names = x509.SubjectAlternativeName(_alternative_names(principal.name, hosts))
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)


def new_key() -> PrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_der(key: PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def fingerprint(certificate_der: bytes) -> bytes:
    """SHA-256 of a certificate: 32 bytes."""
    return hashlib.sha256(certificate_der).digest()


def new_request(key: PrivateKey) -> bytes:
    """A request (PKCS #10, DER) that proves the holding of the key and asks for nothing else."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "joining")])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.DER)


def requested_key(csr_der: bytes) -> PublicKey:
    """The public key of a request whose signature is right. Raises IdentityError."""
    if len(csr_der) > PEM_BYTES_MAX:
        raise IdentityError("the certificate request is too large")
    try:
        request = x509.load_der_x509_csr(csr_der)
        valid = request.is_signature_valid
        key = request.public_key()
    except UNREADABLE as error:
        raise IdentityError(f"the certificate request cannot be read: {error}") from error
    if not valid:
        raise IdentityError("the certificate request is not signed by its own key")
    if not isinstance(key, PublicKey):
        raise IdentityError("the certificate request must carry a P-256 key")
    _check_p256(key, "the key of the certificate request")
    return key


def node_id_of(public_key: PublicKey) -> str:
    """The node id that belongs to a key: the same request always gives the same id."""
    encoded = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "n" + hashlib.sha256(encoded).hexdigest()[:15]


def read_certificate(pem: bytes, where: str) -> x509.Certificate:
    """Read a PEM certificate; `where` names it in errors."""
    try:
        return read_whole(x509.load_pem_x509_certificate(pem))
    except UNREADABLE as error:
        raise BadPem(f"{where} is not a PEM certificate: {error}") from error


def read_whole(certificate: x509.Certificate) -> x509.Certificate:
    """Look now at what the library would look at later. Raises one of UNREADABLE."""
    certificate.public_key()
    _ = certificate.subject, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return certificate


def read_key(pem: bytes, where: str) -> PrivateKey:
    """Read a PEM private key; `where` names it in errors."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except UNREADABLE as error:
        raise BadPem(f"{where} is not a PEM private key: {error}") from error
    return _p256(key, where)


def principal_in(certificate: x509.Certificate) -> Principal:
    """Whom the certificate stands for."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise IdentityError("the certificate names no single principal")
    return Principal.parse(str(names[0].value))


def check_leaf(
    authority: x509.Certificate,
    certificate: x509.Certificate,
    key: PrivateKey,
    *,
    where: str,
    now: datetime | None = None,
) -> Principal:
    """Whom a certificate stands for, once key, issuer and dates are found to be right."""
    _check_pair(certificate, key, where)
    try:
        certificate.verify_directly_issued_by(authority)
    except UNREADABLE as error:
        raise WrongAuthority(f"{where}: the certificate was not issued by this mesh") from error
    now = now or datetime.now(UTC)
    for one, what in ((certificate, "certificate"), (authority, "CA certificate")):
        until = one.not_valid_after_utc
        if now > until:
            raise CertificateExpired(
                f"{where}: the {what} was good until {when(until)}; let this host join again "
                "with a new token (mesh join-token on another node)",
                until=until,
            )
        if now < one.not_valid_before_utc:
            raise CertificateExpired(
                f"{where}: the {what} is good only from {when(one.not_valid_before_utc)}; "
                "set this host's clock",
                until=until,
            )
    return principal_in(certificate)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace a file as a whole, synced, readable and writable by its owner only."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_pem(path: Path) -> bytes:
    """The bytes of a small file. Raises BadPem that names it."""
    return _read(path)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise BadPem(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > PEM_BYTES_MAX:
        raise BadPem(f"{path} is larger than {PEM_BYTES_MAX} bytes: not a key or certificate")
    return data


def _check_p256(key: PublicKey, where: str) -> None:
    if not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"{where} is not a P-256 key")


def _p256(key: object, where: str) -> PrivateKey:
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise BadPem(f"{where} is not a P-256 key")
    return key


def _check_pair(certificate: x509.Certificate, key: PrivateKey, where: str) -> None:
    if certificate.public_key() != key.public_key():
        raise KeyMismatch(f"{where}: the key does not belong to the certificate beside it")


def _alternative_names(node_id: str, hosts: Sequence[str]) -> list[x509.GeneralName]:
    loopback = ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")
    names: list[x509.GeneralName] = [
        x509.DNSName(SERVER_NAME),
        x509.DNSName(f"{node_id}.{SERVER_NAME}"),
        x509.DNSName("localhost"),
        *(x509.IPAddress(address) for address in loopback),
    ]
    for host in hosts:
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
        except ValueError:
            try:
                name = x509.DNSName(host)
            except ValueError as error:
                raise IdentityError(f"{host!r} is neither a host name nor an address") from error
        if name not in names:
            names.append(name)
    return names

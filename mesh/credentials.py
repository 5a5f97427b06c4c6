"""Certificates in the form that gRPC takes, and the principal of a call in the form we take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc

from mesh.errors import IdentityError, NoPrincipal
from mesh.identity import (
    CA_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    SERVER_NAME,
    Principal,
    check_leaf,
    read_certificate,
    read_key,
    read_pem,
    write_atomic,
)

__all__ = [
    "CHANNEL_TLS_OPTIONS",
    "ClientCredentials",
    "NodeCredentials",
    "Principal",
    "principal_of",
    "tls_options_for",
]

# Any node of the mesh will do: all carry this name beside their own.
CHANNEL_TLS_OPTIONS: tuple[tuple[str, str], ...] = (
    ("grpc.ssl_target_name_override", SERVER_NAME),
    ("grpc.default_authority", SERVER_NAME),
)


@dataclass(frozen=True, slots=True)
class ClientCredentials:
    """What lets a program call a mesh: the mesh's CA certificate, its own certificate and key."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes

    @classmethod
    def load(cls, folder: Path, *, now: datetime | None = None) -> ClientCredentials:
        """Read ca.pem, cert.pem and key.pem. Raises IdentityError that says what to do."""
        return cls(*_load(folder, "", now))

    def save(self, folder: Path) -> None:
        _save(self.ca_pem, self.certificate_pem, self.key_pem, folder)

    def check(self, *, where: str = "credentials", now: datetime | None = None) -> Principal:
        """The principal, once key, certificate, issuer and dates are found to be right."""
        return _check(self.ca_pem, self.certificate_pem, self.key_pem, where, now)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """To be used with CHANNEL_TLS_OPTIONS."""
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)


@dataclass(frozen=True, slots=True)
class NodeCredentials:
    """What a node serves and dials with. One key, one certificate for both."""

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes

    @classmethod
    def load(cls, folder: Path, *, now: datetime | None = None) -> NodeCredentials:
        """Read ca.pem, cert.pem and key.pem. Raises IdentityError that says what to do."""
        return cls(*_load(folder, "node", now))

    def save(self, folder: Path) -> None:
        _save(self.ca_pem, self.certificate_pem, self.key_pem, folder)

    def check(self, *, where: str = "credentials", now: datetime | None = None) -> Principal:
        """The principal, once key, certificate, issuer and dates are found to be right."""
        return _check(self.ca_pem, self.certificate_pem, self.key_pem, where, now)

    @property
    def node_id(self) -> str:
        return self.check().name

    def server_credentials(self) -> grpc.ServerCredentials:
        """Serve with mutual TLS: a call without a certificate of this mesh never arrives."""
        return grpc.ssl_server_credentials(
            [(self.key_pem, self.certificate_pem)],
            root_certificates=self.ca_pem,
            require_client_auth=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """To be used with CHANNEL_TLS_OPTIONS, or `tls_options_for` one node."""
        return grpc.ssl_channel_credentials(self.ca_pem, self.key_pem, self.certificate_pem)


def tls_options_for(node_id: str) -> tuple[tuple[str, str], ...]:
    """Channel options under which only that node's certificate is accepted."""
    name = f"{node_id}.{SERVER_NAME}"
    return (("grpc.ssl_target_name_override", name), ("grpc.default_authority", name))


def principal_of(auth_context: Mapping[str, Iterable[bytes]]) -> Principal:
    """Who calls, by `context.auth_context()`. Raises NoPrincipal where no certificate says so."""
    names = list(auth_context.get("x509_common_name", ()))
    if len(names) != 1:
        raise NoPrincipal("the call carries no certificate of this mesh")
    try:
        return Principal.parse(names[0].decode())
    except (IdentityError, UnicodeDecodeError) as error:
        raise NoPrincipal("the call's certificate names no principal of a mesh") from error


def _load(folder: Path, kind: str, now: datetime | None) -> tuple[bytes, bytes, bytes]:
    ca, certificate, key = (
        read_pem(folder / name) for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE)
    )
    principal = _check(ca, certificate, key, str(folder), now)
    if kind and principal.kind != kind:
        raise IdentityError(f"{folder} holds the certificate of {principal}, not of a {kind}")
    return ca, certificate, key


def _save(ca: bytes, certificate: bytes, key: bytes, folder: Path) -> None:
    # The certificate comes last: a folder that has one has all.
    write_atomic(folder / CA_FILE, ca)
    write_atomic(folder / KEY_FILE, key)
    write_atomic(folder / CERTIFICATE_FILE, certificate)


def _check(
    ca: bytes, certificate: bytes, key: bytes, where: str, now: datetime | None
) -> Principal:
    return check_leaf(
        read_certificate(ca, f"{where}: {CA_FILE}"),
        read_certificate(certificate, f"{where}: {CERTIFICATE_FILE}"),
        read_key(key, f"{where}: {KEY_FILE}"),
        where=where,
        now=now,
    )

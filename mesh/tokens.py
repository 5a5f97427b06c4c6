"""The text that lets one host join: where the mesh is, how to know it, and a one-use secret.

All is checked before anything is sent: that the text is whole, that the CA certificate is the one
whose fingerprint it names, that the join certificate is that CA's. That the secret is used once is
the ledger's to hold: it knows a digest of it, never the secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from mesh.errors import TokenExpired, TokenMalformed, when
from mesh.identity import (
    UNREADABLE,
    Authority,
    Principal,
    PrivateKey,
    fingerprint,
    key_der,
    key_pem,
    new_key,
    read_whole,
)

PREFIX = "qm1."
ADDRESSES_MAX = 8
ADDRESS_CHARS_MAX = 255
TTL_MS_MAX = 3_600_000
TOKEN_CHARS_MAX = 8_192
ID_BYTES = 16
SECRET_BYTES = 32

_DIGEST_BYTES = 32
_CHECK_BYTES = 4
_DER_BYTES_MAX = 2_048
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Token:
    """A decoded join token. Its secret and key are kept out of its repr."""

    token_id: bytes
    secret: bytes = field(repr=False)
    expires_wall_ms: int
    addresses: tuple[str, ...]
    ca_fingerprint: bytes
    ca_der: bytes = field(repr=False)
    certificate_der: bytes = field(repr=False)
    key_der: bytes = field(repr=False)

    @property
    def secret_digest(self) -> bytes:
        return secret_digest(self.secret)

    @property
    def ca_pem(self) -> bytes:
        return _certificate(self.ca_der).public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_pem(self) -> bytes:
        return _certificate(self.certificate_der).public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return key_pem(_key(self.key_der))


def secret_digest(secret: bytes) -> bytes:
    """What the ledger knows of a secret."""
    return hashlib.sha256(b"quorumesh join secret 1" + secret).digest()


def new_token(
    authority: Authority, addresses: Sequence[str], *, ttl_ms: int, now_wall_ms: int
) -> Token:
    """Make a token for one join through any of the addresses, within `ttl_ms` (at most 1 h).

    The mesh takes it once the ledger has its id, `secret_digest` and life.
    """
    if not 0 < ttl_ms <= TTL_MS_MAX:
        raise ValueError(f"a token lives between 1 and {TTL_MS_MAX} ms")
    kept = tuple(dict.fromkeys(addresses))[:ADDRESSES_MAX]
    if not kept or not all(is_address(address) for address in kept):
        raise ValueError(f"a token needs 1 to {ADDRESSES_MAX} addresses of the form host:port")
    token_id, key = os.urandom(ID_BYTES), new_key()
    pem = authority.issue(
        key.public_key(),
        Principal("join", token_id.hex()),
        lifetime=timedelta(milliseconds=ttl_ms) + timedelta(minutes=10),
        now=datetime.fromtimestamp(now_wall_ms / 1000, UTC),
    )
    certificate = x509.load_pem_x509_certificate(pem)
    return Token(
        token_id=token_id,
        secret=os.urandom(SECRET_BYTES),
        expires_wall_ms=now_wall_ms + ttl_ms,
        addresses=kept,
        ca_fingerprint=authority.fingerprint,
        ca_der=authority.certificate_der,
        certificate_der=certificate.public_bytes(serialization.Encoding.DER),
        key_der=key_der(key),
    )


def is_address(text: str) -> bool:
    """Whether it has the form host:port that others can dial."""
    found = _ADDRESS.fullmatch(text)
    return found is not None and len(text) <= ADDRESS_CHARS_MAX and 0 < int(found[1]) < 65_536


def encode(token: Token) -> str:
    """One line to paste."""
    parts = [
        token.expires_wall_ms.to_bytes(8, "big"),
        token.token_id,
        token.secret,
        token.ca_fingerprint,
        len(token.addresses).to_bytes(1, "big"),
    ]
    for address in token.addresses:
        text = address.encode("ascii")
        parts.append(len(text).to_bytes(1, "big") + text)
    for der in (token.ca_der, token.certificate_der, token.key_der):
        parts.append(len(der).to_bytes(2, "big") + der)
    body = b"".join(parts)
    return PREFIX + base64.urlsafe_b64encode(body + _check(body)).rstrip(b"=").decode("ascii")


def decode(text: str, *, now_wall_ms: int) -> Token:
    """Read a token and check all that can be checked here.

    Raises TokenMalformed or TokenExpired. Line breaks that pasting brought in do no harm.
    """
    body = _body(text)
    reader = _Reader(body)
    expires_wall_ms = int.from_bytes(reader.take(8), "big")
    token_id, secret = reader.take(ID_BYTES), reader.take(SECRET_BYTES)
    ca_fingerprint = reader.take(_DIGEST_BYTES)
    count = reader.take(1)[0]
    if not 1 <= count <= ADDRESSES_MAX:
        raise TokenMalformed(f"the token names {count} addresses, not 1 to {ADDRESSES_MAX}")
    addresses = tuple(reader.address() for _ in range(count))
    ca_der, certificate_der, key = reader.der(), reader.der(), reader.der()
    reader.finish()
    token = Token(
        token_id=token_id,
        secret=secret,
        expires_wall_ms=expires_wall_ms,
        addresses=addresses,
        ca_fingerprint=ca_fingerprint,
        ca_der=ca_der,
        certificate_der=certificate_der,
        key_der=key,
    )
    _check_certificates(token)
    if now_wall_ms >= expires_wall_ms:
        until = _moment(expires_wall_ms)
        raise TokenExpired(
            f"the token was good until {when(until)}; make a new one with mesh join-token",
            until=until,
        )
    return token


@dataclass(slots=True)
class _Reader:
    data: bytes
    at: int = 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise TokenMalformed("the token is too short")
        taken, self.at = self.data[self.at : end], end
        return taken

    def address(self) -> str:
        try:
            text = self.take(self.take(1)[0]).decode("ascii")
        except UnicodeDecodeError as error:
            raise TokenMalformed("an address in the token is not text") from error
        if not is_address(text):
            raise TokenMalformed(f"{text!r} in the token is not an address")
        return text

    def der(self) -> bytes:
        count = int.from_bytes(self.take(2), "big")
        if not 1 <= count <= _DER_BYTES_MAX:
            raise TokenMalformed(f"a certificate or key in the token has {count} bytes")
        return self.take(count)

    def finish(self) -> None:
        if self.at != len(self.data):
            raise TokenMalformed("the token is too long")


def _body(text: str) -> bytes:
    if len(text) > TOKEN_CHARS_MAX:
        raise TokenMalformed(f"the text is longer than a token ({TOKEN_CHARS_MAX} characters)")
    joined = "".join(text.split())
    if not joined.startswith(PREFIX):
        raise TokenMalformed(f"a token starts with {PREFIX!r}: paste the whole of it")
    encoded = joined[len(PREFIX) :]
    try:
        padded = encoded.encode("ascii") + b"=" * (-len(encoded) % 4)
        data = base64.b64decode(padded, altchars=b"-_", validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise TokenMalformed("the token holds characters that do not belong there") from error
    body, check = data[:-_CHECK_BYTES], data[-_CHECK_BYTES:]
    if not hmac.compare_digest(_check(body), check):
        raise TokenMalformed("the token is cut or changed: paste the whole of it")
    return body


def _check(body: bytes) -> bytes:
    return hashlib.sha256(b"quorumesh token 1" + body).digest()[:_CHECK_BYTES]


def _check_certificates(token: Token) -> None:
    if not hmac.compare_digest(fingerprint(token.ca_der), token.ca_fingerprint):
        raise TokenMalformed("the token's CA certificate is not the one that it names")
    certificate = _certificate(token.certificate_der)
    try:
        certificate.verify_directly_issued_by(_certificate(token.ca_der))
    except UNREADABLE as error:
        raise TokenMalformed("the token's join certificate is not from its mesh") from error
    if certificate.public_key() != _key(token.key_der).public_key():
        raise TokenMalformed("the token's key does not belong to its join certificate")


def _certificate(der: bytes) -> x509.Certificate:
    try:
        return read_whole(x509.load_der_x509_certificate(der))
    except UNREADABLE as error:
        raise TokenMalformed("a certificate in the token cannot be read") from error


def _key(der: bytes) -> PrivateKey:
    try:
        key = serialization.load_der_private_key(der, password=None)
    except UNREADABLE as error:
        raise TokenMalformed("the key in the token cannot be read") from error
    if not isinstance(key, PrivateKey):
        raise TokenMalformed("the key in the token is of another kind")
    return key


def _moment(wall_ms: int) -> datetime:
    try:
        return datetime.fromtimestamp(wall_ms / 1000, UTC)
    except (OverflowError, ValueError, OSError) as error:
        raise TokenMalformed("the token's end of life is no date") from error

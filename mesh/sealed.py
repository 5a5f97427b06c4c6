"""A box that only the holder of one private key opens: how the CA key travels to a voter.

Ephemeral ECDH on P-256, HKDF-SHA256, AES-256-GCM. Says nothing about who sealed it: the stream that
carries it does.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from mesh.errors import SealBroken
from mesh.identity import PrivateKey, PublicKey

SEALED_BYTES_MAX = 65_536

_VERSION = b"\x01"
_POINT_BYTES = 65
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEAD_BYTES = len(_VERSION) + _POINT_BYTES + _NONCE_BYTES
_PURPOSE = b"quorumesh sealed box 1"


def seal(data: bytes, public_key: PublicKey) -> bytes:
    """Encrypt to the holder of the key. Each box is different, even of the same data."""
    if len(data) > SEALED_BYTES_MAX - _HEAD_BYTES - _TAG_BYTES:
        raise ValueError(f"a sealed box holds at most {SEALED_BYTES_MAX} bytes")
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    point = _point(ephemeral.public_key())
    secret = _secret(ephemeral.exchange(ec.ECDH(), public_key), point, _point(public_key))
    nonce = os.urandom(_NONCE_BYTES)
    head = _VERSION + point + nonce
    return head + AESGCM(secret).encrypt(nonce, data, head)


def unseal(box: bytes, private_key: PrivateKey) -> bytes:
    """Open what `seal` made for this key. Raises SealBroken: changed, cut, or for another key."""
    if not _HEAD_BYTES + _TAG_BYTES <= len(box) <= SEALED_BYTES_MAX or box[:1] != _VERSION:
        raise SealBroken("this is not a whole sealed box")
    head, rest = box[:_HEAD_BYTES], box[_HEAD_BYTES:]
    point, nonce = head[1 : 1 + _POINT_BYTES], head[1 + _POINT_BYTES :]
    try:
        ephemeral = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        shared = private_key.exchange(ec.ECDH(), ephemeral)
        secret = _secret(shared, point, _point(private_key.public_key()))
        return AESGCM(secret).decrypt(nonce, rest, head)
    except (ValueError, InvalidTag) as error:
        raise SealBroken("the sealed box was changed, or is for another key") from error


def _secret(shared: bytes, ephemeral: bytes, receiver: bytes) -> bytes:
    # Both keys are bound in, so that a box cannot be passed on as one for another receiver.
    info = _PURPOSE + ephemeral + receiver
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(shared)


def _point(key: PublicKey) -> bytes:
    return key.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )

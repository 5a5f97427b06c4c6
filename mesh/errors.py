"""What can go wrong before a call is made: credentials, tokens, profiles, joining.

MeshError (in client_errors, with what calls raise)
├── IdentityError      a key or certificate cannot be used
│   ├── BadPem             a file is missing, unreadable, or not what its name says
│   ├── KeyMismatch        the key does not belong to the certificate
│   ├── CertificateExpired it was good until `until`
│   ├── WrongAuthority     it was not issued by this mesh
│   └── NoPrincipal        the other side showed no certificate of this mesh
├── SealBroken         a sealed box was changed, or was sealed to another key
├── TokenError
│   ├── TokenMalformed     the text is not a whole token
│   ├── TokenExpired       it was good until `until`
│   ├── TokenUsed          somebody has joined with it
│   └── TokenUnknown       the mesh has never given it out
├── JoinFailed         no address could be reached; carries each with its error
├── JoinRefused        the mesh said no for another reason
└── ProfileError       no usable profile on this host
    └── ProfileMissing
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from mesh.client_errors import MeshError as MeshError


class IdentityError(MeshError):
    """A key or certificate cannot be used."""


class BadPem(IdentityError):
    """A file is missing, unreadable, or not what its name says."""


class KeyMismatch(IdentityError):
    """The key does not belong to the certificate."""


class CertificateExpired(IdentityError):
    """The certificate's time is over, or has not begun by this host's clock."""

    def __init__(self, message: str, *, until: datetime) -> None:
        super().__init__(message)
        self.until = until


class WrongAuthority(IdentityError):
    """A certificate was not issued by the mesh that it is shown to."""


class NoPrincipal(IdentityError):
    """The other side of a call showed no certificate that names a principal."""


class SealBroken(MeshError):
    """A sealed box was changed on its way, or was sealed to another key."""


class TokenError(MeshError):
    """A join token cannot be used."""


class TokenMalformed(TokenError):
    """The text is not a whole token."""


class TokenExpired(TokenError):
    """The token's time is over. `until` is None where only the mesh knows."""

    def __init__(self, message: str, *, until: datetime | None = None) -> None:
        super().__init__(message)
        self.until = until


class TokenUsed(TokenError):
    """Another host has joined with this token."""


class TokenUnknown(TokenError):
    """The mesh does not know this token."""


class JoinFailed(MeshError):
    """No address of the token led into the mesh. `attempts`: address to what went wrong there."""

    def __init__(self, attempts: Mapping[str, str]) -> None:
        listed = "; ".join(f"{address}: {error}" for address, error in attempts.items())
        super().__init__(f"could not join through any address of the token: {listed}")
        self.attempts = dict(attempts)


class JoinRefused(MeshError):
    """The mesh refused the join. `reason` is a name of `quorumesh.v1.Reason`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"the mesh refused the join: {reason}: {message}")
        self.reason = reason
        self.message = message


class ProfileError(MeshError):
    """The profile of this host cannot be used."""


class ProfileMissing(ProfileError):
    """There is no profile on this host."""


def when(moment: datetime) -> str:
    """A moment for people, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

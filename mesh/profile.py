"""Where programs of one host find their mesh: a small file that a node writes when it starts."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc

from mesh.credentials import ClientCredentials
from mesh.errors import ProfileError, ProfileMissing
from mesh.identity import read_pem, write_atomic
from mesh.tokens import is_address

PROFILE_BYTES_MAX = 65_536
ADDRESSES_MAX = 256


@dataclass(frozen=True, slots=True)
class Profile:
    """Addresses of nodes, and the files with the CA certificate, one's own certificate and key."""

    addresses: tuple[str, ...]
    ca: Path
    certificate: Path
    key: Path

    def credentials(self, *, now: datetime | None = None) -> ClientCredentials:
        """Read and check the files. Raises IdentityError that says what to do."""
        found = ClientCredentials(read_pem(self.ca), read_pem(self.certificate), read_pem(self.key))
        found.check(where=str(self.certificate), now=now)
        return found

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return self.credentials().channel_credentials()


def profile_path(environ: Mapping[str, str] | None = None) -> Path:
    """`$QUORUMESH_PROFILE`, or `quorumesh/profile.json` in the user's configuration folder."""
    environ = os.environ if environ is None else environ
    if environ.get("QUORUMESH_PROFILE"):
        return Path(environ["QUORUMESH_PROFILE"])
    if environ.get("XDG_CONFIG_HOME"):
        return Path(environ["XDG_CONFIG_HOME"]) / "quorumesh" / "profile.json"
    return Path.home() / ".config" / "quorumesh" / "profile.json"


def load_profile(path: str | os.PathLike[str] | None = None) -> Profile:
    """Read the profile of this host. Raises ProfileMissing or ProfileError."""
    place = profile_path() if path is None else Path(path)
    try:
        with place.open("rb") as file:
            data = file.read(PROFILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        raise ProfileMissing(
            f"no mesh on this host ({place} is absent): start one with mesh node start, "
            "or set QUORUMESH_PROFILE"
        ) from error
    except OSError as error:
        raise ProfileError(f"{place} cannot be read: {error.strerror or error}") from error
    if len(data) > PROFILE_BYTES_MAX:
        raise ProfileError(f"{place} is larger than {PROFILE_BYTES_MAX} bytes: not a profile")
    return _parse(data, place)


def save_profile(profile: Profile, path: str | os.PathLike[str] | None = None) -> Path:
    """Replace the profile as a whole. Where it was written."""
    place = profile_path() if path is None else Path(path)
    content = {
        "addresses": list(profile.addresses),
        "ca": str(profile.ca.absolute()),
        "certificate": str(profile.certificate.absolute()),
        "key": str(profile.key.absolute()),
    }
    try:
        write_atomic(place, json.dumps(content, indent=2).encode() + b"\n")
    except OSError as error:
        raise ProfileError(f"{place} cannot be written: {error.strerror or error}") from error
    return place


def _parse(data: bytes, place: Path) -> Profile:
    remedy = "start the node of this host again, or set QUORUMESH_PROFILE"
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{place} is not JSON: {remedy}") from error
    if not isinstance(content, dict):
        raise ProfileError(f"{place} is not a profile: {remedy}")
    addresses = content.get("addresses")
    if not isinstance(addresses, list) or not 1 <= len(addresses) <= ADDRESSES_MAX:
        raise ProfileError(f"{place} must name 1 to {ADDRESSES_MAX} addresses: {remedy}")
    if not all(isinstance(one, str) and is_address(one) for one in addresses):
        raise ProfileError(f"{place} holds an address that is not host:port: {remedy}")
    files: list[Path] = []
    for name in ("ca", "certificate", "key"):
        value = content.get(name)
        if not isinstance(value, str) or not value:
            raise ProfileError(f"{place} does not name the file of its {name}: {remedy}")
        files.append(place.parent / value)
    return Profile(tuple(addresses), *files)

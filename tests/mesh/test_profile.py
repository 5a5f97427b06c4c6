"""The profile of a host: found without flags, and clear about what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mesh.errors import BadPem, ProfileError, ProfileMissing
from mesh.identity import Authority, Principal, key_pem, new_key
from mesh.profile import PROFILE_BYTES_MAX, Profile, load_profile, profile_path, save_profile


def profile_in(folder: Path) -> Profile:
    authority, key = Authority.create("m"), new_key()
    (folder / "ca.pem").write_bytes(authority.certificate_pem)
    certificate = authority.issue(key.public_key(), Principal("client", "ann"))
    (folder / "client.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key_pem(key))
    files = (folder / "ca.pem", folder / "client.pem", folder / "key.pem")
    return Profile(("127.0.0.1:7400",), *files)


def test_a_saved_profile_loads_and_gives_credentials(tmp_path: Path) -> None:
    profile = profile_in(tmp_path)

    place = save_profile(profile, tmp_path / "deep" / "profile.json")

    assert load_profile(place) == profile
    assert load_profile(place).credentials().check() == Principal("client", "ann")
    assert load_profile(place).channel_credentials() is not None


def test_where_it_is_looked_for() -> None:
    assert profile_path({"QUORUMESH_PROFILE": "/p.json", "XDG_CONFIG_HOME": "/x"}) == Path(
        "/p.json"
    )
    assert profile_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/quorumesh/profile.json")
    assert profile_path({}) == Path.home() / ".config/quorumesh/profile.json"


def test_a_missing_profile_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ProfileMissing, match="start one with mesh node start, or set QUORUMESH"):
        load_profile(tmp_path / "absent.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 50_000,
        b" " * (PROFILE_BYTES_MAX + 1),
        json.dumps({"addresses": []}).encode(),
        json.dumps({"addresses": ["nowhere"]}).encode(),
        json.dumps({"addresses": [1]}).encode(),
        json.dumps({"addresses": ["h:1"], "ca": 3}).encode(),
    ],
)
def test_a_broken_profile_is_named(tmp_path: Path, content: bytes) -> None:
    place = tmp_path / "profile.json"
    place.write_bytes(content)

    with pytest.raises(ProfileError, match=r"profile\.json"):
        load_profile(place)


def test_a_profile_whose_files_are_gone_names_them(tmp_path: Path) -> None:
    profile = profile_in(tmp_path)
    (tmp_path / "client.pem").unlink()

    with pytest.raises(BadPem, match=r"client\.pem"):
        profile.credentials()

"""Hostile papers and small files: tokens, sealed keys, certificate requests, profiles, task files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from mesh import errors as mesh_errors
from mesh import identity, sealed, tokens
from mesh.profile import load_profile
from mesh.specs import BadSpec, parse_spec
from tests.hostile.mutating import BLOBS, bend, bend_text
from tests.hostile.running import Kind, Target

TASK_CHARS = 300  # of most: the YAML reader takes milliseconds for a page
NOW_MS = 1_700_000_000_000
TASK_FILES = (
    "name: a\nsubtasks:\n  - {id: a, skill: echo, input: {x: [1, 2.5, null, true]}}\n"
    "  - id: b\n    skill: s\n    needs: [a]\n    where: {gpu: 'yes'}\n    timeout_ms: 5000\n",
    '{"subtasks": [{"id": "a", "skill": "s", "map": {"over": [1, 2, 3], "skill": "t"}}]}',
    "subtasks:\n  - &x {id: a, skill: s, input: '2001-01-01'}\n  - <<: *x\n    id: b\n"
    "ballots: [{id: v, hear_all: true}]\nband: 3\ndeadline_ms: 99\n",
)
YAML_SPITE = (
    *("!!python/object/apply:os.system ['true']", "*nobody", "&a [*a, *a]", "{" * 40, "- " * 300),
    *("? ", "!!binary ====", ": :", "\t", "%YAML 9.9\n---\n", "9" * 5_000, "0x" + "f" * 3_000),
    *("!!python/name:os.system", "!!set {a, b}", ".inf", "1e999", "---\n---\n", "\u0085", "~: ~"),
)


class One:
    """A function that takes an input and either returns or raises one of the errors it names."""

    def __init__(
        self,
        take: Callable[[object], object],
        make: Callable[[Random], object],
        refusals: tuple[type[Exception], ...],
    ) -> None:
        self._take, self.make, self._refusals = take, make, refusals

    def feed(self, given: object) -> bool:
        try:
            self._take(given)
        except self._refusals:
            return False
        return True

    def check(self) -> None:
        """Nothing is kept between inputs."""

    def close(self) -> None:
        pass


_authority: list[identity.Authority] = []


def authority() -> identity.Authority:
    if not _authority:
        _authority.append(identity.Authority.create("m1"))
    return _authority[0]


def _tokens(rng: Random, folder: Path) -> Target:
    token = tokens.new_token(authority(), ["h:1", "[::1]:2"], ttl_ms=60_000, now_wall_ms=NOW_MS)
    text = tokens.encode(token)
    body = tokens._body(text)

    def make(rng: Random) -> object:
        if rng.random() < 0.2:
            return bend_text(rng, text)
        bent = bend(rng, body)  # with the right check, so that what is inside is looked at
        return tokens.PREFIX + _base64(bent + tokens._check(bent))

    def take(given: object) -> object:
        return tokens.decode(str(given), now_wall_ms=NOW_MS)

    return One(take, make, (mesh_errors.TokenMalformed, mesh_errors.TokenExpired))


def _base64(data: bytes) -> str:
    import base64

    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _sealed(rng: Random, folder: Path) -> Target:
    key = identity.new_key()
    box = sealed.seal(b"k" * 200, key.public_key())
    return One(
        lambda given: sealed.unseal(given, key),  # type: ignore[arg-type]
        lambda rng: bend(rng, box),
        (mesh_errors.SealBroken,),
    )


def _requests(rng: Random, folder: Path) -> Target:
    request = identity.new_request(identity.new_key())
    return One(
        lambda given: identity.requested_key(given),  # type: ignore[arg-type]
        lambda rng: bend(rng, request),
        (mesh_errors.IdentityError,),
    )


def _profiles(rng: Random, folder: Path) -> Target:
    path = folder / "profile.json"
    content = {"addresses": ["h:1", "[::1]:2"], "ca": "a", "certificate": "b", "key": "c"}
    data = json.dumps(content).encode()

    def make(rng: Random) -> object:
        if rng.random() < 0.3:
            changed = dict(content)
            changed[rng.choice(list(content))] = rng.choice((None, 1, [], {}, "x", [1], "\x00"))
            return json.dumps(changed).encode()
        return bend(rng, data) if rng.random() < 0.9 else rng.choice(BLOBS) * 30

    def take(given: object) -> object:
        path.write_bytes(given)  # type: ignore[arg-type]
        return load_profile(path)

    return One(take, make, (mesh_errors.ProfileError, mesh_errors.ProfileMissing))


def _task_files(rng: Random, folder: Path) -> Target:
    def make(rng: Random) -> object:
        text = rng.choice(TASK_FILES)
        if rng.random() < 0.4:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice(YAML_SPITE) + text[at:]
        text = text if rng.random() < 0.3 else bend_text(rng, text)
        return text if rng.random() < 0.01 else text[:TASK_CHARS]

    return One(lambda given: parse_spec(str(given)), make, (BadSpec,))


KINDS = (
    Kind("token", _tokens),
    Kind("sealed-key", _sealed),
    Kind("certificate-request", _requests),
    Kind("profile", _profiles),
    Kind("task-file", _task_files, ci_inputs=500),
)

"""Tokens: a whole one reads back; anything else is refused before a byte is sent."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TokenExpired, TokenMalformed
from mesh.identity import Authority, key_der, new_key
from mesh.tokens import ADDRESSES_MAX, TOKEN_CHARS_MAX, decode, encode, new_token

NOW = 1_800_000_000_000
AUTHORITY = Authority.create("m")
TOKEN = new_token(AUTHORITY, ["10.0.0.1:7400", "[::1]:7401"], ttl_ms=60_000, now_wall_ms=NOW)
TEXT = encode(TOKEN)


def test_a_token_reads_back_whole() -> None:
    assert decode(TEXT, now_wall_ms=NOW) == TOKEN
    assert TEXT.startswith("qm1.")


def test_pasted_line_breaks_do_no_harm() -> None:
    wrapped = "\n ".join(TEXT[at : at + 70] for at in range(0, len(TEXT), 70))

    assert decode(f"  {wrapped}\r\n", now_wall_ms=NOW) == TOKEN


def test_secrets_stay_out_of_the_repr() -> None:
    assert TOKEN.secret.hex() not in repr(TOKEN)
    assert repr(TOKEN.secret) not in repr(TOKEN)
    assert repr(TOKEN.key_der) not in repr(TOKEN)


def test_every_truncation_is_refused() -> None:
    for end in range(0, len(TEXT), 7):
        with pytest.raises(TokenMalformed):
            decode(TEXT[:end], now_wall_ms=NOW)


@given(at=st.integers(4, len(TEXT) - 2), char=st.sampled_from("Aa0_-é="))
@settings(max_examples=200, deadline=None)
def test_every_changed_character_is_refused(at: int, char: str) -> None:
    changed = TEXT[:at] + char + TEXT[at + 1 :]
    if changed == TEXT:
        return

    with pytest.raises(TokenMalformed):
        decode(changed, now_wall_ms=NOW)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_other_text_is_refused(text: str) -> None:
    for one in (text, "qm1." + text):
        with pytest.raises(TokenMalformed):
            decode(one, now_wall_ms=NOW)


def test_an_expired_token_says_until_when() -> None:
    decode(TEXT, now_wall_ms=NOW + 59_999)

    with pytest.raises(TokenExpired, match=r"good until 2027-01-15 .* UTC"):
        decode(TEXT, now_wall_ms=NOW + 60_000)


def test_a_ca_that_is_not_the_one_named_is_refused() -> None:
    other = Authority.create("m")
    forged = dataclasses.replace(TOKEN, ca_der=other.certificate_der)

    with pytest.raises(TokenMalformed, match="not the one that it names"):
        decode(encode(forged), now_wall_ms=NOW)


def test_a_join_certificate_of_another_ca_is_refused() -> None:
    other = Authority.create("m")
    forged = dataclasses.replace(
        TOKEN, ca_der=other.certificate_der, ca_fingerprint=other.fingerprint
    )

    with pytest.raises(TokenMalformed, match="not from its mesh"):
        decode(encode(forged), now_wall_ms=NOW)


def test_a_foreign_key_is_refused() -> None:
    forged = dataclasses.replace(TOKEN, key_der=key_der(new_key()))

    with pytest.raises(TokenMalformed, match="does not belong"):
        decode(encode(forged), now_wall_ms=NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"addresses": ()},
        {"addresses": tuple(f"h{n}:1" for n in range(ADDRESSES_MAX + 1))},
        {"addresses": ("no-port",)},
        {"addresses": ("h:70000",)},
        {"addresses": ("a b:1",)},
        {"ca_der": b""},
        {"ca_der": b"x" * 3_000},
        {"key_der": b"x"},
        {"certificate_der": b"x" * 10},
    ],
)
def test_a_token_out_of_bounds_is_refused(changes: dict[str, object]) -> None:
    forged = dataclasses.replace(TOKEN, **changes)  # type: ignore[arg-type]  # forged on purpose

    with pytest.raises(TokenMalformed):
        decode(encode(forged), now_wall_ms=NOW)


def test_a_text_above_the_bound_is_refused_unread() -> None:
    with pytest.raises(TokenMalformed, match="longer"):
        decode("qm1." + "A" * TOKEN_CHARS_MAX, now_wall_ms=NOW)


@pytest.mark.parametrize("ttl_ms", [0, -1, 3_600_001])
def test_no_token_lives_longer_than_an_hour(ttl_ms: int) -> None:
    with pytest.raises(ValueError, match="lives"):
        new_token(AUTHORITY, ["h:1"], ttl_ms=ttl_ms, now_wall_ms=NOW)

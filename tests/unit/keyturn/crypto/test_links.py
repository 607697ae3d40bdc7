"""Tokens of links (SPEC 9.3): known answers by RFC 5869 and RFC 2104 alone, and what they bind."""

from __future__ import annotations

import base64
import hashlib
import hmac
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import LinkClaims, Secret, UploadLinkClaims, is_link_token, link_token

KEK = Secret(bytes(range(32)))
CLAIMS = LinkClaims("acme", "reports/q3 ü.pdf", 1764151200, inline=False)
UPLOAD = UploadLinkClaims("acme", "reports/q3 ü.pdf", 1764151200, 1048576, "application/pdf")


def _by_hand(
    kek: bytes, deployment: str, message: bytes, purpose: bytes = b"keyturn/v1/link"
) -> str:
    # HKDF-Expand to one hash: HMAC(PRK, info || 0x01).
    info = purpose + b"\0" + deployment.encode() + b"\x01"
    key = hmac.new(kek, info, hashlib.sha256).digest()
    mac = hmac.new(key, message, hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mac).decode().removesuffix("=")


@pytest.mark.parametrize("inline", [False, True])
def test_the_token_is_the_mac_of_the_specification(inline: bool) -> None:
    last = b"inline" if inline else b"attachment"
    message = b"acme\0" + "reports/q3 ü.pdf".encode() + b"\x001764151200\0" + last
    expected = _by_hand(bytes(range(32)), "default", message)
    claims = replace(CLAIMS, inline=inline)
    assert link_token(KEK, "default", claims) == expected
    assert len(expected) == 43
    assert is_link_token(expected, KEK, "default", claims)


def test_the_token_never_changes() -> None:
    """Links that were given away outlive an upgrade."""
    claims = LinkClaims("acme", "reports/q3.pdf", 1764151200, inline=False)
    assert link_token(KEK, "default", claims) == "h1aq9Gg635ppNXNMLpwzuYlWaYAd1xS7Nv1ZqOmylBc"


@pytest.mark.parametrize(
    "changes",
    [
        {"project": "acm"},
        {"object_key": "reports/q3 ü.pdf/"},
        {"object_key": "Reports/q3 ü.pdf"},
        {"expires": 1764151201},
        {"inline": True},
    ],
)
def test_every_claim_is_bound(changes: dict[str, Any]) -> None:
    token = link_token(KEK, "default", CLAIMS)
    assert not is_link_token(token, KEK, "default", replace(CLAIMS, **changes))


def test_the_kek_and_the_deployment_are_bound() -> None:
    token = link_token(KEK, "default", CLAIMS)
    assert not is_link_token(token, Secret(bytes(32)), "default", CLAIMS)
    assert not is_link_token(token, KEK, "other", CLAIMS)


def test_no_character_can_move_between_two_claims() -> None:
    """With the parts joined by nothing, each of these pairs would have one token."""
    pairs = [
        (LinkClaims("ab", "c", 1, inline=False), LinkClaims("a", "bc", 1, inline=False)),
        (LinkClaims("a", "b1", 2, inline=False), LinkClaims("a", "b", 12, inline=False)),
    ]
    for one, other in pairs:
        assert link_token(KEK, "d", one) != link_token(KEK, "d", other)
    with pytest.raises(ValueError, match="zero byte"):
        link_token(KEK, "d", LinkClaims("a", "b\0c", 1, inline=False))


@pytest.mark.parametrize(
    ("content_type", "last"), [("application/pdf", b"application/pdf"), (None, b"")]
)
def test_an_upload_token_is_the_mac_of_the_specification(
    content_type: str | None, last: bytes
) -> None:
    message = b"acme\0" + "reports/q3 ü.pdf".encode() + b"\x001764151200\x001048576\0" + last
    expected = _by_hand(bytes(range(32)), "default", message, b"keyturn/v1/upload-link")
    claims = replace(UPLOAD, content_type=content_type)
    assert link_token(KEK, "default", claims) == expected
    assert is_link_token(expected, KEK, "default", claims)


def test_the_upload_token_never_changes() -> None:
    """The known answer that the specification prints."""
    claims = UploadLinkClaims("acme", "reports/q3.pdf", 1764151200, 1048576, "application/pdf")
    assert link_token(KEK, "default", claims) == _UPLOAD_TOKEN
    assert _UPLOAD_TOKEN in (Path(__file__).parents[4] / "docs/spec.md").read_text()


_UPLOAD_TOKEN = "7-lRdaZBX5Q2lQwfYGT7XdbXWwrFPQFESNuuva_PMEI"


@pytest.mark.parametrize(
    "changes",
    [
        {"project": "acm"},
        {"object_key": "Reports/q3 ü.pdf"},
        {"expires": 1764151201},
        {"max_bytes": 10485760},
        {"content_type": None},
        {"content_type": "Application/pdf"},
    ],
)
def test_every_claim_of_an_upload_is_bound(changes: dict[str, Any]) -> None:
    token = link_token(KEK, "default", UPLOAD)
    assert not is_link_token(token, KEK, "default", replace(UPLOAD, **changes))
    assert not is_link_token(token, Secret(bytes(32)), "default", UPLOAD)
    assert not is_link_token(token, KEK, "other", UPLOAD)


def test_no_token_serves_the_other_purpose() -> None:
    """Not even of the same message, under the key of the other purpose."""
    claims = UploadLinkClaims("acme", "k", 5, 6, "inline")
    as_read = _by_hand(bytes(range(32)), "d", b"acme\0k\x005\x006\0inline")
    assert link_token(KEK, "d", claims) != as_read
    assert not is_link_token(as_read, KEK, "d", claims)


@pytest.mark.parametrize("at", range(43))
def test_a_token_has_one_encoding(at: int) -> None:
    """The last character has two bits that base64 decoders ignore: they count all the same."""
    token = link_token(KEK, "default", CLAIMS)
    others = set(string.ascii_letters + string.digits + "-_+/=") - {token[at]}
    for other in others:
        changed = token[:at] + other + token[at + 1 :]
        assert not is_link_token(changed, KEK, "default", CLAIMS)


@pytest.mark.slow
@given(st.text(max_size=60))
def test_no_other_text_is_a_token(text: str) -> None:
    assert not is_link_token(text, KEK, "default", CLAIMS)


def test_text_around_a_token_is_none() -> None:
    token = link_token(KEK, "default", CLAIMS)
    for other in ("", token + "=", token[:-1], " " + token, token + "\n", "\ud800"):
        assert not is_link_token(other, KEK, "default", CLAIMS)

"""The search for secrets in logs finds them, however they are spelt (SPEC 13)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.secret_encodings import ENCODINGS
from tools.harness.canaries import Canaries, secrets_of_link

if TYPE_CHECKING:
    from collections.abc import Callable

SECRETS = [
    os.urandom(32),
    b"it's \"both\" quotes, and \\' both",
    b"'" * 24 + b'"' * 8,
    b"'" * 32,
    bytes(range(32)),
]


@pytest.mark.parametrize("secret", SECRETS, ids=range(len(SECRETS)))
@pytest.mark.parametrize("spelt", ENCODINGS.values(), ids=ENCODINGS)
def test_a_secret_in_a_log_is_found(secret: bytes, spelt: Callable[[bytes], bytes]) -> None:
    canaries = Canaries({"key": secret, "other": os.urandom(32)})
    assert canaries.found(["nothing", f"a line: {spelt(secret).decode()} …"]) == ["key"]


def test_a_text_in_a_log_is_found() -> None:
    canaries = Canaries({"API key": b"kt_0123456789abcdefghijklmnopqrstuvwxyz"})
    assert canaries.found(["Bearer kt_0123456789abcdefghijklmnopqrstuvwxyz"]) == ["API key"]
    assert canaries.found(["Bearer kt_…"]) == []


@pytest.mark.parametrize("name", ["token", "X-Amz-Signature"])
def test_a_link_in_a_log_is_found_by_what_opens_it(name: str) -> None:
    secret = "0123456789abcdefghijklmnopqrstuvwxyz-_A"
    url = f"http://host/acme/a?expires=1&{name}={secret}"
    canaries = Canaries(secrets_of_link("the link", url))
    assert canaries.found([f"GET {url}"]) == [f"{name} of the link"]
    assert canaries.found([f"only {secret}"]) == [f"{name} of the link"]
    assert canaries.found(["GET http://host/acme/a?expires=1"]) == []

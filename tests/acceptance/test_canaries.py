"""The search for secrets in logs finds them, however they are spelt (SPEC 13)."""

from __future__ import annotations

import base64
import os

import pytest

from tests.acceptance.canaries import Canaries

SECRET = os.urandom(32)


@pytest.mark.parametrize(
    "spelt",
    [
        SECRET.hex(),
        SECRET.hex().upper(),
        base64.b64encode(SECRET).decode(),
        base64.urlsafe_b64encode(SECRET).decode(),
        repr(SECRET),
    ],
    ids=["hex", "HEX", "base64", "urlsafe", "repr"],
)
def test_a_secret_in_a_log_is_found(spelt: str) -> None:
    canaries = Canaries({"key": SECRET, "other": os.urandom(32)})
    assert canaries.found(["nothing", f'{{"key": "{spelt}"}}']) == ["key"]


def test_a_text_in_a_log_is_found() -> None:
    canaries = Canaries({"API key": b"kt_0123456789abcdefghijklmnopqrstuvwxyz"})
    assert canaries.found(["Bearer kt_0123456789abcdefghijklmnopqrstuvwxyz"]) == ["API key"]
    assert canaries.found(["Bearer kt_…"]) == []

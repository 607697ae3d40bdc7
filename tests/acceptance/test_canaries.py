"""The search for secrets in logs finds them, however they are spelt (SPEC 13)."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING

import orjson
import pytest

from tests.acceptance.canaries import Canaries

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
@pytest.mark.parametrize(
    "spelt",
    [
        bytes.hex,
        lambda secret: secret.hex().upper(),
        lambda secret: base64.b64encode(secret).decode(),
        lambda secret: base64.urlsafe_b64encode(secret).decode(),
        repr,
        lambda secret: json.dumps(repr(secret)),
        lambda secret: json.dumps(secret.decode("latin-1")),
        lambda secret: orjson.dumps(secret.decode("latin-1")).decode(),
        lambda secret: orjson.dumps(repr(secret)).decode(),
    ],
    ids=[
        "hex",
        "HEX",
        "base64",
        "urlsafe",
        "repr",
        "repr in JSON",
        "JSON",
        "orjson",
        "repr in orjson",
    ],
)
def test_a_secret_in_a_log_is_found(secret: bytes, spelt: Callable[[bytes], str]) -> None:
    canaries = Canaries({"key": secret, "other": os.urandom(32)})
    assert canaries.found(["nothing", f"a line: {spelt(secret)} …"]) == ["key"]


def test_a_text_in_a_log_is_found() -> None:
    canaries = Canaries({"API key": b"kt_0123456789abcdefghijklmnopqrstuvwxyz"})
    assert canaries.found(["Bearer kt_0123456789abcdefghijklmnopqrstuvwxyz"]) == ["API key"]
    assert canaries.found(["Bearer kt_…"]) == []

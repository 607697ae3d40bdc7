"""An API key that leaves the machine unencrypted is warned of, once for each client (SPEC 13)."""

from __future__ import annotations

import warnings

import pytest

from keyturn.gateway import Client, UnencryptedGatewayWarning
from keyturn.gateway.transport import is_unencrypted
from tests.unit.keyturn.gateway.gateway import API_KEY, NEW_API_KEY


@pytest.mark.parametrize(
    ("url", "unencrypted"),
    [
        ("https://files.example.com", False),
        ("https://192.0.2.7:8443/keyturn", False),
        ("http://127.0.0.1:8080", False),
        ("http://127.9.9.9", False),
        ("http://[::1]:8080", False),
        ("http://localhost:8080", False),
        ("http://LOCALHOST.", False),
        ("http://gateway.localhost", False),
        ("http://files.example.com", True),
        ("http://localhost.example.com", True),
        ("http://notlocalhost", True),
        ("http://gateway:8080", True),
        ("http://192.168.1.7", True),
        ("http://0.0.0.0:8080", True),
        ("http://[2001:db8::1]", True),
    ],
)
async def test_plain_http_to_another_machine_is_warned_of(url: str, *, unencrypted: bool) -> None:
    assert is_unencrypted(url) is unencrypted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with Client.connect(url, API_KEY) as client:
            client.with_api_key(NEW_API_KEY)
    assert [warning.category for warning in caught] == [UnencryptedGatewayWarning] * unencrypted
    for warning in caught:
        assert warning.filename == __file__  # the caller's line, not one of ours
        assert "https://" in str(warning.message)
        assert API_KEY not in str(warning.message)

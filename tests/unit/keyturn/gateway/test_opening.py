"""What a client is made from, and what it refuses to be made from."""

from __future__ import annotations

import sys

import pytest
from pydantic import SecretStr

from keyturn.errors import MalformedRequestError, SettingsError
from keyturn.gateway import Client
from tests.unit.keyturn.gateway.gateway import API_KEY


@pytest.mark.parametrize("key", ["", "short but secret", "x" * 513, "x" * 40 + "\r\nX-Evil: 1"])
async def test_an_api_key_of_the_wrong_form_is_refused_and_not_shown(key: str) -> None:
    for given in (key, SecretStr(key)):
        with pytest.raises(MalformedRequestError, match="32 to 512 characters") as raised:
            async with Client.connect("http://127.0.0.1:1", given):
                pass
        assert key == "" or key not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "files.example.com",
        "ftp://files.example.com",
        "http://",
        "http://user:sesame@files.example.com",
        "http://files.example.com/?token=sesame",
        "http://files.example.com/#sesame",
        "http://files.example.com:99999",
        "http://[::1",
        "http://files example.com",
        "http://files.example.com\r\n",
    ],
)
async def test_a_url_of_no_gateway_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="the gateway's URL reads") as raised:
        async with Client.connect(url, API_KEY):
            pass
    assert "sesame" not in str(raised.value)


async def test_without_aiohttp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SettingsError, match=r"keyturn\[gateway\]"):
        async with Client.connect("http://127.0.0.1:1", API_KEY):
            pass

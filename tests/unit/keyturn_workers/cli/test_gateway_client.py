"""The option wins over the setting, and an unencrypted way is one line (SPEC 9, 14)."""

from __future__ import annotations

import warnings

import pytest
from pydantic import SecretStr

from keyturn.errors import SettingsError
from keyturn_workers.cli.objects import configured_gateway, gateway_client
from tests.unit.keyturn.gateway.gateway import API_KEY

_URL = "https://files.example.com"


def test_the_option_wins_over_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configured_gateway(None) is None
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", _URL)
    assert configured_gateway(None) == _URL
    assert configured_gateway("http://127.0.0.1") == "http://127.0.0.1"
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", "")
    assert configured_gateway(None) is None
    monkeypatch.setenv("KEYTURN_GATEWAY_URL", "ftp://x")
    with pytest.raises(SettingsError, match="KEYTURN_GATEWAY_URL"):
        configured_gateway(None)


@pytest.mark.parametrize("url", [_URL, "http://127.0.0.1", "http://files.example.com"])
async def test_an_unencrypted_way_is_noted_and_no_python_warning(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with gateway_client(url, SecretStr(API_KEY)):
            pass
    noted = "keyturn: the API key is sent to the gateway unencrypted; use https://\n"
    assert capsys.readouterr().err == (noted if url == "http://files.example.com" else "")

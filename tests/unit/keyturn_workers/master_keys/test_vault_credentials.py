"""Exactly one way to authenticate, with all that it needs."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import Secret
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.master_keys.vault_auth import LoginAuth, TokenAuth
from keyturn_workers.master_keys.vault_credentials import open_auth
from keyturn_workers.master_keys.vault_http import VaultHttp
from keyturn_workers.settings import KmsSettings
from tests.unit.keyturn_workers.master_keys.fake_vault import FakeVault, fake_vault, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keyturn_workers.master_keys.vault_auth import VaultAuth


@asynccontextmanager
async def _auth(vault: FakeVault, **values: object) -> AsyncIterator[VaultAuth]:
    http = VaultHttp(vault.url, settings())
    try:
        yield open_auth(http, settings(**values))
    finally:
        await http.aclose()


def _open(**values: object) -> VaultAuth:
    made = KmsSettings.model_validate(values)
    return open_auth(VaultHttp("http://127.0.0.1:1", made), made)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"vault_token": "t", "vault_token_file": "/f"},
        {"vault_token": "t", "vault_role_id": "r", "vault_secret_id": "s"},
        {"vault_token_file": "/f", "vault_kubernetes_role": "r"},
    ],
)
def test_not_exactly_one_way_is_a_settings_error_that_names_all(values: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        _open(**values)
    for name in ("TOKEN", "TOKEN_FILE", "ROLE_ID", "KUBERNETES_ROLE"):
        assert f"KEYTURN_VAULT_{name}" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"vault_role_id": "r"}, "exactly one of KEYTURN_VAULT_SECRET_ID"),
        (
            {"vault_role_id": "r", "vault_secret_id": "s", "vault_secret_id_file": "/f"},
            "exactly one of KEYTURN_VAULT_SECRET_ID",
        ),
        ({"vault_token": "t", "vault_secret_id": "s"}, "KEYTURN_VAULT_ROLE_ID is missing"),
        ({"vault_token": "two words"}, "KEYTURN_VAULT_TOKEN is malformed"),
        (
            {"vault_role_id": "r", "vault_secret_id": "s\ns"},
            "KEYTURN_VAULT_SECRET_ID is malformed",
        ),
        (
            {"vault_kubernetes_role": "r", "vault_auth_mount": "../sys"},
            "KEYTURN_VAULT_AUTH_MOUNT is malformed",
        ),
        (
            {"vault_kubernetes_role": "r", "vault_auth_mount": "a b"},
            "KEYTURN_VAULT_AUTH_MOUNT is malformed",
        ),
    ],
)
def test_an_incomplete_or_malformed_way_is_named(values: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        _open(**values)
    assert "words" not in str(caught.value)


async def test_a_token_is_sent_as_it_is() -> None:
    auth = _open(vault_token=" s.token\n")
    assert isinstance(auth, TokenAuth)
    assert await auth.token() == Secret(b"s.token")


async def test_a_token_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "token"
    auth = _open(vault_token_file=file)
    with pytest.raises(KmsUnavailableError, match=r"VAULT_TOKEN_FILE .* \(FileNotFoundError\)"):
        await auth.token()
    file.write_text("")
    with pytest.raises(KmsUnavailableError, match="not one word of printable ASCII"):
        await auth.token()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(KmsUnavailableError, match="not one word of printable ASCII"):
        await auth.token()
    file.write_text("s.first\n")
    assert await auth.token() == Secret(b"s.first")
    file.write_text("s.other\n")
    assert await auth.token() == Secret(b"s.other")


async def test_approle_sends_role_and_secret_id() -> None:
    async with (
        fake_vault() as vault,
        _auth(vault, vault_role_id="role", vault_secret_id="credential") as auth,
    ):
        assert await auth.token() == Secret(b"s.login-1")
    expected = {"role_id": "role", "secret_id": "credential"}
    assert vault.requests == [("POST", "auth/approle/login", expected)]


async def test_a_secret_id_file_is_read_at_each_login(tmp_path: Path) -> None:
    file = tmp_path / "secret-id"
    file.write_text("wrong")
    async with (
        fake_vault() as vault,
        _auth(vault, vault_role_id="role", vault_secret_id_file=file) as auth,
    ):
        with pytest.raises(KmsRefusedError, match="check KEYTURN_VAULT_ROLE_ID"):
            await auth.token()
        file.write_text("credential")
        assert await auth.token() == Secret(b"s.login-2")


async def test_kubernetes_sends_role_and_service_account_token(tmp_path: Path) -> None:
    file = tmp_path / "jwt"
    file.write_text("credential")
    async with (
        fake_vault() as vault,
        _auth(
            vault,
            vault_kubernetes_role="keyturn",
            vault_kubernetes_token_file=file,
            vault_auth_mount="/clusters/eu/",
        ) as auth,
    ):
        assert isinstance(auth, LoginAuth)
        assert await auth.token() == Secret(b"s.login-1")
        file.write_text("expired")
        vault.tokens.clear()
        with pytest.raises(KmsRefusedError, match="check KEYTURN_VAULT_KUBERNETES_ROLE"):
            await auth.replace(Secret(b"s.login-1"))
    expected = {"role": "keyturn", "jwt": "credential"}
    assert vault.requests[0] == ("POST", "auth/clusters/eu/login", expected)

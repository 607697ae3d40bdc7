"""A transit key as a master key: what is asked, and which answers are believed."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from keyturn.crypto import (
    admin_kek,
    admin_kek_info,
    expand_message,
    master_prk,
    record_kek,
    record_kek_info,
)
from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.master_keys.vault import VaultMasterKey
from tests.unit.keyturn_workers.master_keys.fake_vault import (
    HMAC_KEY,
    HMAC_PATH,
    KEY_PATH,
    REQUEST_ID,
    FakeVault,
    fake_vault,
    settings,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MASTER_KEY = bytes(range(32))
INFO = admin_kek_info("acme")
MAC = base64.b64encode(bytes(32)).decode()


@asynccontextmanager
async def _key(vault: FakeVault, version: int = 1) -> AsyncIterator[VaultMasterKey]:
    key = VaultMasterKey(vault.uri(version), settings())
    try:
        yield key
    finally:
        await key.aclose()


def _always(status: int, body: object) -> Any:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    return respond


async def test_it_derives_what_hkdf_derives() -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.prk = master_prk(MASTER_KEY).reveal()
        admin = await key.derive(INFO)
        record = await key.derive(record_kek_info("acme"))
    assert admin.kek == admin_kek(MASTER_KEY, "acme")
    assert record.kek == record_kek(MASTER_KEY, "acme")
    assert admin.request_id == REQUEST_ID


async def test_it_pins_the_version_and_sends_the_message_of_hkdf() -> None:
    async with fake_vault() as vault, _key(vault, version=3) as key:
        vault.version = 3
        await key.derive(INFO)
    message = base64.b64encode(expand_message(INFO)).decode()
    assert vault.requests == [("POST", HMAC_PATH, {"input": message, "key_version": 3})]


@pytest.mark.parametrize(
    "mac",
    [
        f"vault:v2:{MAC}",
        f"vault:v10:{MAC}",
        f"vault:v01:{MAC}",
        f"vault:1:{MAC}",
        MAC,
        "vault:v1:" + base64.b64encode(bytes(31)).decode(),
        "vault:v1:" + base64.b64encode(bytes(64)).decode(),
        f"vault:v1: {MAC}",
        f"vault:v1:{MAC.rstrip('=')}",
        "vault:v1:",
        None,
        7,
    ],
)
async def test_any_other_answer_than_an_hmac_of_that_version_is_refused(mac: object) -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.respond = _always(200, {"data": {"hmac": mac}})
        with pytest.raises(KmsUnavailableError) as caught:
            await key.derive(INFO)
    assert MAC not in str(caught.value)


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": []}, {"hmac": f"vault:v1:{MAC}"}])
async def test_an_answer_without_data_is_refused(body: object) -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.respond = _always(200, body)
        with pytest.raises(KmsUnavailableError, match="not from version 1"):
            await key.derive(INFO)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, "encryption key not found", "transit/m1 does not exist"),
        (400, "key version does not exist; latest key version is 1", "has no version 2"),
        (400, "no such key version", "version 2 of transit/m1 is below its min_decryption_version"),
        (400, "cannot generate HMAC: version is too old (disallowed by policy)", "min_encryption"),
        (400, "refusing to use soft-deleted key", "is deleted"),
        (400, "something new", "Vault answered 400"),
        (500, "encryption key not found", "Vault answered 500"),
        (503, "Vault is sealed", "sealed"),
    ],
)
async def test_each_refusal_is_one_clear_line(status: int, error: str, message: str) -> None:
    async with fake_vault() as vault, _key(vault, version=2) as key:
        vault.respond = _always(status, {"errors": [error]})
        with pytest.raises(KmsUnavailableError, match=message) as caught:
            await key.derive(INFO)
    assert "something" not in str(caught.value), "the server's own text may repeat a token"


async def test_a_well_kept_key_is_described_without_warnings() -> None:
    async with fake_vault() as vault, _key(vault) as key:
        described = await key.describe()
    assert described.provider == "vault"
    assert described.location == f"vault:{vault.url}/transit/m1?version=1"
    assert described.version == "1"
    assert (described.exportable, described.automatic_rotation) == (False, False)
    assert described.imported is False
    assert described.warnings == ()
    assert vault.requests == [("GET", KEY_PATH, None)]


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("exportable", True, "can be exported"),
        ("allow_plaintext_backup", True, "backed up in plaintext"),
        ("deletion_allowed", True, "can be deleted"),
        ("soft_deleted", True, "is deleted"),
        ("auto_rotate_period", 86400, "rotated automatically"),
        ("min_decryption_version", 2, "below the key's min_decryption_version"),
        ("min_encryption_version", 2, "below the key's min_encryption_version"),
        ("min_available_version", 2, "below the key's min_available_version"),
        ("latest_version", 0, "has no version 1"),
    ],
)
async def test_each_risky_property_is_warned_of(name: str, value: object, warning: str) -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.properties = {**HMAC_KEY, name: value}
        described = await key.describe()
    assert [warning in line for line in described.warnings] == [True]
    assert described.exportable is (name in {"exportable", "allow_plaintext_backup"})
    assert described.automatic_rotation is (name == "auto_rotate_period")


async def test_a_key_of_another_type_is_refused() -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.properties = {**HMAC_KEY, "type": "aes256-gcm96"}
        with pytest.raises(KmsRefusedError, match="not a key of type hmac"):
            await key.describe()


async def test_a_missing_key_is_reported() -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.prk = None
        with pytest.raises(KmsRefusedError, match="transit/keys/m1 does not exist"):
            await key.describe()


async def test_a_token_that_may_only_derive_gets_a_warning() -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.may_read = False
        described = await key.describe()
        await key.derive(INFO)
    assert (described.exportable, described.automatic_rotation) == (None, None)
    assert "may not read transit/keys/m1" in " ".join(described.warnings)


async def test_a_refused_token_is_no_description() -> None:
    async with fake_vault() as vault, _key(vault) as key:
        vault.tokens.clear()
        with pytest.raises(KmsRefusedError, match="Vault refuses the token"):
            await key.describe()


async def test_plain_http_to_another_machine_is_warned_of() -> None:
    async with fake_vault() as vault:
        # Not known as loopback, but it leads there.
        vault.url = vault.url.replace("127.0.0.1", "0.0.0.0")  # noqa: S104
        async with _key(vault) as key:
            described = await key.describe()
    assert "the address is http" in " ".join(described.warnings)

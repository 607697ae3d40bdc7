"""A transit key as a master key: which answers are believed, and how a new one is made."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from keyturn.crypto import (
    Secret,
    admin_kek,
    admin_kek_info,
    expand_message,
    master_prk,
    record_kek,
    record_kek_info,
)
from keyturn.errors import KmsUnavailableError
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from keyturn_workers.keys.master_keys.vault import VaultMasterKey, generate_key, import_prk
from tests.unit.keyturn_workers.keys.master_keys.fake_servers import (
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
        (400, "something new", "Vault responded with 400"),
        (500, "encryption key not found", "Vault responded with 500"),
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


# New keys: never over an existing one, and not exportable.

PRK = master_prk(bytes(range(32)))
IMPORT = f"{KEY_PATH}/import"


async def _create(vault: FakeVault, way: str, version: int = 1) -> None:
    if way == "import":
        await import_prk(vault.uri(version), settings(), PRK)
    else:
        await generate_key(vault.uri(version), settings())


async def test_an_imported_key_has_the_prk_as_its_value() -> None:
    async with fake_vault(empty=True) as vault:
        await _create(vault, "import")
    assert vault.prk == PRK.reveal()
    assert [(method, path) for method, path, _ in vault.requests] == [
        ("GET", KEY_PATH),
        ("GET", "transit/wrapping_key"),
        ("POST", IMPORT),
    ]
    sent = dict(vault.requests[-1][2])
    assert PRK.reveal().hex() not in str(sent)
    del sent["ciphertext"]
    assert sent == {
        "type": "hmac",
        "hash_function": "SHA256",
        "allow_rotation": False,
        "exportable": False,
        "allow_plaintext_backup": False,
    }


async def test_the_server_may_take_its_time_to_make_a_wrapping_key() -> None:
    async with fake_vault(empty=True) as vault:
        await import_prk(vault.uri(), settings(kms_timeout_s=0.001), PRK)
    assert vault.prk == PRK.reveal()


async def test_a_generated_key_has_32_bytes_and_is_not_exportable() -> None:
    async with fake_vault(empty=True) as vault:
        await _create(vault, "generate")
    properties = {
        "type": "hmac",
        "key_size": 32,
        "exportable": False,
        "allow_plaintext_backup": False,
    }
    assert vault.requests[-1] == ("POST", KEY_PATH, properties)


@pytest.mark.parametrize("way", ["import", "generate"])
async def test_an_existing_key_is_not_touched(way: str) -> None:
    async with fake_vault() as vault:
        with pytest.raises(ValueError, match="exists already"):
            await _create(vault, way)
    assert vault.paths() == [KEY_PATH]


@pytest.mark.parametrize("way", ["import", "generate"])
async def test_only_version_1_can_be_created(way: str) -> None:
    async with fake_vault() as vault:
        with pytest.raises(ValueError, match="version=1"):
            await _create(vault, way, version=2)
    assert vault.requests == []


def _then(vault: FakeVault, path: str, status: int, body: object) -> Any:
    """Answer as ever, but this way to a POST to one path."""

    async def respond(request: web.Request) -> web.StreamResponse:
        if (request.method, request.path) == ("POST", f"/v1/{path}"):
            return web.json_response(body, status=status)
        return vault.answer(request)

    return respond


async def test_a_key_that_another_imported_meanwhile_is_not_taken_for_ours() -> None:
    error = "the import path cannot be used with an existing key; use import-version"
    async with fake_vault(empty=True) as vault:
        vault.respond = _then(vault, IMPORT, 500, {"errors": [f"1 error occurred:\n\t* {error}"]})
        with pytest.raises(ValueError, match="exists already"):
            await _create(vault, "import")


async def test_a_key_that_another_generated_meanwhile_is_not_taken_for_ours() -> None:
    body = {"data": {}, "warnings": ["key m1 already existed"]}
    async with fake_vault(empty=True) as vault:
        vault.respond = _then(vault, KEY_PATH, 200, body)
        with pytest.raises(ValueError, match="exists already"):
            await _create(vault, "generate")


@pytest.mark.parametrize("way", ["import", "generate"])
async def test_a_refused_creation_is_reported(way: str) -> None:
    async with fake_vault(empty=True) as vault:
        path = IMPORT if way == "import" else KEY_PATH
        vault.respond = _then(vault, path, 400, {"errors": ["no"]})
        with pytest.raises(KmsUnavailableError, match="Vault responded with 400"):
            await _create(vault, way)


@pytest.mark.parametrize("public_key", [None, "", "no PEM"])
async def test_a_wrapping_key_that_is_none_wraps_nothing(public_key: object) -> None:
    async with fake_vault() as vault:

        async def respond(request: web.Request) -> web.Response:
            if request.path.endswith("wrapping_key"):
                return web.json_response({"data": {"public_key": public_key}})
            return web.json_response({"errors": []}, status=404)

        vault.respond = respond
        with pytest.raises(KmsUnavailableError, match="not an RSA key"):
            await import_prk(vault.uri(), settings(), Secret(bytes(32)))
    assert IMPORT not in vault.paths()

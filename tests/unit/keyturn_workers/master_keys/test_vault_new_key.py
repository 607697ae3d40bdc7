"""New transit keys: never over an existing one, and not exportable."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from keyturn.crypto import Secret, master_prk
from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.vault_new_key import generate_key, import_prk
from tests.unit.keyturn_workers.master_keys.fake_vault import (
    KEY_PATH,
    FakeVault,
    fake_vault,
    settings,
)

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
        with pytest.raises(KmsUnavailableError, match="Vault answered 400"):
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

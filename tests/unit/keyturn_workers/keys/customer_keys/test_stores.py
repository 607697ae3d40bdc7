"""What is sent to a store, and which answers are refusals, absences or secrets (SPEC 2.6)."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from aiohttp import web

from keyturn.crypto import Secret
from keyturn.errors import CustomerKeyRefusedError, KmsUnavailableError, SettingsError
from keyturn_workers.core.customer_key_stores import (
    AwsKmsStore,
    VaultStore,
    parse_customer_key_stores,
)
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.keys.customer_keys.awskms import AwsKmsKeys, AwsKmsRegions
from keyturn_workers.keys.customer_keys.port import Place
from keyturn_workers.keys.customer_keys.providers import CustomerKeyMetrics, open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_WORKERS
from keyturn_workers.keys.customer_keys.vault import VaultKeys
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from keyturn_workers.process.metrics_registry import Registry
from keyturn_workers.process.settings import CustomerKeySettings
from tests.unit.keyturn_workers.keys.master_keys.fake_servers import TOKEN, fake_vault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.keyturn_workers.keys.master_keys.fake_servers import FakeVault, KmsStub

ARN: Final = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ANOTHER: Final = ARN[:-1] + "0"
SECRET: Final = Secret(bytes(range(32)))
SECRET_B64: Final = base64.b64encode(bytes(range(32))).decode()
PLACE: Final = Place("rig", "acme", "366923941b9116e5")
# A known answer for this place, computed apart from the product.
ASSOCIATED: Final = "a2V5dHVybi92MS9jdXN0b21lci1zZWNyZXQAcmlnAGFjbWUAMzY2OTIzOTQxYjkxMTZlNQ=="
CONTEXT: Final = {
    "keyturn:deployment": "rig",
    "keyturn:project": "acme",
    "keyturn:secret": "366923941b9116e5",
}


# AWS KMS.


@asynccontextmanager
async def _aws(stub: KmsStub) -> AsyncIterator[AwsKmsKeys]:
    fields = {"kind": "awskms", "projects": ["acme"], "keys": [ARN, ANOTHER]}
    settings = parse_customer_key_stores({"kms-eu": fields})["kms-eu"]
    assert isinstance(settings, AwsKmsStore)
    store = AwsKmsKeys(settings, AwsKmsRegions(stub.url))
    try:
        yield store
    finally:
        await store.aclose()


async def test_aws_gets_the_secret_with_its_context(stub: KmsStub) -> None:
    stub.answers["Encrypt"] = {"KeyId": ARN, "CiphertextBlob": "YQ=="}
    stub.answers["Decrypt"] = {"KeyId": ARN, "Plaintext": SECRET_B64}
    async with _aws(stub) as store:
        assert await store.encrypt(ARN, PLACE, SECRET) == "YQ=="
        assert await store.decrypt(ARN, PLACE, "YQ==") == SECRET
    common = {
        "KeyId": ARN,
        "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
        "EncryptionContext": CONTEXT,
    }
    assert stub.requests == [
        ("Encrypt", {**common, "Plaintext": SECRET_B64}),
        ("Decrypt", {**common, "CiphertextBlob": "YQ=="}),
    ]
    assert all("/eu-central-1/kms/" in header for header in stub.authorizations)


@pytest.mark.parametrize(
    ("code", "text", "refused"),
    [
        ("AccessDeniedException", "not allowed kms:Decrypt on this key", True),
        ("DisabledException", "is disabled", True),
        ("KMSInvalidStateException", "does not allow its use", False),
        ("NotFoundException", "does not exist", True),
        ("InvalidCiphertextException", "did not encrypt this for this place", True),
        ("IncorrectKeyException", "another key in AWS KMS", True),
        ("InvalidKeyUsageException", "not of SYMMETRIC_DEFAULT and ENCRYPT_DECRYPT", True),
        ("ExpiredTokenException", "credentials are expired", True),
        ("ThrottlingException", "throttling", False),
        ("KeyUnavailableException", "cannot use the key at the moment", False),
        ("KMSInternalException", "cannot use the key at the moment", False),
        ("SomethingNew", "status 400", False),
    ],
)
async def test_aws_refuses_or_is_away(stub: KmsStub, code: str, text: str, refused: bool) -> None:
    stub.refuse("Decrypt", code)
    async with _aws(stub) as store:
        with pytest.raises(KmsUnavailableError, match=text) as caught:
            await store.decrypt(ARN, PLACE, "YQ==")
    assert isinstance(caught.value, KmsRefusedError) is refused


@pytest.mark.parametrize(
    "answer",
    [
        {"KeyId": ANOTHER, "Plaintext": SECRET_B64, "CiphertextBlob": "YQ=="},
        {"Plaintext": SECRET_B64, "CiphertextBlob": "YQ=="},
        {"KeyId": ARN},
        {"KeyId": ARN, "Plaintext": 3, "CiphertextBlob": 3},
        {"KeyId": ARN, "CiphertextBlob": base64.b64encode(bytes(7000)).decode()},
    ],
)
async def test_an_answer_of_aws_to_something_else_is_no_refusal(
    stub: KmsStub, answer: dict[str, Any]
) -> None:
    stub.answers |= {"Decrypt": answer, "Encrypt": answer}
    async with _aws(stub) as store:
        for call in (store.decrypt(ARN, PLACE, "YQ=="), store.encrypt(ARN, PLACE, SECRET)):
            with pytest.raises(KmsUnavailableError) as caught:
                await call
            assert not isinstance(caught.value, KmsRefusedError)
            assert SECRET_B64 not in str(caught.value)


async def test_a_text_of_another_kind_of_store_is_a_refusal(stub: KmsStub) -> None:
    async with _aws(stub) as store:
        with pytest.raises(KmsRefusedError, match="did not encrypt this"):
            await store.decrypt(ARN, PLACE, "vault:v1:YQ==")
    assert stub.requests == []


async def test_a_key_that_denies_access_costs_the_others_no_connection(stub: KmsStub) -> None:
    """Only a refusal of the credentials themselves opens a new client."""
    stub.answers["Decrypt"] = {"KeyId": ARN, "Plaintext": SECRET_B64}
    async with _aws(stub) as store:
        stub.hanging = True
        slow = asyncio.create_task(store.decrypt(ARN, PLACE, "YQ=="))
        await stub.came.wait()
        stub.hanging = False
        for code in ("AccessDeniedException", "ExpiredTokenException") * 2:
            stub.refuse("Encrypt", code)
            with pytest.raises(KmsRefusedError):
                await store.encrypt(ANOTHER, PLACE, SECRET)
        stub.stopping.set()
        assert await slow == SECRET


async def test_an_address_is_the_region_or_the_configured_endpoint() -> None:
    for url, address in ((None, "kms.eu-central-1"), ("http://127.0.0.1:1", "http://127.0.0.1:1")):
        settings = AwsKmsStore(kind="awskms", projects=["acme"], keys=[ARN])
        assert AwsKmsKeys(settings, AwsKmsRegions(url)).address(ARN) == address


# Vault and OpenBao.


@asynccontextmanager
async def _vault(vault: FakeVault, tmp_path: Path) -> AsyncIterator[VaultKeys]:
    settings = parse_customer_key_stores({"bao": _fields(vault.url, tmp_path)})["bao"]
    assert isinstance(settings, VaultStore)
    store = VaultKeys("bao", settings)
    try:
        yield store
    finally:
        await store.aclose()


def _fields(url: str, tmp_path: Path) -> dict[str, Any]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return {
        "kind": "vault",
        "address": url,
        "mount": "transit/eu",
        "projects": ["acme"],
        "keys": ["k1"],
        "token_file": str(token),
    }


def _answers(vault: FakeVault, status: int, body: object) -> None:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response(body, status=status)

    vault.respond = respond


async def test_vault_gets_the_secret_with_its_associated_data(tmp_path: Path) -> None:
    async with fake_vault() as vault, _vault(vault, tmp_path) as store:
        _answers(vault, 200, {"data": {"ciphertext": "vault:v3:YQ==", "plaintext": SECRET_B64}})
        assert await store.encrypt("k1", PLACE, SECRET) == "vault:v3:YQ=="
        assert await store.decrypt("k1", PLACE, "vault:v3:YQ==") == SECRET
        assert store.address("k1") == vault.url
    data = {"associated_data": ASSOCIATED}
    assert vault.requests == [
        ("POST", "transit/eu/encrypt/k1", {**data, "plaintext": SECRET_B64}),
        ("POST", "transit/eu/decrypt/k1", {**data, "ciphertext": "vault:v3:YQ=="}),
    ]
    assert [headers["X-Vault-Token"] for headers in vault.headers] == [TOKEN] * 2


@pytest.mark.parametrize(
    ("status", "error", "text", "refused"),
    [
        (400, "encryption key not found", "does not exist", True),
        (400, "cipher: message authentication failed", "did not encrypt this", True),
        (400, "refusing to use soft-deleted key", "is deleted", True),
        (
            400,
            "ciphertext or signature version is disallowed by policy (too old)",
            "min_decryption_version",
            True,
        ),
        (400, "something new", "responded with 400", True),
        (403, "permission denied", "expired or revoked, or may not use", True),
        (404, "no handler for route", "no such path", True),
        (412, "", "not caught up", False),
        (429, "", "too many requests", False),
        (500, "internal error", "responded with 500", False),
        (503, "Vault is sealed", "sealed", False),
    ],
)
async def test_vault_refuses_or_is_away(
    tmp_path: Path, status: int, error: str, text: str, refused: bool
) -> None:
    async with fake_vault() as vault, _vault(vault, tmp_path) as store:
        _answers(vault, status, {"errors": [error]})
        with pytest.raises(KmsUnavailableError, match=text) as caught:
            await store.decrypt("k1", PLACE, "vault:v1:YQ==")
    assert isinstance(caught.value, KmsRefusedError) is refused


@pytest.mark.parametrize(
    "data",
    [
        None,
        {},
        {"ciphertext": 3, "plaintext": 3},
        {"ciphertext": "", "plaintext": "?"},
        {"ciphertext": "YQ==", "plaintext": "YQ"},
        {"ciphertext": "vault:v1:" + "YWFh" * 3000, "plaintext": "Y Q=="},
    ],
)
async def test_an_answer_of_vault_that_is_none_is_no_refusal(tmp_path: Path, data: object) -> None:
    async with fake_vault() as vault, _vault(vault, tmp_path) as store:
        _answers(vault, 200, {"data": data})
        for call in (
            store.decrypt("k1", PLACE, "vault:v1:YQ=="),
            store.encrypt("k1", PLACE, SECRET),
        ):
            with pytest.raises(KmsUnavailableError) as caught:
                await call
            assert not isinstance(caught.value, KmsRefusedError)


async def test_vault_that_cannot_be_reached_or_has_no_token_is_away(tmp_path: Path) -> None:
    async with fake_vault() as vault:
        pass
    async with _vault(vault, tmp_path) as store:
        for text in (
            "cannot be reached",
            "the file that token_file of bao in .* names cannot be read",
        ):
            with pytest.raises(KmsUnavailableError, match=text) as caught:
                await store.decrypt("k1", PLACE, "vault:v1:YQ==")
            assert not isinstance(caught.value, KmsRefusedError)
            (tmp_path / "token").unlink(missing_ok=True)


# A process.


def _settings(**values: object) -> CustomerKeySettings:
    return CustomerKeySettings.model_validate(values)


async def test_a_store_gets_no_credential_of_a_master_key(tmp_path: Path) -> None:
    registry = Registry()
    async with fake_vault() as vault:
        vault.tokens = set()
        settings = _settings(
            vault_token="s.of-the-master-keys",
            vault_namespace="of-the-master-keys",
            customer_key_stores={"bao": _fields(vault.url, tmp_path)},
        )
        metrics = CustomerKeyMetrics(registry, settings.customer_key_stores)
        async with open_customer_keys(settings, "rig", IN_WORKERS, metrics=metrics) as keys:
            with pytest.raises(CustomerKeyRefusedError, match=r"bao/k1: Vault refuses the token"):
                await keys.create("acme", KeyName("bao", "k1"))
        assert vault.headers
        assert "of-the-master-keys" not in str(vault.headers)
    text = registry.render()[0].decode()
    assert 'keyturn_customer_key_calls_total{outcome="refused",store="bao"} 1.0' in text
    assert 'keyturn_customer_key_calls_total{outcome="ok",store="bao"} 0.0' in text
    assert "keyturn_customer_secrets 0.0" in text


async def test_a_malformed_credential_is_named_at_the_start(tmp_path: Path) -> None:
    fields = _fields("https://bao.example.com", tmp_path) | {"ca_file": str(tmp_path / "none")}
    settings = _settings(customer_key_stores={"bao": fields})
    text = "ca_file of bao in KEYTURN_CUSTOMER_KEY_STORES is not a readable file"
    with pytest.raises(SettingsError, match=text):
        async with open_customer_keys(settings, "rig", IN_WORKERS):
            pass

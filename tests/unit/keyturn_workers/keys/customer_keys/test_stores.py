"""What is sent to a store, and which answers are refusals, absences or secrets (SPEC 2.6)."""

from __future__ import annotations

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
from aiohttp import web
from pydantic import ValidationError

from keyturn.crypto import Secret
from keyturn.errors import (
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    KmsUnavailableError,
    NotPermittedError,
    SettingsError,
)
from keyturn_workers.core.customer_key_stores import (
    AwsKmsStore,
    VaultStore,
    parse_customer_key_stores,
)
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.core.vault_access import MasterKeyCredentials
from keyturn_workers.keys.customer_keys import awskms
from keyturn_workers.keys.customer_keys.awskms import AwsKmsKeys, AwsKmsRegions
from keyturn_workers.keys.customer_keys.port import Place
from keyturn_workers.keys.customer_keys.providers import CustomerKeyMetrics, open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_COMMANDS, IN_WORKERS
from keyturn_workers.keys.customer_keys.vault import VaultKeys
from keyturn_workers.keys.master_keys.awskms import AwsKmsClient
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from keyturn_workers.process import settings as process_settings
from keyturn_workers.process.metrics_registry import Registry
from keyturn_workers.process.settings import (
    CustomerKeySettings,
    GatewaySettings,
    WorkerSettings,
)
from tests.unit.keyturn_workers.keys.master_keys.fake_servers import TOKEN, fake_vault
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.keyturn_workers.keys.master_keys.fake_servers import FakeVault, KmsStub

ARN: Final = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ANOTHER: Final = ARN[:-1] + "0"
_REGION: Final = "arn:aws:kms:eu-central-1:"
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


@pytest.mark.parametrize("pattern", ["*", "arn:aws:kms:*", "arn:aws:kms:eu-*", _REGION + "*"])
async def test_names_in_requests_make_no_clients_of_other_regions(
    monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    """A client is kept until the process ends. Broader patterns are refused."""
    opened = []

    class Client(AwsKmsClient):
        def __init__(self, region: str, *args: Any, **options: Any) -> None:
            super().__init__(region, *args, **options)
            opened.append(region)

        async def call(self, *_: object, **__: object) -> dict[str, Any]:
            raise KmsUnavailableError("away")

    monkeypatch.setattr(awskms, "AwsKmsClient", Client)
    fields = {"kind": "awskms", "projects": ["acme"], "keys": [pattern]}
    try:
        settings = _settings(customer_key_stores={"kms": fields})
    except ValidationError:
        return
    async with open_customer_keys(settings, "rig", IN_COMMANDS) as keys:
        for region in ("eu-central-1", *(f"eu-central-{n}" for n in range(10, 60))):
            arn = ARN.replace("eu-central-1", region)
            with pytest.raises((NotPermittedError, CustomerKeyUnavailableError)):
                await keys.create("acme", KeyName("kms", arn))
    assert opened == ["eu-central-1"]


# Vault and OpenBao.


@asynccontextmanager
async def _vault(vault: FakeVault, tmp_path: Path) -> AsyncIterator[VaultKeys]:
    settings = parse_customer_key_stores({"bao": _fields(vault.url, tmp_path)})["bao"]
    assert isinstance(settings, VaultStore)
    store = VaultKeys("bao", settings, MasterKeyCredentials())
    try:
        yield store
    finally:
        await store.aclose()


_STORE: Final = {"kind": "vault", "mount": "transit/eu", "projects": ["acme"], "keys": ["k1"]}


def _fields(url: str, tmp_path: Path) -> dict[str, Any]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    return {**_STORE, "address": url, "token_file": str(token)}


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


_WAYS: Final[dict[str, dict[str, str]]] = {
    "token_file": {},
    "secret_id_file": {"role_id": "r"},
    "kubernetes_token_file": {"kubernetes_role": "r"},
}
_PIN_URI: Final = "pkcs11:object=m2?module-path=/p11.so&pin-source="


def _projected(folder: Path, content: str) -> Path:
    """A file as Kubernetes projects it: it and its folder are links that a renewal replaces."""
    (folder / "..2026").mkdir(parents=True)
    (folder / "..2026" / "token").write_text(content)
    (folder / "..data").symlink_to("..2026")
    (folder / "token").symlink_to("..data/token")
    return folder / "token"


def _with(field: str, path: Path, url: str = "https://bao.example.com") -> dict[str, Any]:
    """A store that signs in with this file."""
    return {**_STORE, "address": url, **_WAYS[field], field: str(path)}


async def _check_refused(monkeypatch: pytest.MonkeyPatch, field: str, path: Path) -> None:
    monkeypatch.setenv("KEYTURN_CUSTOMER_KEY_STORES", json.dumps({"bao": _with(field, path)}))
    text = f"the file that {field} of bao in KEYTURN_CUSTOMER_KEY_STORES names has a credential of"
    for settings in (WorkerSettings.read(), GatewaySettings.read()):
        with pytest.raises(SettingsError, match=text) as raised:
            async with open_customer_keys(settings, "rig", IN_WORKERS):
                pass
        assert "canary" not in str(raised.value)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a worker and a gateway."""
    storage = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
    deployment = Deployment("amqp://127.0.0.1/", storage, "bucket")
    env = deployment.gateway_env() | deployment.worker_env()
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


@pytest.mark.parametrize(
    "setting",
    [
        "",  # the pod's own token, also where master keys have another
        "KEYTURN_VAULT_TOKEN_FILE",
        "KEYTURN_VAULT_SECRET_ID_FILE",
        "KEYTURN_VAULT_KUBERNETES_TOKEN_FILE",
        "KEYTURN_PKCS11_PIN_FILE",
        "KEYTURN_MASTER_KEYS",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ],
)
@pytest.mark.parametrize("field", _WAYS)
async def test_a_store_with_a_file_of_the_master_keys_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    environment: dict[str, str],
    setting: str,
    field: str,
) -> None:
    file = _projected(tmp_path / "pod", "canary\n")
    if setting == "":
        monkeypatch.setattr(process_settings, "KUBERNETES_TOKEN_FILE", file)
        monkeypatch.setenv("KEYTURN_VAULT_KUBERNETES_TOKEN_FILE", "/nowhere")
    elif setting == "KEYTURN_MASTER_KEYS":
        keys = json.loads(environment[setting])
        monkeypatch.setenv(setting, json.dumps({**keys, "hsm": f"{_PIN_URI}{file}"}))
    else:
        monkeypatch.setenv(setting, str(file))
    link, copied = tmp_path / "link", tmp_path / "copied"
    link.symlink_to(tmp_path / "pod" / ".." / "pod" / "token")
    copied.write_text("canary")
    for path in (file, file.parent / "..data" / "token", link, copied):
        await _check_refused(monkeypatch, field, path)
    file.resolve().unlink()  # it does not exist yet
    for path in (file, link):
        await _check_refused(monkeypatch, field, path)


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    "setting", ["KEYTURN_VAULT_TOKEN", "KEYTURN_VAULT_SECRET_ID", "KEYTURN_PKCS11_PIN"]
)
async def test_a_store_with_a_copy_of_a_credential_in_a_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, setting: str
) -> None:
    monkeypatch.setenv(setting, "canary")
    copied = tmp_path / "copied"
    copied.write_text("canary\n")
    await _check_refused(monkeypatch, "token_file", copied)


@pytest.mark.parametrize("field", _WAYS)
@pytest.mark.parametrize("content", ["of-the-store", "", None])
async def test_a_store_with_a_credential_of_its_own_is_opened(
    tmp_path: Path, field: str, content: str | None
) -> None:
    """Also where files are empty, or do not exist yet."""
    own, other = tmp_path / "own", tmp_path / "other"
    if content is not None:
        own.write_text(content)
        other.write_text(content and "of-the-master-keys")
    settings = _settings(vault_token_file=other, customer_key_stores={"bao": _with(field, own)})
    async with open_customer_keys(settings, "rig", IN_WORKERS):
        pass


@pytest.mark.parametrize("field", _WAYS)
async def test_a_file_that_becomes_a_credential_of_a_master_key_is_not_sent(
    tmp_path: Path, field: str
) -> None:
    """Files are renewed while processes run: what is sent is compared, not only the first."""
    own, other = tmp_path / "own", tmp_path / "other"
    async with fake_vault() as vault:
        vault.tokens = set()
        settings = _settings(
            vault_token_file=other, customer_key_stores={"bao": _with(field, own, vault.url)}
        )
        async with open_customer_keys(settings, "rig", IN_WORKERS) as keys:
            for of_store, of_master_keys, error, text in (
                ("a", "b", CustomerKeyRefusedError, "Vault refuses"),
                ("c", "c", CustomerKeyUnavailableError, "a credential of the master keys or the"),
            ):
                own.write_text(of_store)
                other.write_text(of_master_keys)
                with pytest.raises(error, match=text):
                    await keys.create("acme", KeyName("bao", "k1"))
    sent = f"{vault.headers} {vault.requests}"
    assert "'a'" in sent
    assert "'c'" not in sent


async def test_a_malformed_credential_is_named_at_the_start(tmp_path: Path) -> None:
    fields = _fields("https://bao.example.com", tmp_path) | {"ca_file": str(tmp_path / "none")}
    settings = _settings(customer_key_stores={"bao": fields})
    text = "ca_file of bao in KEYTURN_CUSTOMER_KEY_STORES is not a readable file"
    with pytest.raises(SettingsError, match=text):
        async with open_customer_keys(settings, "rig", IN_WORKERS):
            pass

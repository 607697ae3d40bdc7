"""Which class serves which kind of master key, and what one in this process derives."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from keyturn.crypto import (
    Secret,
    admin_kek,
    admin_kek_info,
    master_prk,
    record_kek,
    record_kek_info,
    to_base64,
)
from keyturn.errors import SettingsError
from keyturn_workers.core.key_uris import Pkcs11Uri, parse_key_uri
from keyturn_workers.keys.master_keys import awskms
from keyturn_workers.keys.master_keys.awskms import AwsKmsMasterKey
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.providers import (
    KmsMetrics,
    generate_master_key,
    import_master_key,
    open_master_key,
    open_operator_keys,
)
from keyturn_workers.keys.master_keys.vault import VaultMasterKey
from keyturn_workers.process.settings import KmsSettings, MasterKeySource, OperatorSettings
from tests.support.fake_pkcs11 import MASTER_KEY, PIN, FakeModule
from tests.unit.keyturn_workers.keys.master_keys.fake_servers import TOKEN, fake_vault
from tests.unit.keyturn_workers.keys.master_keys.fake_servers import settings as vault_settings
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.keys.master_keys.port import MasterKey

KEY = Secret(bytes(range(32)))
AWS = parse_key_uri("awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd")
ON_TOKEN = Pkcs11Uri("pkcs11:object=m1", object="m1")
TOKEN_SETTINGS = KmsSettings(pkcs11_module=Path("fake.so"), pkcs11_pin=SecretStr(PIN))


async def test_it_derives_what_hkdf_derives() -> None:
    key = LocalMasterKey(KEY)
    admin = await key.derive(admin_kek_info("acme"))
    record = await key.derive(record_kek_info("acme"))
    assert admin.kek == admin_kek(KEY.reveal(), "acme")
    assert record.kek == record_kek(KEY.reveal(), "acme")
    assert admin.kek != record.kek
    assert admin.request_id is None


async def test_it_says_that_the_settings_show_the_key() -> None:
    description = await LocalMasterKey(KEY).describe()
    assert description.provider == "local"
    assert description.exportable


@pytest.mark.parametrize(("source", "kind"), [(KEY, LocalMasterKey), (AWS, AwsKmsMasterKey)])
def test_a_setting_has_its_class(source: MasterKeySource, kind: type[MasterKey]) -> None:
    assert isinstance(open_master_key(source, KmsSettings()), kind)


async def test_an_import_goes_to_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = []

    async def import_prk(*given: object) -> None:
        imported.append(given)

    monkeypatch.setattr(awskms, "import_prk", import_prk)
    settings = KmsSettings()
    await import_master_key(AWS, settings, KEY)
    assert imported == [(AWS, settings, KEY)]


async def test_a_key_in_the_settings_takes_no_import_and_is_not_generated() -> None:
    with pytest.raises(ValueError, match="cannot be imported"):
        await import_master_key(KEY, KmsSettings(), KEY)
    with pytest.raises(ValueError, match="cannot be generated"):
        await generate_master_key(KEY, KmsSettings())


async def test_aws_chooses_the_name_of_a_new_key() -> None:
    with pytest.raises(ValueError, match="aws kms create-key"):
        await generate_master_key(AWS, KmsSettings())


async def test_a_pkcs11_uri_is_a_key_on_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeModule().install(monkeypatch)
    await import_master_key(ON_TOKEN, TOKEN_SETTINGS, master_prk(MASTER_KEY))
    key = open_master_key(ON_TOKEN, TOKEN_SETTINGS)
    assert key.provider == "pkcs11"
    assert (await key.derive(admin_kek_info("acme"))).kek == admin_kek(MASTER_KEY, "acme")
    with pytest.raises(ValueError, match="already has a matching key"):
        await generate_master_key(ON_TOKEN, TOKEN_SETTINGS)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "keyturn_workers.keys.master_keys.pkcs11", raising=False)
    monkeypatch.setitem(sys.modules, "pkcs11", None)
    with pytest.raises(SettingsError, match=r"install keyturn-workers\[pkcs11\]"):
        open_master_key(ON_TOKEN, TOKEN_SETTINGS)


def test_a_vault_uri_is_a_key_in_vault() -> None:
    uri = parse_key_uri("vault:https://vault.example.com:8200/transit/m2?version=1")
    assert isinstance(open_master_key(uri, vault_settings()), VaultMasterKey)


async def test_keys_are_imported_and_generated_in_vault() -> None:
    async with fake_vault(empty=True) as vault:
        await import_master_key(vault.uri(), vault_settings(), Secret(bytes(range(32))))
        assert vault.prk == bytes(range(32))
    async with fake_vault(empty=True) as vault:
        await generate_master_key(vault.uri(), vault_settings())
        assert vault.requests[-1][:2] == ("POST", "transit/keys/m1")


# Metrics of the calls to providers.


def _value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"keyturn_kms_{name}", labels)


def test_calls_are_counted_by_provider_and_outcome() -> None:
    registry = CollectorRegistry()
    observe = KmsMetrics(registry).observer("vault")
    assert _value(registry, "derivations_total", provider="vault", outcome="unavailable") == 0
    for succeeded, seconds in ((True, 0.25), (False, 0)):
        observe(succeeded, seconds)
    assert _value(registry, "derivations_total", provider="vault", outcome="derived") == 1
    assert _value(registry, "derivations_total", provider="vault", outcome="unavailable") == 1
    assert _value(registry, "derivation_seconds_sum", provider="vault") == 0.25


async def test_the_keys_of_the_settings_keep_their_ids_and_their_calls_are_counted() -> None:
    registry, storage = CollectorRegistry(), MemoryStorage()
    async with fake_vault() as vault:
        settings = OperatorSettings.model_validate(
            {
                "master_keys": {"m1": to_base64(KEY.reveal()), "m2": vault.uri().location},
                "vault_token": TOKEN,
                "s3_bucket": "unused",
            }
        )
        async with open_operator_keys(
            settings, storage, seals=True, metrics=KmsMetrics(registry)
        ) as keys:
            assert keys.ids == ("m1", "m2")
            assert (await keys.admin_keks("acme")).keks.keys() == {"m1", "m2"}
            # An admin KEK and the record KEK of the known text, each derived twice.
            assert _value(registry, "derivations_total", provider="vault", outcome="derived") == 4
            assert _value(registry, "cached_keks") == 4
    assert storage.stored_keys() == [".keyturn/keys/m1.json", ".keyturn/keys/m2.json"]

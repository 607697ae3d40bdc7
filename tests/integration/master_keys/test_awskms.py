"""A master key in AWS KMS, served by moto over HTTP: known answers, losses and refusals.

moto generates the MACs. What it lacks (import, states, credentials) is in `moto_kms_server`: how
AWS itself behaves there is not tested here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import admin_kek, admin_kek_info, master_prk, record_kek, record_kek_info
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.key_uris import AwsKmsUri, parse_key_uri
from keyturn_workers.keys.master_keys.awskms import AwsKmsMasterKey, import_prk
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits, CircuitBreaker
from keyturn_workers.process.settings import KmsSettings
from tools.servers import MotoKms

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.servers
MASTER_KEY = bytes(range(32))
PRK = master_prk(MASTER_KEY)
INFO = admin_kek_info("acme")
# The vector that every provider must pass (docs/reference/key-providers.md), by openssl.
ADMIN_KEK = "97216b49f732dff39115cf6c4b4ab2051c9c044d6a2e80f2978f3d6a1ced9dbf"
RECORD_KEK = "236a2dc8b7f1d8207107a086cf438d248f540f1daf0a0265c4022aa9dc53957c"


@pytest.fixture(scope="module")
def server() -> Iterator[MotoKms]:
    """A server whose key is a known master key."""
    with MotoKms(PRK.reveal()) as running:
        yield running


@pytest.fixture(autouse=True)
def environment(server: MotoKms, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
async def key(server: MotoKms) -> AsyncIterator[AwsKmsMasterKey]:
    made = AwsKmsMasterKey(_uri(server.uri), KmsSettings.read())
    yield made
    await made.aclose()


def _uri(text: str) -> AwsKmsUri:
    uri = parse_key_uri(text)
    assert isinstance(uri, AwsKmsUri)
    return uri


async def test_the_known_answers_are_those_of_hkdf(key: AwsKmsMasterKey) -> None:
    for project in ("acme", "a", "x" * 63):
        admin = await key.derive(admin_kek_info(project))
        record = await key.derive(record_kek_info(project))
        assert admin.kek == admin_kek(MASTER_KEY, project)
        assert record.kek == record_kek(MASTER_KEY, project)
        assert admin.request_id
        assert admin.request_id != record.request_id


async def test_the_vector_of_all_providers(key: AwsKmsMasterKey) -> None:
    assert (await key.derive(INFO)).kek.reveal().hex() == ADMIN_KEK
    assert (await key.derive(record_kek_info("acme"))).kek.reveal().hex() == RECORD_KEK


async def test_the_key_is_described(key: AwsKmsMasterKey, server: MotoKms) -> None:
    description = await key.describe()
    assert description.location == server.uri
    assert not description.imported
    assert description.warnings == ()


async def test_a_master_key_that_is_imported_derives_the_same(server: MotoKms) -> None:
    uri = _uri(server.new_key(Origin="EXTERNAL"))
    settings = KmsSettings.read()
    key = AwsKmsMasterKey(uri, settings)
    with pytest.raises(KmsUnavailableError, match="no key material"):
        await key.derive(INFO)
    await import_prk(uri, settings, PRK)
    assert (await key.derive(INFO)).kek == admin_kek(MASTER_KEY, "acme")
    assert (await key.describe()).imported
    with pytest.raises(ValueError, match="has key material already"):
        await import_prk(uri, settings, PRK)
    await key.aclose()


async def test_a_key_that_was_generated_inside_takes_no_import(server: MotoKms) -> None:
    uri = _uri(server.new_key())
    with pytest.raises(ValueError, match="--origin EXTERNAL"):
        await import_prk(uri, KmsSettings.read(), PRK)


async def test_a_server_that_was_away_is_asked_again_at_once(
    key: AwsKmsMasterKey, server: MotoKms
) -> None:
    before = await key.derive(INFO)
    server.stop()
    try:
        for _ in range(3):
            with pytest.raises(KmsUnavailableError, match="cannot be reached"):
                await key.derive(INFO)
    finally:
        server.start()
    assert (await key.derive(INFO)).kek == before.kek


async def test_expired_credentials_are_one_line(
    key: AwsKmsMasterKey, server: MotoKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.refused_env["AWS_ACCESS_KEY_ID"])
    breaker = CircuitBreaker(CallLimits())
    for text in (
        r"^kms_unavailable: the AWS credentials are expired$",
        "expired; next attempt in 1",
    ):
        with pytest.raises(KmsUnavailableError, match=text):
            await breaker.call(lambda: key.derive(INFO))


@pytest.mark.parametrize(
    ("spec", "usage", "text"),
    [
        ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT", "not of HMAC_256"),
        ("RSA_2048", "SIGN_VERIFY", "not of HMAC_256"),
    ],
)
async def test_a_key_of_another_usage(server: MotoKms, spec: str, usage: str, text: str) -> None:
    uri = _uri(server.new_key(KeySpec=spec, KeyUsage=usage))
    key = AwsKmsMasterKey(uri, KmsSettings.read())
    with pytest.raises(KmsUnavailableError, match=text):
        await key.derive(INFO)
    assert "not a key of spec HMAC_256" in (await key.describe()).warnings[0]
    await key.aclose()


async def test_a_key_that_is_disabled_or_deleted(server: MotoKms) -> None:
    uri = _uri(server.new_key())
    key = AwsKmsMasterKey(uri, KmsSettings.read())
    key_id = uri.arn.rpartition("/")[2]  # moto finds a key to disable by its id alone
    with server.client() as kms:
        kms.disable_key(KeyId=key_id)
        with pytest.raises(KmsUnavailableError, match="is disabled"):
            await key.derive(INFO)
        kms.schedule_key_deletion(KeyId=key_id, PendingWindowInDays=7)
    with pytest.raises(KmsUnavailableError, match="scheduled for deletion"):
        await key.derive(INFO)
    assert "PendingDeletion" in (await key.describe()).warnings[0]
    await key.aclose()


async def test_a_key_that_does_not_exist(server: MotoKms) -> None:
    uri = _uri(f"{server.uri[:-4]}0000")
    key = AwsKmsMasterKey(uri, KmsSettings.read())
    with pytest.raises(KmsUnavailableError, match="does not exist"):
        await key.derive(INFO)
    with pytest.raises(KmsUnavailableError, match="does not exist"):
        await key.describe()
    await key.aclose()

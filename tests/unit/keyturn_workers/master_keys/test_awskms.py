"""A master key in AWS KMS: what HKDF derives, or one clear error, whatever the server answers."""

from __future__ import annotations

import base64
import hmac
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyturn.crypto import Secret, admin_kek, admin_kek_info, master_prk
from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.awskms import AwsKmsMasterKey, import_prk
from keyturn_workers.settings import KmsSettings
from tests.unit.keyturn_workers.master_keys.kms_stub import ARN, URI

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.keyturn_workers.master_keys.kms_stub import KmsStub

MASTER_KEY = bytes(range(32))
PRK = master_prk(MASTER_KEY)
INFO = admin_kek_info("acme")
GOOD = {
    "KeyId": ARN,
    "MacAlgorithm": "HMAC_SHA_256",
    "Mac": base64.b64encode(admin_kek(MASTER_KEY, "acme").reveal()).decode(),
}
METADATA = {
    "Arn": ARN,
    "KeySpec": "HMAC_256",
    "KeyUsage": "GENERATE_VERIFY_MAC",
    "KeyState": "Enabled",
    "Origin": "AWS_KMS",
    "MultiRegion": False,
}


@pytest.fixture
async def key(stub: KmsStub) -> AsyncIterator[AwsKmsMasterKey]:
    made = AwsKmsMasterKey(URI, stub.settings(kms_timeout_s=2))
    yield made
    await made.aclose()


async def test_it_derives_what_hkdf_derives(stub: KmsStub, key: AwsKmsMasterKey) -> None:
    stub.answers["GenerateMac"] = GOOD
    derivation = await key.derive(INFO)
    assert derivation.kek == admin_kek(MASTER_KEY, "acme")
    assert derivation.request_id == "11111111-2222-3333-4444-555555555555"
    [(operation, parameters)] = stub.requests
    assert operation == "GenerateMac"
    message = base64.b64decode(parameters.pop("Message"))
    assert parameters == {"KeyId": ARN, "MacAlgorithm": "HMAC_SHA_256"}
    assert hmac.digest(PRK.reveal(), message, "sha256") == derivation.kek.reveal()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"KeyId": ARN[:-1] + "1"}, "for another key"),
        ({"KeyId": ARN.rpartition("/")[2]}, "for another key"),
        ({"KeyId": None}, "for another key"),
        ({"MacAlgorithm": "HMAC_SHA_512"}, "with another MAC algorithm"),
        ({"Mac": ""}, "32 bytes"),
        ({"Mac": base64.b64encode(bytes(31)).decode()}, "32 bytes"),
        ({"Mac": base64.b64encode(bytes(33)).decode()}, "32 bytes"),
        ({"Mac": None}, "32 bytes"),
        ({"Mac": "?"}, "32 bytes"),
        ({"Mac": "abc"}, "unreadable response"),
        ({"Mac": 3}, "unreadable response"),
        ({"Mac": ["a"]}, "unreadable response"),
    ],
)
async def test_an_answer_to_something_else_is_refused(
    stub: KmsStub, key: AwsKmsMasterKey, change: dict[str, Any], text: str
) -> None:
    stub.answers["GenerateMac"] = GOOD | change
    with pytest.raises(KmsUnavailableError, match=text) as caught:
        await key.derive(INFO)
    assert GOOD["Mac"] not in str(caught.value)
    assert caught.value.__cause__ is None
    stub.answers["GenerateMac"] = GOOD  # the key is usable afterwards
    await key.derive(INFO)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"3", b"null", b"<html>", b"\xff\xfe", b'{"Mac":', b"[" * 100_000]
)
@pytest.mark.parametrize("status", [200, 301, 400, 403, 500])
async def test_whatever_a_proxy_answers_is_one_error(
    stub: KmsStub, key: AwsKmsMasterKey, body: bytes, status: int
) -> None:
    stub.answers["GenerateMac"] = web.Response(body=body, status=status)
    with pytest.raises(KmsUnavailableError) as caught:
        await key.derive(INFO)
    assert str(caught.value).isprintable()


@pytest.mark.slow
async def test_a_body_without_an_end_ends_with_the_time_limit(
    stub: KmsStub, key: AwsKmsMasterKey
) -> None:
    stub.answers["GenerateMac"] = GOOD
    stub.endless = True
    with pytest.raises(KmsUnavailableError, match=r"2 s|ReadTimeout"):
        await key.derive(INFO)


async def test_nothing_prints_the_kek(stub: KmsStub, key: AwsKmsMasterKey) -> None:
    stub.answers["GenerateMac"] = GOOD
    derivation = await key.derive(INFO)
    assert GOOD["Mac"] not in repr(derivation)
    assert derivation.kek.reveal().hex() not in repr(derivation)


@pytest.mark.parametrize(
    ("change", "imported", "warnings"),
    [
        ({}, False, []),
        ({"Origin": "AWS_CLOUDHSM"}, False, []),
        ({"Origin": "EXTERNAL", "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE"}, True, []),
        (
            {"Origin": "EXTERNAL", "ExpirationModel": "KEY_MATERIAL_EXPIRES", "ValidTo": 1.8e9},
            True,
            ["expires at 2027-01-15"],
        ),
        ({"KeyState": "Disabled"}, False, ["state is Disabled"]),
        ({"KeySpec": "HMAC_512"}, False, ["not a key of spec HMAC_256"]),
        ({"KeyUsage": "ENCRYPT_DECRYPT"}, False, ["not a key of spec"]),
        ({"MultiRegion": True}, False, ["multi-Region"]),
    ],
)
async def test_a_description_says_what_may_go_wrong(
    stub: KmsStub,
    key: AwsKmsMasterKey,
    change: dict[str, Any],
    imported: bool,
    warnings: list[str],
) -> None:
    stub.answers["DescribeKey"] = {"KeyMetadata": METADATA | change}
    description = await key.describe()
    assert (description.provider, description.location) == ("awskms", URI.location)
    assert (description.exportable, description.automatic_rotation) == (False, False)
    assert description.imported is imported
    assert len(description.warnings) == len(warnings)
    for said, expected in zip(description.warnings, warnings, strict=True):
        assert expected in said


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        (None, False),
        ("https://kms.example.com", False),
        ("http://127.0.0.1:4566", False),
        ("http://[::1]:4566", False),
        ("http://kms.example.com", True),
    ],
)
async def test_an_endpoint_without_tls_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, url: str | None, warned: bool
) -> None:
    """The KEKs come over this connection."""
    key = AwsKmsMasterKey(URI, KmsSettings(aws_kms_endpoint_url=url))

    async def described(*_: object) -> dict[str, Any]:
        return {"KeyMetadata": METADATA}

    monkeypatch.setattr("keyturn_workers.master_keys.aws_client.AwsKmsClient.call", described)
    warnings = (await key.describe()).warnings
    assert (warnings == ("the endpoint is http: the network can read the KEKs",)) is warned


@pytest.mark.parametrize("metadata", [None, {}, {"Arn": "another"}, "x"])
async def test_a_description_of_another_key_is_refused(
    stub: KmsStub, key: AwsKmsMasterKey, metadata: object
) -> None:
    stub.answers["DescribeKey"] = {"KeyMetadata": metadata}
    with pytest.raises(KmsUnavailableError):
        await key.describe()


WRAPPING_KEY = rsa.generate_private_key(65537, 4096)


def _importable(
    stub: KmsStub,
    wrapping: rsa.RSAPrivateKey = WRAPPING_KEY,
    change: dict[str, str] | None = None,
) -> None:
    metadata = METADATA | {"Origin": "EXTERNAL", "KeyState": "PendingImport"} | (change or {})
    public = wrapping.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    stub.answers |= {
        "DescribeKey": {"KeyMetadata": metadata},
        "GetParametersForImport": {
            "KeyId": ARN,
            "ImportToken": base64.b64encode(b"token").decode(),
            "PublicKey": base64.b64encode(public).decode(),
        },
        "ImportKeyMaterial": {},
    }


async def test_an_import_wraps_the_prk_for_aws_alone(stub: KmsStub) -> None:
    _importable(stub)
    await import_prk(URI, stub.settings(), PRK)
    assert [operation for operation, _ in stub.requests] == [
        "DescribeKey",
        "GetParametersForImport",
        "ImportKeyMaterial",
    ]
    assert stub.requests[1][1] == {
        "KeyId": ARN,
        "WrappingAlgorithm": "RSAES_OAEP_SHA_256",
        "WrappingKeySpec": "RSA_4096",
    }
    parameters = stub.requests[2][1]
    wrapped = base64.b64decode(parameters.pop("EncryptedKeyMaterial"))
    padding = OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
    assert WRAPPING_KEY.decrypt(wrapped, padding) == PRK.reveal()
    assert parameters == {
        "KeyId": ARN,
        "ImportToken": base64.b64encode(b"token").decode(),
        "ExpirationModel": "KEY_MATERIAL_DOES_NOT_EXPIRE",
    }
    assert base64.b64encode(PRK.reveal()).decode() not in json.dumps(stub.requests)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"KeySpec": "HMAC_512"}, "not of spec HMAC_256"),
        ({"KeyUsage": "SIGN_VERIFY"}, "not of spec"),
        ({"Origin": "AWS_KMS"}, "--origin EXTERNAL"),
        ({"KeyState": "Enabled"}, "has key material already"),
        ({"KeyState": "PendingDeletion"}, "cannot take it: PendingDeletion"),
    ],
)
async def test_a_key_that_takes_no_import_is_refused(
    stub: KmsStub, change: dict[str, str], text: str
) -> None:
    _importable(stub, change=change)
    with pytest.raises(ValueError, match=text):
        await import_prk(URI, stub.settings(), PRK)
    assert [operation for operation, _ in stub.requests] == ["DescribeKey"]


@pytest.mark.parametrize("public", ["", "AAAA", None])
async def test_a_public_key_that_is_none_gets_nothing(stub: KmsStub, public: str | None) -> None:
    _importable(stub)
    stub.answers["GetParametersForImport"]["PublicKey"] = public
    with pytest.raises(KmsUnavailableError, match="no 4096-bit RSA wrapping key"):
        await import_prk(URI, stub.settings(), PRK)
    assert "ImportKeyMaterial" not in dict(stub.requests)


async def test_a_short_public_key_gets_nothing(stub: KmsStub) -> None:
    _importable(stub, rsa.generate_private_key(65537, 2048))
    with pytest.raises(KmsUnavailableError, match="no 4096-bit RSA wrapping key"):
        await import_prk(URI, stub.settings(), PRK)
    assert "ImportKeyMaterial" not in dict(stub.requests)


async def test_parameters_for_another_key_are_refused(stub: KmsStub) -> None:
    _importable(stub)
    stub.answers["GetParametersForImport"]["KeyId"] = "another"
    with pytest.raises(KmsUnavailableError, match="for another key"):
        await import_prk(URI, stub.settings(), PRK)


async def test_an_import_that_aws_refuses_says_why(stub: KmsStub) -> None:
    _importable(stub)
    stub.refuse("ImportKeyMaterial", "AccessDeniedException")
    with pytest.raises(KmsUnavailableError, match="not allowed kms:ImportKeyMaterial"):
        await import_prk(URI, stub.settings(), Secret(bytes(32)))

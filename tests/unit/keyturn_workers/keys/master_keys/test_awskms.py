"""A master key in AWS KMS: what HKDF derives, or one clear error, whatever the server answers."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ProfileNotFound,
    ReadTimeoutError,
)
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keyturn.crypto import Secret, admin_kek, admin_kek_info, master_prk
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn_workers.keys.master_keys.awskms import AwsKmsMasterKey, describe_failure, import_prk
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from keyturn_workers.process.settings import KmsSettings
from tests.support.aws_web_identity import use_web_identity
from tests.support.tls_proxy import server_context
from tests.unit.keyturn_workers.keys.master_keys.conftest import credentials
from tests.unit.keyturn_workers.keys.master_keys.fake_servers import ARN, URI
from tools.harness.loopback import loopback_server
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.keyturn_workers.keys.master_keys.fake_servers import KmsStub

MASTER_KEY = bytes(range(32))
PRK = master_prk(MASTER_KEY)
SECRET = "x-amz-security-token:IQoJb3JpZ2luX2VjE"
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
    ("status", "body"),
    [
        *((200, body) for body in (b"", b"[]", b"3", b"null", b"<html>", b"\xff\xfe", b'{"Mac":')),
        *((status, b"<html>") for status in (301, 400, 403, 500)),
        (400, b"[]"),
        (500, b"[" * 100_000),
    ],
)
async def test_whatever_a_proxy_answers_is_one_error(
    stub: KmsStub, key: AwsKmsMasterKey, status: int, body: bytes
) -> None:
    stub.answers["GenerateMac"] = web.Response(body=body, status=status)
    with pytest.raises(KmsUnavailableError) as caught:
        await key.derive(INFO)
    assert str(caught.value).isprintable()


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

    async def described(*_: object, **__: object) -> dict[str, Any]:
        return {"KeyMetadata": METADATA}

    monkeypatch.setattr("keyturn_workers.keys.master_keys.awskms.AwsKmsClient.call", described)
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


# Errors: one line of ours each, which says what to do and repeats nothing.


def _error(code: str, message: str = SECRET, operation: str = "GenerateMac") -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    return ClientError(response, operation)


_STATE = "KMSInvalidStateException"
_ROLE = "AssumeRoleWithWebIdentity"


@pytest.mark.parametrize(
    ("exc", "text", "refused"),
    [
        (_error("AccessDeniedException"), "not allowed kms:GenerateMac on this key", True),
        (_error("DisabledException"), "is disabled", True),
        (_error("NotFoundException"), "does not exist", True),
        (_error("InvalidKeyUsageException"), "not of HMAC_256", True),
        (_error("ExpiredTokenException"), "credentials are expired", True),
        (_error("UnrecognizedClientException"), "unknown access key", True),
        (_error("InvalidClientTokenId"), "unknown access key", True),
        (_error("InvalidSignatureException"), "wrong secret access key, or this machine's", True),
        (_error(_STATE), "does not allow its use", False),
        (_error(_STATE, f"{SECRET} is pending deletion."), "scheduled for deletion", True),
        (_error(_STATE, f"{SECRET} is pending import."), "no key material", True),
        (_error(_STATE, f"{SECRET} is Disabled."), "is disabled", True),
        # The role that a web identity asks for.
        (_error("AccessDenied", operation=_ROLE), "no temporary credentials for the role", True),
        (_error("Throttling", operation=_ROLE), "no temporary credentials for the role", False),
        # Where credentials come from may be away: that revokes no access.
        (NoCredentialsError(), "no AWS credentials: none are configured", False),
        (ProfileNotFound(profile=SECRET), "no AWS credentials: check AWS_PROFILE", False),
        (SettingsError("AWS_X: not from there"), "AWS_X: not from there", False),
        (_error("ThrottlingException"), "throttling", False),
        (_error("LimitExceededException"), "throttling", False),
        (_error("KeyUnavailableException"), "cannot use the key at the moment", False),
        (_error("KMSInternalException"), "cannot use the key at the moment", False),
        (_error("Something"), "refused the request (status 400)", False),
        (
            ClientError({"Error": {"Code": ["a"], "Message": 3}}, "GenerateMac"),  # type: ignore[typeddict-item]
            "refused the request (status ?)",
            False,
        ),
        (
            EndpointConnectionError(endpoint_url=SECRET),
            "cannot be reached (the connection was lost)",
            False,
        ),
        (
            ReadTimeoutError(endpoint_url=SECRET),
            "cannot be reached (it did not respond in time)",
            False,
        ),
        (OSError(SECRET), "cannot be reached (the connection was lost)", False),
        (ParamValidationError(report=SECRET), "failed (ParamValidationError)", False),
        (ValueError(SECRET), "an unreadable response (ValueError)", False),
    ],
)
def test_a_failure_is_one_line_and_says_whether_access_ended(
    exc: Exception, text: str, refused: bool
) -> None:
    failure = describe_failure(exc, "GenerateMac")
    assert text in failure.detail
    assert SECRET not in failure.detail
    assert failure.detail.isprintable()
    assert isinstance(failure, KmsRefusedError) is refused


# Credentials and connections.


async def _call(key: AwsKmsMasterKey) -> str:
    """Describe the key; the error's text, or nothing."""
    try:
        await key.describe()
    except KmsUnavailableError as exc:
        return exc.detail
    return ""


def _answer(stub: KmsStub) -> None:
    stub.answers["DescribeKey"] = {"KeyMetadata": METADATA}


def _write(path: Path, text: str) -> None:
    path.write_text(text)


async def test_a_request_names_the_key_and_is_signed_by_the_chain(
    stub: KmsStub, key: AwsKmsMasterKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_S3_ACCESS_KEY_ID", "the-buckets")
    _answer(stub)
    assert await _call(key) == ""
    assert stub.requests == [("DescribeKey", {"KeyId": ARN})]
    assert "Credential=FIRST/" in stub.authorizations[0]
    assert "/eu-central-1/kms/" in stub.authorizations[0]


async def test_a_failure_of_the_server_is_sent_once_more_by_botocore(
    stub: KmsStub, key: AwsKmsMasterKey
) -> None:
    stub.refuse("DescribeKey", "KMSInternalException", status=500)
    assert "cannot use the key at the moment" in await _call(key)
    assert len(stub.requests) == 2


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced(
    stub: KmsStub, key: AwsKmsMasterKey
) -> None:
    _answer(stub)
    stub.cut = 1
    assert await _call(key) == ""
    assert len(stub.requests) == 2
    stub.cut = 2
    assert "cannot be reached (the connection was lost)" in await _call(key)
    assert len(stub.requests) == 4


async def test_a_server_that_hangs_or_is_not_there_is_away(stub: KmsStub) -> None:
    for more in ({"kms_timeout_s": 0.1}, {"aws_kms_endpoint_url": "http://127.0.0.1:1"}):
        stub.hanging = True
        key = AwsKmsMasterKey(URI, stub.settings().model_copy(update=more))
        assert "cannot be reached" in await _call(key)
        stub.hanging = False
        await key.aclose()


async def test_after_a_refusal_the_chain_is_read_again(
    stub: KmsStub, key: AwsKmsMasterKey, credentials_file: Path
) -> None:
    for code, credential in (
        ("ExpiredTokenException", "SECOND"),
        ("AccessDeniedException", "THIRD"),
        ("InvalidClientTokenId", "FOURTH"),
    ):
        stub.refuse("DescribeKey", code)
        assert await _call(key)
        _write(credentials_file, credentials(credential))
        _answer(stub)
        assert await _call(key) == ""
        assert f"Credential={credential}/" in stub.authorizations[-1]


async def test_missing_credentials_are_found_once_they_are_there(
    stub: KmsStub, key: AwsKmsMasterKey, credentials_file: Path
) -> None:
    _answer(stub)
    _write(credentials_file, "")
    assert "no AWS credentials" in await _call(key)
    assert stub.requests == []
    _write(credentials_file, credentials("FOUND"))
    assert await _call(key) == ""


async def test_a_refusal_leaves_calls_that_are_on_their_way_alone(
    stub: KmsStub, key: AwsKmsMasterKey
) -> None:
    stub.hanging = True
    slow = asyncio.create_task(_call(key))
    await stub.came.wait()
    stub.hanging = False
    stub.refuse("DescribeKey", "ExpiredTokenException")
    assert await _call(key) == "the AWS credentials are expired"
    assert not slow.done()  # its client is still open
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_a_closed_key_opens_again(stub: KmsStub, key: AwsKmsMasterKey) -> None:
    _answer(stub)
    for _ in range(2):
        assert await _call(key) == ""
        await key.aclose()
        await key.aclose()
    assert len(stub.requests) == 2


@pytest.mark.parametrize("value", [3, "", "a\nb", "x" * 129, "é", None])
async def test_a_request_id_is_a_short_line_or_nothing(
    key: AwsKmsMasterKey, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    async def answered(*_: object, **__: object) -> dict[str, Any]:
        return GOOD | {"Mac": bytes(32), "ResponseMetadata": {"RequestId": value}}

    monkeypatch.setattr("keyturn_workers.keys.master_keys.awskms.AwsKmsClient.call", answered)
    assert (await key.derive(INFO)).request_id is None


@pytest.mark.parametrize("where", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_KMS", "profile"])
async def test_only_our_own_setting_names_another_server_than_the_regions(
    stub: KmsStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """AWS_ENDPOINT_URL is often that of an S3 server."""
    if where == "profile":
        file = tmp_path / "config"
        file.write_text(f"[default]\nendpoint_url = {stub.url}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    else:
        monkeypatch.setenv(where, stub.url)
    _answer(stub)
    asked_for: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked_for.append(await reader.readline())
        writer.close()

    async with loopback_server(serve) as proxy_url:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, proxy_url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        key = AwsKmsMasterKey(URI, KmsSettings(kms_timeout_s=2))
        assert "cannot be reached" in await _call(key)
        await key.aclose()
    assert stub.requests == []
    assert asked_for[0] == b"CONNECT kms.eu-central-1.amazonaws.com:443 HTTP/1.1\r\n"


async def test_credentials_of_a_server_of_another_name_are_not_asked_for(
    key: AwsKmsMasterKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token of a web identity is not sent to a server with just any certificate."""
    authority = Authority(tmp_path)
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.read(1))
        writer.close()

    context = server_context(authority.issue("server", ("other.example",)))
    async with loopback_server(serve, tls=context) as url:
        use_web_identity(monkeypatch, tmp_path, url, authority.ca)
        assert "its certificate is for another host" in await _call(key)
    assert heads == []

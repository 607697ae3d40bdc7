"""Calls to AWS KMS: bounded in time, sent once, with the credentials of the standard chain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.aws_client import AwsKmsClient, request_id
from keyturn_workers.master_keys.backoff import RefusalBackoff
from keyturn_workers.master_keys.port import KmsRefusedError
from tests.support.aws_web_identity import use_web_identity
from tests.support.tls_proxy import server_context
from tests.unit.keyturn_workers.master_keys.conftest import credentials
from tests.unit.keyturn_workers.master_keys.kms_stub import ARN, URI
from tools.harness.loopback_server import loopback_server
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.unit.keyturn_workers.master_keys.kms_stub import KmsStub


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(stub: KmsStub, clock: Clock) -> AsyncIterator[AwsKmsClient]:
    made = AwsKmsClient(URI, stub.settings(), backoff=RefusalBackoff(clock))
    stub.answers["DescribeKey"] = {"KeyMetadata": {"KeyId": "x"}}
    yield made
    await made.aclose()


async def _call(client: AwsKmsClient) -> str:
    """Describe the key; the error's text, or nothing."""
    try:
        await client.call("DescribeKey", "describe_key")
    except KmsUnavailableError as exc:
        return exc.detail
    return ""


def _write(path: Path, text: str) -> None:
    path.write_text(text)


async def test_a_request_names_the_key_and_is_signed_by_the_chain(
    stub: KmsStub, client: AwsKmsClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYTURN_S3_ACCESS_KEY_ID", "the-buckets")
    answer = await client.call("DescribeKey", "describe_key")
    assert answer["KeyMetadata"] == {"KeyId": "x"}
    assert request_id(answer) == "11111111-2222-3333-4444-555555555555"
    assert stub.requests == [("DescribeKey", {"KeyId": ARN})]
    assert "Credential=FIRST/" in stub.authorizations[0]
    assert "/eu-central-1/kms/" in stub.authorizations[0]


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("code", ["KMSInternalException", "ThrottlingException"])
async def test_a_failure_is_not_sent_again(
    stub: KmsStub, client: AwsKmsClient, code: str, status: int
) -> None:
    stub.refuse("DescribeKey", code, status=status)
    assert await _call(client)
    assert len(stub.requests) == 1


async def test_the_time_limit_bounds_the_whole_call(stub: KmsStub) -> None:
    stub.hanging = True
    client = AwsKmsClient(URI, stub.settings(kms_timeout_s=0.3))
    text = await _call(client)
    assert "0.3 s" in text or "ReadTimeout" in text
    stub.hanging = False
    stub.answers["DescribeKey"] = {}
    assert await _call(client) == ""
    await client.aclose()


async def test_nobody_listens(stub: KmsStub) -> None:
    nobody = stub.settings().model_copy(update={"aws_kms_endpoint_url": "http://127.0.0.1:1"})
    client = AwsKmsClient(URI, nobody)
    assert "cannot be reached" in await _call(client)
    await client.aclose()


async def test_refused_credentials_are_not_sent_again_before_their_time(
    stub: KmsStub, client: AwsKmsClient, clock: Clock
) -> None:
    stub.refuse("DescribeKey", "ExpiredTokenException")
    assert await _call(client) == "the AWS credentials are expired"
    for _ in range(50):
        assert "expired; next attempt in" in await _call(client)
    assert len(stub.requests) == 1
    clock.now += 1
    assert await _call(client) == "the AWS credentials are expired"
    assert len(stub.requests) == 2


async def test_the_next_attempt_reads_the_chain_again(
    stub: KmsStub, client: AwsKmsClient, clock: Clock, credentials_file: Path
) -> None:
    stub.refuse("DescribeKey", "ExpiredTokenException")
    await _call(client)
    _write(credentials_file, credentials("SECOND"))
    stub.answers["DescribeKey"] = {}
    clock.now += 1
    assert await _call(client) == ""
    assert "Credential=SECOND/" in stub.authorizations[-1]
    assert await _call(client) == ""


async def test_missing_credentials_are_found_once_they_are_there(
    stub: KmsStub, client: AwsKmsClient, clock: Clock, credentials_file: Path
) -> None:
    _write(credentials_file, "")
    assert "no AWS credentials" in await _call(client)
    assert stub.requests == []
    _write(credentials_file, credentials("FOUND"))
    clock.now += 1
    assert await _call(client) == ""


async def test_denied_access_backs_off_too(
    stub: KmsStub, client: AwsKmsClient, clock: Clock
) -> None:
    stub.refuse("DescribeKey", "AccessDeniedException")
    assert "not allowed kms:DescribeKey" in await _call(client)
    assert "next attempt" in await _call(client)
    stub.answers["DescribeKey"] = {}
    clock.now += 1
    assert await _call(client) == ""
    assert await _call(client) == ""


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("AccessDeniedException", KmsRefusedError),
        ("ExpiredTokenException", KmsRefusedError),
        ("DisabledException", KmsRefusedError),
        ("ThrottlingException", KmsUnavailableError),
        ("KMSInternalException", KmsUnavailableError),
    ],
)
async def test_access_that_ended_is_told_from_a_server_that_fails(
    stub: KmsStub, client: AwsKmsClient, code: str, kind: type[Exception]
) -> None:
    stub.refuse("DescribeKey", code)
    for _ in range(2):  # the second one, of some, without a request
        with pytest.raises(KmsUnavailableError) as caught:
            await client.call("DescribeKey", "describe_key")
        assert type(caught.value) is kind


async def test_a_refusal_leaves_calls_that_are_on_their_way_alone(
    stub: KmsStub, client: AwsKmsClient
) -> None:
    stub.hanging = True
    slow = asyncio.create_task(_call(client))
    await stub.came.wait()
    stub.hanging = False
    stub.refuse("DescribeKey", "ExpiredTokenException")
    assert await _call(client) == "the AWS credentials are expired"
    assert not slow.done()  # its client is still open
    slow.cancel()
    with pytest.raises(asyncio.CancelledError):
        await slow


async def test_a_connection_that_the_server_closed_meanwhile_is_replaced(
    stub: KmsStub, client: AwsKmsClient
) -> None:
    stub.cut = 1
    assert await _call(client) == ""
    assert len(stub.requests) == 2
    stub.cut = 2
    assert "cannot be reached (ConnectionClosedError)" in await _call(client)
    assert len(stub.requests) == 4


async def test_a_closed_client_opens_again(stub: KmsStub, client: AwsKmsClient) -> None:
    assert await _call(client) == ""
    await client.aclose()
    await client.aclose()
    assert await _call(client) == ""
    assert len(stub.requests) == 2


@pytest.mark.parametrize(
    "metadata",
    [{}, None, [], {"RequestId": 3}, {"RequestId": ""}, {"RequestId": "a\nb"},
     {"RequestId": "x" * 129}, {"RequestId": "é"}],
)  # fmt: skip
def test_a_request_id_is_a_short_line_or_nothing(metadata: object) -> None:
    assert request_id({"ResponseMetadata": metadata}) is None


async def test_credentials_of_a_server_of_another_name_are_not_asked_for(
    client: AwsKmsClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        assert "SSLError" in await _call(client)
    assert heads == []

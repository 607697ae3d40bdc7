"""The S3 client of `keyturn.s3`: its settings, and the verified name of its server (SPEC 11)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)

from keyturn import s3
from keyturn.errors import SettingsError
from keyturn.publisher import Publisher
from keyturn.s3 import VerifyingSession, new_session, open_client, verified_sessions
from keyturn.settings import S3Settings
from keyturn.tls import STORAGE, client_context, describe_tls_failure
from tests.support.aws_web_identity import use_web_identity
from tests.support.tls_proxy import server_context
from tests.unit.keyturn.publisher.test_requests import SETTINGS
from tools.harness.loopback import loopback_server
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator
    from pathlib import Path


def settings(**values: str) -> S3Settings:
    return S3Settings.model_validate(
        {
            "s3_bucket": "bucket",
            "s3_access_key_id": "AKID",
            "s3_secret_access_key": "s3cr3t",
            **values,
        }
    )


async def test_tuned() -> None:
    """For servers that are not AWS: no trailing checksums, paths, nothing resent."""
    private = settings(s3_endpoint_url="http://127.0.0.1:1", s3_region="eu-west-1")
    async with open_client(private, max_connections=7) as client:
        config = client.meta.config
        assert client.meta.endpoint_url == "http://127.0.0.1:1"
        assert client.meta.region_name == "eu-west-1"
        assert config.request_checksum_calculation == "when_required"  # type: ignore[attr-defined]
        assert config.response_checksum_validation == "when_required"  # type: ignore[attr-defined]
        assert config.retries["total_max_attempts"] == 1  # type: ignore[attr-defined]
        assert config.max_pool_connections == 7  # type: ignore[attr-defined]
        assert config.s3["addressing_style"] == "path"  # type: ignore[attr-defined]


async def test_retries_are_a_choice() -> None:
    """For staging, where a put may be repeated without harm."""
    async with open_client(settings(), max_connections=1, total_max_attempts=4) as client:
        assert client.meta.config.retries["total_max_attempts"] == 4  # type: ignore[attr-defined]


async def test_without_aioboto3_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aioboto3", None)
    monkeypatch.delitem(sys.modules, "keyturn.s3")
    with pytest.raises(SettingsError, match=r"keyturn\[staging\]"):
        async with Publisher.open(SETTINGS, s3=settings(), connect=False):
            pass


def test_loggers_of_other_libraries_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """What botocore may log is for the host process to decide (`keyturn_workers` does)."""
    names = ("botocore", "aiobotocore", "boto3", "aioboto3")
    for name in names:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.DEBUG)
    new_session(settings())
    assert [logging.getLogger(name).level for name in names] == [logging.DEBUG] * 4


# Verified sessions: botocore's clients verify the server's name, which aiobotocore alone does not.


_LISTING = b"<ListBucketResult><Name>b</Name><KeyCount>0</KeyCount></ListBucketResult>"
_OK = b"HTTP/1.1 200 OK\r\nx-amz-request-id: 7\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_LISTING),
    _LISTING,
)
_REDIRECT = b"HTTP/1.1 307 x\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n"


@asynccontextmanager
async def _serving(
    authority: Authority, hosts: tuple[str, ...], answer: bytes = _OK, *, first: bytes | None = None
) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that gives one answer to everything; the port, and the heads that it got."""
    heads: list[bytes] = []
    context = server_context(authority.issue("server", hosts))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                heads.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(first if first is not None and len(heads) == 1 else answer)
                if not answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async with loopback_server(serve, tls=context) as url:
        yield int(url.rpartition(":")[2]), heads


async def _list(url: str, tls: ssl.SSLContext | None = None, **more: Any) -> Any:
    config = AioConfig(
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        **{"http_session_cls": verified_sessions(tls)} | more,
    )
    async with AioSession().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=url,
        config=config,
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    ) as client:
        return await client.list_objects_v2(Bucket="b")


async def test_a_server_of_the_right_name_is_spoken_to(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = client_context(STORAGE, authority.ca)
    async with _serving(authority, ("localhost",)) as (port, heads):
        found = await _list(f"https://localhost:{port}", trusting)
        assert found["KeyCount"] == 0
        assert found["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"] == "7"
    assert heads[0].startswith(b"GET /b?list-type=2")
    assert b"\r\nAuthorization: AWS4-HMAC-SHA256 " in heads[0]


async def test_a_server_of_another_name_is_not(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = client_context(STORAGE, authority.ca)
    async with _serving(authority, ("other.example",)) as (port, heads):
        with pytest.raises(SSLError) as refused:
            await _list(f"https://localhost:{port}", trusting)
    assert heads == []
    assert describe_tls_failure(refused.value, STORAGE) == (
        "its certificate is for another host than the one in KEYTURN_S3_ENDPOINT_URL"
    )


async def test_without_this_session_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: aiobotocore's own session. If it refuses one day, ours may go."""
    authority = Authority(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca))
    async with _serving(authority, ("other.example",)) as (port, heads):
        await _list(f"https://localhost:{port}", http_session_cls=AIOHTTPSession)
    assert len(heads) == 1


@pytest.mark.slow
async def test_an_authority_of_the_environment_still_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    async with _serving(authority, ("localhost",)) as (port, heads):
        with pytest.raises(SSLError):
            await _list(f"https://localhost:{port}")
        monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.ca))
        assert (await _list(f"https://localhost:{port}"))["KeyCount"] == 0
    assert len(heads) == 1


@pytest.mark.slow
async def test_failures_are_those_that_botocore_tells_apart(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = client_context(STORAGE, authority.ca)
    with pytest.raises(EndpointConnectionError):
        await _list("https://localhost:1", trusting)
    async with _serving(authority, ("localhost",), b"") as (port, _):
        with pytest.raises(ConnectionClosedError):
            await _list(f"https://localhost:{port}", trusting)
    async with _serving(authority, ("localhost",), b"HTTP/1.1 200 OK\r\n") as (port, _):
        with pytest.raises(ReadTimeoutError):
            await _list(f"https://localhost:{port}", trusting, read_timeout=0.2)


async def test_a_redirect_is_not_followed_with_the_same_signature(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = client_context(STORAGE, authority.ca)
    async with _serving(authority, ("localhost",), first=_REDIRECT) as (port, heads):
        with suppress(BotoCoreError, ClientError):
            await _list(f"https://localhost:{port}", trusting)
    # botocore itself asks where the bucket is, and signs that.
    assert heads[1].startswith(b"HEAD /b ")
    assert not [head for head in heads if b"/elsewhere" in head]


_CREDENTIALS = (
    b"<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>"
    b"<AccessKeyId>FROMSTS</AccessKeyId><SecretAccessKey>s</SecretAccessKey>"
    b"<SessionToken>t</SessionToken><Expiration>2100-01-01T00:00:00Z</Expiration></Credentials>"
    b"</AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
)
_STS = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_CREDENTIALS),
    _CREDENTIALS,
)


async def _credentials_of_storage(**keys: Any) -> str:
    """The access key that a storage client uses: from AWS's chain, or from the settings."""
    settings = S3Settings(s3_bucket="bucket", s3_region="us-east-1", **keys)
    async with open_client(settings, max_connections=1) as client:
        url = await client.generate_presigned_url("get_object", Params={"Bucket": "b", "Key": "k"})
    return url.partition("X-Amz-Credential=")[2].partition("%2F")[0]


@pytest.mark.slow
async def test_credentials_come_from_a_server_of_the_right_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    async with _serving(authority, ("localhost",), _STS) as (port, heads):
        use_web_identity(monkeypatch, tmp_path, f"https://localhost:{port}", authority.ca)
        assert await _credentials_of_storage() == "FROMSTS"
    assert len(heads) == 1


async def test_credentials_of_a_server_of_another_name_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    async with _serving(authority, ("other.example",), _STS) as (port, heads):
        use_web_identity(monkeypatch, tmp_path, f"https://localhost:{port}", authority.ca)
        with pytest.raises(SSLError):
            await _credentials_of_storage()
    assert heads == []


_FULL = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
_RELATIVE = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
_INSTANCE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
_DISABLED = "AWS_EC2_METADATA_DISABLED"
_CONTAINER = (
    b'{"AccessKeyId": "FROMCONTAINER", "SecretAccessKey": "s", "Token": "t",'
    b' "Expiration": "2100-01-01T00:00:00Z"}'
)
_METADATA = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s" % (
    len(_CONTAINER),
    _CONTAINER,
)


def _use_metadata(monkeypatch: pytest.MonkeyPatch, directory: Path, **given: str) -> None:
    """Leave AWS's chain only container and instance credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    files = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    for name, file in files.items():
        monkeypatch.setenv(name, str(directory / file))
    for name, value in given.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        (_FULL, "https://169.254.170.23/v1/credentials"),
        (_FULL, "HTTPS://[fd00:ec2::23]/v1/credentials"),
        (_INSTANCE, "https://metadata.example"),
    ],
)
async def test_credentials_are_not_taken_where_the_name_is_not_verified(
    name: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The HTTP session with which aiobotocore fetches these cannot be replaced."""
    _use_metadata(monkeypatch, tmp_path, **{name: url})
    with pytest.raises(SettingsError, match=f"^{name}: .* name .* not be verified$"):
        await _credentials_of_storage()
    with pytest.raises(SettingsError, match=name):
        await VerifyingSession().get_credentials()
    # With keys in the settings, the chain is not used.
    keys = {"s3_access_key_id": "OWN", "s3_secret_access_key": "secret"}
    assert await _credentials_of_storage(**keys) == "OWN"


async def test_a_malformed_endpoint_of_credentials_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_metadata(monkeypatch, tmp_path, **{_FULL: "https://[fd00:ec2"})
    with pytest.raises(SettingsError, match=f"^{_FULL}: this is not a URL$"):
        await _credentials_of_storage()


async def test_an_endpoint_of_instances_in_a_file_counts_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text(
        "[default]\nec2_metadata_service_endpoint = https://metadata.example\n"
    )
    _use_metadata(monkeypatch, tmp_path)
    with pytest.raises(SettingsError, match=_INSTANCE):
        await VerifyingSession().get_credentials()


async def test_credentials_of_a_container_come_from_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_METADATA)
        writer.close()

    async with loopback_server(serve) as url:
        _use_metadata(monkeypatch, tmp_path, **{_FULL: url, _DISABLED: "true"})
        assert await _credentials_of_storage() == "FROMCONTAINER"


@pytest.mark.parametrize(
    "given",
    [
        {_FULL: "http://169.254.170.23/v1/credentials"},
        {_FULL: "https://127.0.0.1/credentials"},
        {_FULL: "https://[::1]/credentials"},
        {_FULL: "https://localhost/credentials"},
        {_RELATIVE: "/credentials", _FULL: "https://169.254.170.23/not-used"},
        {_INSTANCE: "http://metadata.example"},
        {_INSTANCE: "https://metadata.example", _DISABLED: "true"},
    ],
    ids=str,
)
def test_other_servers_of_credentials_are_allowed(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AWS's own speak plain HTTP, and a server on this machine could read its files anyway."""
    _use_metadata(monkeypatch, tmp_path, **given)
    s3._check_metadata_servers(given.get(_INSTANCE))


@pytest.mark.parametrize(
    "config",
    [None, Config(signature_version=UNSIGNED), AioConfig(signature_version=UNSIGNED)],
    ids=["none", "botocore", "aiobotocore"],
)
async def test_every_client_of_the_session_verifies_the_name(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain makes its clients with each of these; SSO's with a configuration of botocore."""
    authority = Authority(tmp_path)
    async with _serving(authority, ("other.example",)) as (port, heads):
        url = f"https://localhost:{port}"
        use_web_identity(monkeypatch, tmp_path, url, authority.ca)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", url)
        async with VerifyingSession().create_client(
            "sso",
            region_name="us-east-1",
            config=config,
            aws_access_key_id="id",
            aws_secret_access_key="secret",
        ) as client:
            with pytest.raises(SSLError):
                await client.get_role_credentials(
                    roleName="r", accountId="000000000000", accessToken="t"
                )
    assert heads == []
    # The caller's is left as it was.
    assert getattr(config, "http_session_cls", AIOHTTPSession) is AIOHTTPSession


async def test_what_the_caller_chose_stays() -> None:
    """A class of sessions, and botocore's own one for an endpoint without TLS."""
    chosen = verified_sessions()
    async with VerifyingSession().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:1",
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    ) as plain:
        assert isinstance(plain._endpoint.http_session, AIOHTTPSession)
    async with VerifyingSession().create_client(
        "s3",
        region_name="us-east-1",
        config=AioConfig(http_session_cls=chosen, connect_timeout=7),
        aws_access_key_id="id",
        aws_secret_access_key="secret",
    ) as given:
        assert not isinstance(given._endpoint.http_session, AIOHTTPSession)
        assert given.meta.config.connect_timeout == 7

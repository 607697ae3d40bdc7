"""Where the broker is: one context for TLS, and refusals of a type of their own (SPEC 11)."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, suppress
from socket import gaierror
from typing import TYPE_CHECKING

import aio_pika
import pytest
from aio_pika.exceptions import (
    AMQPConnectionError,
    AMQPException,
    AuthenticationError,
    ChannelClosed,
    ChannelNotFoundEntity,
    ConnectionClosed,
    InvalidFrameError,
    ProbableAuthenticationError,
)
from aiormq.exceptions import ChannelAccessRefused
from pamqp.commands import Connection
from pydantic import SecretStr

from keyturn.errors import BrokerTlsError, BrokerUnavailableError, SettingsError
from keyturn.publisher.connection import (
    BrokerAddress,
    BrokerConnection,
    connect_to_broker,
    describe_broker_failure,
)
from keyturn.settings import DeploymentSettings
from tests.support.tls_proxy import server_context
from tools.harness.loopback_server import loopback_server
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator
    from pathlib import Path

_PASSWORD = "canary-password"
_VHOST_REFUSED = (
    "it refuses the vhost in KEYTURN_AMQP_URL: check its name, the user's permissions there, "
    "and its connection limits"
)
_REFUSED = "connection refused: check the host and port in KEYTURN_AMQP_URL, and that it is running"
_UNRESOLVED = "its host name cannot be resolved: check KEYTURN_AMQP_URL"


def _settings(url: str, **files: Path) -> DeploymentSettings:
    return DeploymentSettings(amqp_url=SecretStr(url), **files)  # type: ignore[arg-type]


def _because_of(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@asynccontextmanager
async def _listening(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server that hangs up on every request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            await reader.read(8)
        writer.close()

    async with loopback_server(serve, tls=context) as url:
        yield int(url.rpartition(":")[2])


def test_no_context_without_tls(tmp_path: Path) -> None:
    assert BrokerAddress.of(_settings("amqp://h/")).tls is None
    ca = Authority(tmp_path).ca
    found = BrokerAddress.of(_settings("amqps://h/", amqp_ca_file=ca))
    assert found.tls is not None
    assert found.tls.verify_mode is ssl.CERT_REQUIRED
    assert _PASSWORD not in repr(BrokerAddress.of(_settings(f"amqp://u:{_PASSWORD}@h/")))


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    settings = _settings("amqps://h/", amqp_ca_file=tmp_path / "missing")
    with pytest.raises(SettingsError, match=r"^KEYTURN_AMQP_CA_FILE cannot be read"):
        BrokerAddress.of(settings)


async def test_a_certificate_of_another_authority_has_a_type_and_a_line(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    async with _listening(server_context(stranger.issue())) as port:
        url = f"amqps://u:{_PASSWORD}@localhost:{port}/"
        address = BrokerAddress.of(_settings(url, amqp_ca_file=authority.ca))
        with pytest.raises(BrokerTlsError, match="unknown authority") as refused:
            await connect_to_broker(address)
        assert isinstance(refused.value, ConnectionError), "what retries a loss retries this"
        connection = BrokerConnection(address, publish_timeout_s=5)
        with pytest.raises(BrokerTlsError) as again:
            await connection.connect()
    assert str(again.value) == (
        "the broker cannot be reached (its certificate is from an unknown authority: check "
        "KEYTURN_AMQP_CA_FILE)"
    )


# From aio-pika, if a connection is lost while it is being established.
@pytest.mark.filterwarnings("ignore:coroutine 'Connection.close' was never awaited")
async def test_a_broker_that_is_away_is_not_a_failure_of_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with _listening(server_context(authority.issue())) as port:
        url = f"amqps://u:{_PASSWORD}@localhost:{port}/"
        address = BrokerAddress.of(_settings(url, amqp_ca_file=authority.ca))
        with pytest.raises((AMQPException, OSError)) as lost:
            await connect_to_broker(address)
        assert not isinstance(lost.value, BrokerTlsError)
    connection = BrokerConnection("amqps://localhost:1/", publish_timeout_s=5)
    with pytest.raises(BrokerUnavailableError) as away:
        await connection.connect()
    assert not isinstance(away.value, BrokerTlsError)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (
            ProbableAuthenticationError("ACCESS_REFUSED - Login was refused using …"),
            "it refuses the user name or password in KEYTURN_AMQP_URL",
        ),
        (
            AuthenticationError("EXTERNAL", ["PLAIN"]),
            "it does not accept password logins",
        ),
        (ConnectionClosed(530, "NOT_ALLOWED - vhost canary not found"), _VHOST_REFUSED),
        (ConnectionClosed(541, "INTERNAL_ERROR - vhost 'canary' is down"), _VHOST_REFUSED),
        (InvalidFrameError(f"Expected OpenOk, got {Connection.Close()!r}"), _VHOST_REFUSED),
        (
            InvalidFrameError("canary"),
            "its response is not valid AMQP: check KEYTURN_AMQP_URL",
        ),
        (ConnectionClosed(320, "CONNECTION_FORCED - canary not found"), "the connection was lost"),
        (ConnectionClosed(), "the connection was lost"),
        (ConnectionRefusedError(111, "canary"), _REFUSED),
        (AMQPConnectionError(111, "Connect call failed ('canary', 1)"), _REFUSED),
        (_because_of(AMQPConnectionError(-2, "canary"), gaierror(-2, "canary")), _UNRESOLVED),
        (
            _because_of(AMQPConnectionError("canary"), OSError(113, "canary")),
            "there is no route to its host: check the network, and the host in KEYTURN_AMQP_URL",
        ),
        (TimeoutError(), "it did not respond in time"),
        (ConnectionError("canary"), "the connection was lost"),
        (
            ChannelAccessRefused("ACCESS_REFUSED - canary"),
            "it refuses access: check the permissions of the user in KEYTURN_AMQP_URL",
        ),
        (
            ChannelNotFoundEntity("NOT_FOUND - canary"),
            "a queue, stream or exchange does not exist: start a worker, which declares them",
        ),
        (ChannelClosed("canary"), "it closed the connection or a channel"),
    ],
)
def test_a_refusal_is_described_with_the_setting_and_without_names(
    error: Exception, meaning: str
) -> None:
    assert describe_broker_failure(error) == meaning


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("127.0.0.1:1", _REFUSED),
        ("localhost:1", _REFUSED),  # often two addresses
    ],
    ids=["address", "name"],
)
async def test_a_broker_that_cannot_be_reached_is_described_in_words(
    host: str, problem: str
) -> None:
    connection = BrokerConnection(f"amqp://u:{_PASSWORD}@{host}/", publish_timeout_s=20)
    with pytest.raises(BrokerUnavailableError) as away:
        await connection.connect()
    assert str(away.value) == f"the broker cannot be reached ({problem})"


async def test_a_refused_vhost_is_not_an_undecodable_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise a stream reader would skip messages because of it."""

    async def connect(*_: object, **__: object) -> None:
        raise InvalidFrameError(f"Expected OpenOk, got {Connection.Close()!r}")

    monkeypatch.setattr(aio_pika, "connect", connect)
    with pytest.raises(ConnectionError) as refused:
        await connect_to_broker("amqp://localhost/")
    assert not isinstance(refused.value, InvalidFrameError)
    assert describe_broker_failure(refused.value) == _VHOST_REFUSED

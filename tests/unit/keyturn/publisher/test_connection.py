"""A broker that cannot be reached has one type and one line, whoever reports it (SPEC 11)."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from socket import gaierror
from typing import TYPE_CHECKING, Self

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
from pamqp import commands, frame
from pamqp.commands import Connection
from pydantic import SecretStr

from keyturn.errors import (
    BrokerTlsError,
    BrokerUnavailableError,
    NotDeliveredError,
    OutcomeUnknownError,
    SettingsError,
)
from keyturn.publisher.connection import (
    BrokerAddress,
    BrokerConnection,
    connect_to_broker,
    describe_broker_failure,
    normalize_connection_errors,
    persistent_json,
)
from keyturn.settings import DeploymentSettings
from keyturn_workers.pipeline.amqp.declarations import declare
from tests.support.tls_proxy import server_context
from tools.harness.loopback import loopback_server
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aio_pika import Message


# Which of its errors the client library raises is a matter of a moment.
_TRIES = 30
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


# Lost connections.


def test_a_stop_of_nothing_is_a_loss() -> None:
    with pytest.raises(ConnectionError), normalize_connection_errors():
        raise StopAsyncIteration


async def test_a_future_that_a_lost_connection_cancels_is_a_loss() -> None:
    """When a heartbeat fails, aiormq cancels its futures; nothing canceled this task."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    with pytest.raises(ConnectionError), normalize_connection_errors():
        await future


async def test_a_cancellation_of_the_task_stays_one() -> None:
    async def wait() -> None:
        with normalize_connection_errors():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_refusal_of_another_publish_leaves_the_outcome_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker closes the channel for one, and the client library fails every other on it.

    Reported as not delivered, a staged body would be deleted whose request is on its queue.
    """
    refuse = asyncio.Event()

    async def send(*_: object) -> None:
        await refuse.wait()
        raise ChannelAccessRefused("ACCESS_REFUSED")

    async def open_channel(_: float) -> object:
        return object()

    monkeypatch.setattr("keyturn.publisher.connection._send", send)
    broker = BrokerConnection("amqp://127.0.0.1:1/", publish_timeout_s=5)
    monkeypatch.setattr(broker, "_publishing_channel", open_channel)
    messages = [persistent_json(b"{}", f"id-{number}", {}) for number in range(3)]
    both = [
        asyncio.create_task(broker.publish("upload.requested", message)) for message in messages[:2]
    ]
    await asyncio.sleep(0.01)
    refuse.set()
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError] * 2
    with pytest.raises(NotDeliveredError, match="may not write"):
        await broker.publish("upload.requested", messages[2])
    await broker.close()


@asynccontextmanager
async def _hanging_up() -> AsyncIterator[str]:
    """The address of a server that sends a broker's first frame, and then hangs up."""

    async def say_and_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        start = commands.Connection.Start(0, 9, {}, "PLAIN", "en_US")
        writer.write(frame.marshal(start, 0))
        writer.close()
        await writer.wait_closed()

    async with loopback_server(say_and_go) as url:
        yield url.replace("http://", "amqp://guest:guest@") + "/"


async def test_a_broker_that_hangs_up_in_the_handshake_is_unavailable() -> None:
    """The client library raises StopAsyncIteration there, which is not an error."""
    async with _hanging_up() as url:
        link = BrokerConnection(url, publish_timeout_s=5)
        for _ in range(_TRIES):
            with pytest.raises(BrokerUnavailableError):
                await link.connect()
        await link.close()


async def test_a_worker_gets_an_error_of_a_broker_that_hangs_up() -> None:
    """A retry that stopped in silence there ended a starting worker."""
    async with _hanging_up() as url:
        for _ in range(_TRIES):
            with pytest.raises((OSError, AMQPException)):
                await declare(url)


class _FakeBroker:
    """A connection, its channel and its exchange; notes what is published."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.published: list[str | None] = []
        self.connected = asyncio.Event()
        self.connected.set()
        self.is_closed = False

    async def connect(self, _url: str, **__: object) -> Self:
        await asyncio.sleep(0)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError
        return self

    def channel(self, **_: object) -> Self:
        return self

    async def initialize(self) -> None:
        await asyncio.sleep(0)

    async def get_exchange(self, *_: object, **__: object) -> Self:
        return self

    async def publish(self, message: Message, *_: object, **__: object) -> None:
        self.published.append(message.message_id)
        await asyncio.sleep(0)

    async def close(self) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b"])
async def test_a_host_name_that_no_resolver_takes_is_a_connection_that_failed(host: str) -> None:
    with pytest.raises(ConnectionError) as error:
        await connect_to_broker(f"amqp://kim:canary@{host}/")
    assert describe_broker_failure(error.value) == (
        "its host name cannot be resolved: check KEYTURN_AMQP_URL"
    )


async def test_what_waits_for_the_broker_is_published_in_the_order_in_which_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records of an audit trail would otherwise seem to be missing, or to have been moved."""
    broker = _FakeBroker(refusals=10)
    monkeypatch.setattr("keyturn.publisher.connection.aio_pika.connect", broker.connect)
    monkeypatch.setattr("keyturn.publisher.connection._RECONNECT_PAUSES_S", (0.001, 0.002))
    connection = BrokerConnection("amqp://127.0.0.1:1/", publish_timeout_s=5)
    ids = [str(number) for number in range(8)]
    await asyncio.gather(
        *(connection.publish("audit.recorded", persistent_json(b"{}", id_, {})) for id_ in ids)
    )
    await connection.close()
    assert broker.published == ids

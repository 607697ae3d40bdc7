"""Each way in which a real handshake fails is one line that names what to change (SPEC 11)."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import aio_pika
import aiohttp
import pytest
from aio_pika.exceptions import AMQPException

from keyturn.tls import BROKER, STORAGE, client_context, describe_tls_failure
from tests.support.tls_proxy import server_context, tls_proxy
from tools.harness.loopback_server import loopback_server
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

_UNKNOWN: Final = "its certificate is from an unknown authority: check KEYTURN_AMQP_CA_FILE"
_REQUIRED: Final = (
    "it requires a client certificate: set KEYTURN_AMQP_CERT_FILE and KEYTURN_AMQP_KEY_FILE"
)


def _server(authority: Authority, *, from_h: float = -1, to_h: float = 1) -> ssl.SSLContext:
    return server_context(authority.issue("server", ("localhost",), from_h=from_h, to_h=to_h))


def _requiring(authority: Authority, ca: Path) -> ssl.SSLContext:
    return server_context(authority.issue("server", ("localhost",)), clients=ca)


@asynccontextmanager
async def _listening(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """A server that greets and then says nothing; with a context behind TLS."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(b"AMQP\x00\x00\x09\x01")
            with suppress(OSError):
                await writer.drain()
                await reader.read()
        finally:
            writer.transport.abort()

    async with loopback_server(serve) as url:
        port = int(url.rpartition(":")[2])
        if context is None:
            yield port
            return
        with tls_proxy(port, context) as secured_port:
            yield secured_port


async def _failure(
    context: ssl.SSLContext | None, trusting: ssl.SSLContext, host: str = "localhost"
) -> str | None:
    async with _listening(context) as port, asyncio.timeout(10):
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=trusting, server_hostname=host
            )
            try:
                writer.write(b"AMQP\x00\x00\x09\x01")
                await reader.readexactly(9)
            finally:
                writer.transport.abort()
        except OSError as exc:
            try:
                raise ConnectionError("of a library between") from exc  # noqa: TRY301
            except ConnectionError as wrapped:
                return describe_tls_failure(wrapped, BROKER)
    return "it was accepted"


async def test_a_server_that_is_not_the_one(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    stranger = Authority(tmp_path / "b")
    trusting = client_context(BROKER, authority.ca)
    assert await _failure(_server(stranger), trusting) == _UNKNOWN
    assert await _failure(_server(authority), trusting, host="other.example") == (
        "its certificate is for another host than the one in KEYTURN_AMQP_URL"
    )
    assert await _failure(_server(authority), trusting, host="127.0.0.2") == (
        "its certificate is for another host than the one in KEYTURN_AMQP_URL"
    )


async def test_a_certificate_out_of_its_time(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusting = client_context(BROKER, authority.ca)
    expired = _server(authority, from_h=-2, to_h=-1)
    assert await _failure(expired, trusting) == "its certificate has expired"
    early = _server(authority, from_h=0.5, to_h=1)
    assert await _failure(early, trusting) == "its certificate is not valid yet"


async def test_a_client_certificate_that_is_missing_or_refused(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    server = _requiring(authority, authority.ca)
    assert await _failure(server, client_context(BROKER, authority.ca)) == _REQUIRED
    for made, why in (
        (stranger.issue("client", ()), "unknown authority"),
        (authority.issue("client", (), from_h=-2, to_h=-1), "expired"),
    ):
        trusting = client_context(BROKER, authority.ca, made.certificate, made.key)
        assert await _failure(server, trusting) == (
            f"it refused the client certificate of KEYTURN_AMQP_CERT_FILE: {why}"
        )


async def test_a_client_certificate_that_tls_1_2_requires(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = _requiring(authority, authority.ca)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    found = await _failure(server, client_context(BROKER, authority.ca))
    assert found == (
        "it refused the handshake: it may require a client certificate, KEYTURN_AMQP_CERT_FILE"
    )


async def test_a_server_without_tls(tmp_path: Path) -> None:
    trusting = client_context(BROKER, Authority(tmp_path).ca)
    expected = "it does not speak TLS on that port: check KEYTURN_AMQP_URL"
    assert await _failure(None, trusting) == expected


async def test_nothing_is_wrong_with_a_good_one(tmp_path: Path) -> None:
    """The check of the tests themselves: the same way, and no failure."""
    authority = Authority(tmp_path)
    made = authority.issue("client", ())
    server = _requiring(authority, authority.ca)
    trusting = client_context(BROKER, authority.ca, made.certificate, made.key)
    with pytest.raises(TimeoutError):  # it waits for a ninth byte
        async with asyncio.timeout(0.5):
            await _failure(server, trusting)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ConnectionRefusedError(111, "refused"),
        lambda: ssl.SSLError(1, "of no known kind"),
        lambda: ssl.SSLEOFError(8, "EOF"),
        lambda: ssl.SSLCertVerificationError("without a code"),
        lambda: ValueError("anything else"),
    ],
)
def test_other_failures_are_not_of_tls(make: Callable[[], Exception]) -> None:
    assert describe_tls_failure(make(), BROKER) is None


def test_causes_that_go_round_in_circles_end() -> None:
    first, second = OSError("a"), OSError("b")
    first.__context__, second.__context__ = second, first
    assert describe_tls_failure(first, BROKER) is None


async def test_a_server_with_tls_that_is_spoken_to_without() -> None:
    """RabbitMQ, like Go's servers, sends an alert. One of OpenSSL says nothing."""
    expected = "it speaks TLS on that port: KEYTURN_{} must begin with {}"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"\x15\x03\x01\x00\x02\x02\x0a")
        writer.close()
        await writer.wait_closed()

    async with loopback_server(serve) as url:
        with pytest.raises((AMQPException, OSError)) as by_amqp:
            await aio_pika.connect(url.replace("http", "amqp"))
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError) as by_http:
                await session.get(url)
    found = describe_tls_failure(by_amqp.value, BROKER)
    assert found == expected.format("AMQP_URL", "amqps://")
    found = describe_tls_failure(by_http.value, STORAGE)
    assert found == expected.format("S3_ENDPOINT_URL", "https://")

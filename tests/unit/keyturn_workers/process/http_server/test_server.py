"""An HTTP server listens within limits, ends in order, and logs no request (SPEC 9, 16)."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
import structlog
import uvloop

from keyturn.errors import BrokerTlsError, BrokerUnavailableError
from keyturn_workers.core.errors import AddressError
from keyturn_workers.process.http_server.server import check_broker_tls, open_listeners, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

    from keyturn.publisher import Publisher

_HEAD: Final = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"
_LOGGERS: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a server changes in its process is changed back."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class _App:
    """Responds to `/slow` once the test lets it."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive
        self.requested.set()
        if scope["path"] == "/slow":
            await self.go_on.wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})


class _Started:
    """Waits for the log line of a server that listens."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.fields: dict[str, Any] = {}

    def __call__(self, _: Any, __: str, fields: Any) -> Any:
        if fields["event"] == "test started":
            self.fields = dict(fields)
            self.event.set()
        raise structlog.DropEvent


@asynccontextmanager
async def _connected(
    port: int,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


@asynccontextmanager
async def _serving(app: ASGIApp) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    started = _Started()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[started])
    listeners = await _listen("127.0.0.1", 0, idle_timeout_s=60)
    task = asyncio.create_task(
        serve(
            app,
            listeners,
            name="test",
            head_timeout_s=10,
            max_connections=10,
            grace_s=30,
        )
    )
    async with asyncio.timeout(10):
        await started.event.wait()
    try:
        async with asyncio.timeout(10):
            yield started.fields["port"], task
    finally:
        structlog.configure(processors=before)
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await task


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order_once_its_responses_are_complete(
    number: signal.Signals,
) -> None:
    app = _App()
    async with _serving(app) as (port, task):
        async with _connected(port) as (reader, writer):
            writer.write(_HEAD % b"slow")
            await app.requested.wait()
            os.kill(os.getpid(), number)
            await _until_refused(port)
            assert not task.done()
            app.go_on.set()
            response = await reader.read()
        assert response.startswith(b"HTTP/1.1 200")
        assert response.endswith(b"ok")
        await task
    # The process's own handlers are back: uvicorn would have raised the signal again.
    assert not asyncio.get_running_loop().remove_signal_handler(number)


async def _until_refused(port: int) -> None:
    """New connections are no longer accepted."""
    while True:
        try:
            async with _connected(port):
                await asyncio.sleep(0.01)
        except ConnectionRefusedError:
            return
        except ConnectionResetError:
            continue  # it waited to be accepted when the listener was closed


async def test_no_response_names_the_server_and_no_request_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A path has an object key, and what uvicorn logs has paths."""
    caplog.set_level(logging.DEBUG)
    async with _serving(_App()) as (port, _):
        async with _connected(port) as (reader, writer):
            writer.write(_HEAD % b"a-secret-name")
            head = await reader.readuntil(b"\r\n\r\n")
        assert b"server:" not in head.lower()
    assert "a-secret-name" not in caplog.text
    assert [r.name for r in caplog.records if r.name.startswith("uvicorn")] == []


_IDLE_TIMEOUT_S = 1.5


async def _listen(
    host: str, port: int, *, idle_timeout_s: float = _IDLE_TIMEOUT_S
) -> list[socket.socket]:
    return await open_listeners(
        host, port, settings="KEYTURN_GATEWAY", idle_timeout_s=idle_timeout_s
    )


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_an_accepted_connection_has_the_options_of_its_listener(
    new_loop: type[asyncio.AbstractEventLoop],
) -> None:
    """Both event loops leave it to the kernel, which copies them."""
    with asyncio.Runner(loop_factory=new_loop) as runner:
        options = runner.run(_options_of_an_accepted_connection())
    assert options == {"user timeout, ms": 1500, "unsent bytes": 128 * 1024}


async def _options_of_an_accepted_connection() -> dict[str, int]:
    loop = asyncio.get_running_loop()
    made: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.set_result(transport)

    (listener,) = await _listen("127.0.0.1", 0)
    async with asyncio.timeout(5), await loop.create_server(Accepted, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        transport = await made
        sock = transport.get_extra_info("socket")
        options = {
            "user timeout, ms": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            "unsent bytes": sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT),
        }
        writer.transport.abort()
        transport.abort()  # type: ignore[attr-defined]
    return options


async def test_a_name_with_several_addresses_has_a_socket_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()

    async def two(*arguments: object, **more: object) -> list[object]:
        del arguments, more
        v4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
        other = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0))
        return [v4, other, v4]

    monkeypatch.setattr(loop, "getaddrinfo", two)
    listeners = await _listen("gateway.test", 0)
    assert [each.getsockname()[0] for each in listeners] == ["127.0.0.1", "127.0.0.2"]
    for each in listeners:
        each.close()


async def test_an_address_in_use_is_reported_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError) as error:
            await _listen("127.0.0.1", port)
    assert str(error.value) == (
        f"cannot listen on 127.0.0.1 port {port}: the port is in use: stop the program that uses "
        "it, or change KEYTURN_GATEWAY_PORT"
    )


async def test_an_address_of_another_host_is_reported() -> None:
    with pytest.raises(AddressError, match=r"this machine.*KEYTURN_GATEWAY_HOST"):
        await _listen("192.0.2.1", 0)


class _Broker:
    def __init__(self, outcome: Exception | None, wait_s: float = 0) -> None:
        self._outcome = outcome
        self._wait_s = wait_s

    async def connect(self) -> None:
        await asyncio.sleep(self._wait_s)
        if self._outcome is not None:
            raise self._outcome


async def _check(broker: _Broker, timeout_s: float = 5) -> None:
    await check_broker_tls(cast("Publisher", broker), timeout_s)


async def test_a_broker_that_answers_or_is_away_or_silent_is_no_reason() -> None:
    await _check(_Broker(None))
    await _check(_Broker(BrokerUnavailableError("away")))
    await _check(_Broker(None, wait_s=60), timeout_s=0.01)


async def test_a_wrong_certificate_is_one() -> None:
    with pytest.raises(BrokerTlsError, match="expired"):
        await _check(_Broker(BrokerTlsError("its certificate has expired")))

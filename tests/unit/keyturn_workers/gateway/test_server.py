"""A gateway process: it starts without its broker, and completes responses when it stops."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
import structlog
from structlog.testing import capture_logs

from keyturn_workers.gateway import server
from keyturn_workers.gateway.listener import AddressError
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.settings import GatewaySettings
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.gateway.asgi import ask
from tools.harness.deployment import Deployment
from tools.servers import S3Server
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

_S3: Final = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
# No server listens there.
_DEPLOYMENT: Final = Deployment("amqp://127.0.0.1:1/", _S3, "bucket")
_HEAD: Final = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"
_LOGGERS: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi")


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a gateway changes in its process is changed back."""
    monkeypatch.setattr(server, "reduce_garbage_collection", lambda: None)
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _settings(monkeypatch: pytest.MonkeyPatch, **more: str) -> GatewaySettings:
    for name, value in _DEPLOYMENT.gateway_env(**more).items():
        monkeypatch.setenv(name, value)
    return GatewaySettings.read()


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
    """Waits for the log line of a gateway that listens."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.fields: dict[str, Any] = {}

    def __call__(self, _: Any, __: str, fields: Any) -> Any:
        if fields["event"] == "gateway started":
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
async def _serving(
    settings: GatewaySettings, app: ASGIApp
) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
    started = _Started()
    before = structlog.get_config()["processors"]
    structlog.configure(processors=[started])
    task = asyncio.create_task(server.serve(settings, app))
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
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = _App()
    async with _serving(_settings(monkeypatch, GATEWAY_PORT="0"), app) as (port, task):
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
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A path has an object key, and what uvicorn logs has paths."""
    caplog.set_level(logging.DEBUG)
    async with _serving(_settings(monkeypatch, GATEWAY_PORT="0"), _App()) as (port, _):
        async with _connected(port) as (reader, writer):
            writer.write(_HEAD % b"a-secret-name")
            head = await reader.readuntil(b"\r\n\r\n")
        assert b"server:" not in head.lower()
    assert "a-secret-name" not in caplog.text
    assert [r.name for r in caplog.records if r.name.startswith("uvicorn")] == []


async def test_an_address_in_use_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    with pytest.raises(AddressError):
        await server.serve(_settings(monkeypatch, GATEWAY_PORT=str(port)), _App())
    taken.close()
    await taken.wait_closed()


async def test_without_a_broker_it_starts_and_says_that_it_is_not_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []

    @asynccontextmanager
    async def in_memory(_: object, *, max_connections: int) -> AsyncIterator[MemoryStorage]:
        calls.append(max_connections)
        yield MemoryStorage()

    monkeypatch.setattr(server, "open_storage", in_memory)
    settings = _settings(
        monkeypatch, GATEWAY_CONCURRENCY="7", AMQP_URL=f"amqp://127.0.0.1:{free_port()}/"
    )
    with capture_logs():
        async with server.open_app(settings, GatewayMetrics()) as app, asyncio.timeout(30):
            alive, ready = await ask(app, "GET", "/healthz"), await ask(app, "GET", "/readyz")
    assert alive.status == 200
    assert (ready.status, ready.document()["checks"]) == (503, {"broker": False, "storage": True})
    # Each request may hold one, and keyrings, records and health need some as well.
    assert calls[0] > 7

"""Other HTTP clients with the product's signer, and the floor: a protocol without a library."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import httptools

from tools.bench.clients.asking import CONNECTIONS, Answer, PlainHttp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.signing import Signed
    from tools.bench.clients.asking import Client, Place


@asynccontextmanager
async def _like_httpx(library: Any, place: Place) -> AsyncIterator[Client]:
    limits = library.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    async with library.AsyncClient(limits=limits, trust_env=False) as client:
        client.headers.clear()

        async def send(method: str, signed: Signed, body: bytes) -> Answer:
            answer = await client.request(
                method, signed.url, headers=signed.headers, content=body or None
            )
            return Answer(answer.status_code, answer.headers, answer.content)

        yield PlainHttp(place, send)


@asynccontextmanager
async def httpx(place: Place) -> AsyncIterator[Client]:
    """As it is, since 2024."""
    async with _like_httpx(import_module("httpx"), place) as client:
        yield client


@asynccontextmanager
async def httpx2(place: Place) -> AsyncIterator[Client]:
    """httpx2, its continuation."""
    async with _like_httpx(import_module("httpx2"), place) as client:
        yield client


@asynccontextmanager
async def aiosonic(place: Place) -> AsyncIterator[Client]:
    """Pure Python, as aiohttp but leaner."""
    library = import_module("aiosonic")
    pools = import_module("aiosonic.pools")
    connectors = import_module("aiosonic.connectors")
    config = {":default": pools.PoolConfig(size=CONNECTIONS)}
    connector = connectors.TCPConnector(pool_configs=config)
    async with library.HTTPClient(connector=connector) as client:

        async def send(method: str, signed: Signed, body: bytes) -> Answer:
            answer = await client.request(
                signed.url, method, headers=signed.headers, data=body or None
            )
            return Answer(answer.status_code, answer.headers, await answer.content())

        yield PlainHttp(place, send)


@asynccontextmanager
async def curl_cffi(place: Place) -> AsyncIterator[Client]:
    """On libcurl."""
    requests = import_module("curl_cffi.requests")
    async with requests.AsyncSession(max_clients=CONNECTIONS, trust_env=False) as session:

        async def send(method: str, signed: Signed, body: bytes) -> Answer:
            answer = await session.request(
                method,
                signed.url,
                headers=signed.headers,
                data=body or None,
                allow_redirects=False,
                default_headers=False,
            )
            return Answer(answer.status_code, answer.headers, answer.content)

        yield PlainHttp(place, send)


class _Connection(asyncio.Protocol):
    """One request at a time; no timeouts, no limits, no continuation: no client at all."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answer] | None = None
        self._method = ""
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._pieces: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def ask(self, method: str, head: bytes, body: bytes) -> asyncio.Future[Answer]:
        if self._transport is None:
            raise ConnectionError
        self._begin()
        self._method = method
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(head + body)
        return self._waiting

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_headers_complete(self) -> None:
        if self._method == "HEAD":
            self._done()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        if self._method != "HEAD":
            self._done()

    def _done(self) -> None:
        if self._waiting is not None:
            status = self._parser.get_status_code()
            self._waiting.set_result(Answer(status, self._headers, b"".join(self._pieces)))
            self._waiting = None


@asynccontextmanager
async def floor(place: Place) -> AsyncIterator[Client]:
    """What the loop, the kernel, a parser and the signature cost with no library in between."""
    loop = asyncio.get_running_loop()
    name, _, port = place.host.partition(":")
    idle: list[_Connection] = []

    async def send(method: str, signed: Signed, body: bytes) -> Answer:
        target = signed.target
        lines = "".join(f"{key}: {value}\r\n" for key, value in signed.headers.items())
        length = f"content-length: {len(body)}\r\n" if method == "PUT" else ""
        head = f"{method} {target} HTTP/1.1\r\nhost: {place.host}\r\n{length}{lines}\r\n"
        if idle:
            connection = idle.pop()
        else:
            _, connection = await loop.create_connection(_Connection, name, int(port))
        answer = await connection.ask(method, head.encode(), body)
        idle.append(connection)
        return answer

    yield PlainHttp(place, send)
    for connection in idle:
        if connection._transport is not None:
            connection._transport.close()

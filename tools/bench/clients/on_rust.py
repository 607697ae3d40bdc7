"""Clients in Rust: obstore, which is an object store's, and HTTP clients with our signer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tools.bench.bare import METADATA
from tools.bench.clients.asking import (
    BODY,
    CONTENT_TYPE,
    RANGE_BYTES,
    Answer,
    PlainHttp,
    RefusedError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.signing import Signed
    from tools.bench.clients.asking import Client, Place


class ObjectStore:
    """obstore: no copy with other metadata, no lease, and no metadata in its head."""

    def __init__(self, place: Place) -> None:
        self._store: Any = import_module("obstore.store").S3Store(
            place.bucket,
            endpoint=place.endpoint_url,
            region=place.region,
            access_key_id=place.access_key_id,
            secret_access_key=place.secret_access_key,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    async def put(self, key: str) -> str:
        attributes = {"Content-Type": CONTENT_TYPE, **METADATA}
        put = self._store.put_async(key, BODY, attributes=attributes, mode="create")
        return str((await put)["e_tag"]).strip('"')

    async def get(self, key: str) -> None:
        body = await self._store.get_range_async(key, start=0, length=RANGE_BYTES)
        if len(body) != RANGE_BYTES:
            raise RefusedError(f"{len(body)} bytes")

    async def head(self, key: str) -> None:
        await self._store.head_async(key)

    async def copy(self, key: str, etag: str) -> None:
        raise UnsupportedError(f"{key}: a copy takes neither metadata nor a condition ({etag})")


@asynccontextmanager
async def obstore(place: Place) -> AsyncIterator[Client]:
    """It signs in the header."""
    yield ObjectStore(place)


@asynccontextmanager
async def pyreqwest(place: Place) -> AsyncIterator[Client]:
    """Reqwest (hyper), whose runtime has threads of its own."""
    builder = import_module("pyreqwest.client").ClientBuilder()
    async with builder.http1_only().follow_redirects(enable=False).build() as client:

        async def send(method: str, signed: Signed, body: bytes) -> Answer:
            asked = client.request(method, signed.url).headers(signed.headers)
            answer = await (asked.body_bytes(body) if method == "PUT" else asked).build().send()
            return Answer(answer.status, answer.headers, bytes(await answer.bytes()))

        yield PlainHttp(place, send)


@asynccontextmanager
async def punkreq(place: Place) -> AsyncIterator[Client]:
    """Httpunk (hyper's parts, driven by the asyncio loop), and the client on top of it."""
    async with import_module("punkreq.asyncio").Client() as client:

        async def send(method: str, signed: Signed, body: bytes) -> Answer:
            answer = await client.request(
                method,
                signed.url,
                headers=signed.headers,
                content=body or None,
                follow_redirects=False,
            )
            return Answer(answer.status_code, answer.headers, await answer.read())

        yield PlainHttp(place, send)


@asynccontextmanager
async def httpunk(place: Place) -> AsyncIterator[Client]:
    """Httpunk alone, with its own pool of connections."""
    library, util = import_module("httpunk"), import_module("httpunk.util")
    pool = util.pool.Cache(
        lambda _: util.connect(place.endpoint_url, backend=library.Backend.asyncio),
        backend=library.Backend.asyncio,
    )

    async def send(method: str, signed: Signed, body: bytes) -> Answer:
        headers = {"host": place.host, **signed.headers}
        if method == "PUT":
            headers["content-length"] = str(len(body))
        target = signed.target
        async with pool.checkout() as connection:
            answer = await connection.request(method, target, headers=headers, body=body or None)
            read = await answer.read()
        return Answer(answer.status, _Decoded(answer.headers), read)

    yield PlainHttp(place, send)
    await pool.aclose()


class _Decoded(dict[str, str]):
    """Headers whose values are bytes, decoded when asked for."""

    def __init__(self, headers: Any) -> None:
        super().__init__()
        self._headers = headers

    def __missing__(self, name: str) -> str:
        return str(self._headers[name].decode())


@asynccontextmanager
async def wreq(place: Place) -> AsyncIterator[Client]:
    """Wreq (a fork of reqwest)."""
    library: Any = import_module("wreq")
    client = library.Client(redirect=None)
    methods = {"PUT": library.Method.PUT, "GET": library.Method.GET, "HEAD": library.Method.HEAD}

    async def send(method: str, signed: Signed, body: bytes) -> Answer:
        answer = await client.request(
            methods[method], signed.url, headers=signed.headers, body=body or None
        )
        told = {"etag": bytes(answer.headers.get("etag") or b"").decode()}
        return Answer(int(answer.status.as_int()), told, bytes(await answer.bytes()))

    yield PlainHttp(place, send)

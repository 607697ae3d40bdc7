"""AWS's clients in C: `awscrt.s3`, which signs and sends by itself, and `awscrt.http`.

Both call back from a thread of their own. `awscrt.s3` resends where it sees fit, which a
conditional write must not; it is measured all the same.
"""

from __future__ import annotations

import asyncio
import io
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tools.bench.clients.asking import (
    BODY,
    CONNECTIONS,
    RANGE_BYTES,
    Answer,
    PlainHttp,
    RefusedError,
    copy_headers,
    put_headers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.signing import Signed
    from tools.bench.clients.asking import Client, Place


class CrtS3:
    """`awscrt.s3.S3Client`, with requests of the type DEFAULT."""

    def __init__(self, place: Place) -> None:
        self._s3, self._http = import_module("awscrt.s3"), import_module("awscrt.http")
        auth = import_module("awscrt.auth")
        self._place = place
        provider = auth.AwsCredentialsProvider.new_static(
            place.access_key_id, place.secret_access_key
        )
        self._client = self._s3.S3Client(
            region=place.region,
            tls_mode=self._s3.S3RequestTlsMode.DISABLED,
            signing_config=self._s3.create_default_s3_signing_config(
                region=place.region, credential_provider=provider
            ),
            max_active_connections_override=CONNECTIONS,
        )

    async def put(self, key: str) -> str:
        headers, _ = await self._asked("PutObject", "PUT", key, put_headers(), BODY)
        return str(headers["etag"]).strip('"')

    async def get(self, key: str) -> None:
        ranged = {"range": f"bytes=0-{RANGE_BYTES - 1}"}
        _, body = await self._asked("GetObject", "GET", key, ranged)
        if len(body) != RANGE_BYTES:
            raise RefusedError(f"{len(body)} bytes")

    async def head(self, key: str) -> None:
        await self._asked("HeadObject", "HEAD", key, {})

    async def copy(self, key: str, etag: str) -> None:
        headers = copy_headers(self._place, key, etag)
        _, body = await self._asked("CopyObject", "PUT", key, headers)
        if b"<CopyObjectResult" not in body:
            raise RefusedError("the copy failed within its answer")

    async def _asked(
        self, operation: str, method: str, key: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[dict[str, str], bytes]:
        fields = self._http.HttpHeaders([*headers.items(), ("host", self._place.host)])
        if method == "PUT":
            fields.add("content-length", str(len(body)))
        stream = io.BytesIO(body) if body else None
        request = self._http.HttpRequest(
            method, f"/{self._place.bucket}/{key}", fields, body_stream=stream
        )
        told: dict[str, str] = {}
        pieces: list[bytes] = []

        def on_headers(status_code: int, headers: list[tuple[str, str]], **_: Any) -> None:
            del status_code
            told.update((name.lower(), value) for name, value in headers)

        def on_body(chunk: bytes, offset: int, **_: Any) -> None:
            del offset
            pieces.append(chunk)

        made = self._client.make_request(
            type=self._s3.S3RequestType.DEFAULT,
            operation_name=operation,
            request=request,
            on_headers=on_headers,
            on_body=on_body,
        )
        await asyncio.wrap_future(made.finished_future)
        return told, b"".join(pieces)


@asynccontextmanager
async def s3(place: Place) -> AsyncIterator[Client]:
    """It signs in the header and knows no lease."""
    yield CrtS3(place)


class _Pool:
    """Connections of `awscrt.http`, one request each at a time; it has none for one host."""

    def __init__(self, place: Place) -> None:
        self._http, io_module = import_module("awscrt.aio.http"), import_module("awscrt.io")
        self._options = io_module.SocketOptions()
        self._host, _, port = place.host.partition(":")
        self._port = int(port)
        self._idle: list[Any] = []

    async def take(self) -> Any:
        if self._idle:
            return self._idle.pop()
        return await self._http.AIOHttpClientConnection.new(
            host_name=self._host, port=self._port, socket_options=self._options
        )

    def give_back(self, connection: Any) -> None:
        self._idle.append(connection)

    async def close(self) -> None:
        for connection in self._idle:
            await connection.close()


@asynccontextmanager
async def http(place: Place) -> AsyncIterator[Client]:
    """With the product's signer."""
    plain = import_module("awscrt.http")
    pool = _Pool(place)

    async def send(method: str, signed: Signed, body: bytes) -> Answer:
        fields = plain.HttpHeaders([*signed.headers.items(), ("host", place.host)])
        if method == "PUT":
            fields.add("content-length", str(len(body)))
        path = signed.target
        stream = io.BytesIO(body) if body else None
        connection = await pool.take()
        asked = connection.request(plain.HttpRequest(method, path, fields, stream))
        status = await asked.get_response_status_code()
        told = {name.lower(): value for name, value in await asked.get_response_headers()}
        pieces = []
        while piece := await asked.get_next_response_chunk():
            pieces.append(piece)
        await asked.wait_for_completion()
        pool.give_back(connection)
        return Answer(status, told, b"".join(pieces))

    yield PlainHttp(place, send)
    await pool.close()

"""Signed HTTP requests for the objects of one bucket (SPEC 7, 8.4).

Every request that is made once for each object goes this way, with our own signer and exchange
over httptools (`s3_connections`): about a tenth of the CPU time of the generated client. Each
request is sent once. No redirect is followed, and nothing is resent after an error or a lost
connection: a conditional put that is resent may meet its own first attempt and report a false
"already exists". The caller learns that the outcome is unknown instead.

No error may contain a URL, since a URL may contain a signature.
"""

import asyncio
import hashlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import quote

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.core.storage_values import Lease
from keyturn_workers.storage.credentials import CredentialSource
from keyturn_workers.storage.s3_connections import (
    CONNECT_TIMEOUT_S,
    ConnectionPool,
    Exchange,
    encode_head,
)
from keyturn_workers.storage.s3_wire import (
    UnconfirmedNotFoundError,
    error_code,
    error_for,
    read_error_for,
)
from keyturn_workers.storage.signing import (
    UNSIGNED_PAYLOAD,
    SignedRequest,
    Signer,
    host_header,
    lease_from_now,
)
from keyturn_workers.storage.streaming_body import KnownLengthBody
from keyturn_workers.storage.vendor_errors import translate_errors

READ_TIMEOUT_S: Final = 30.0
PLAIN_WRITE_TIMEOUT_S: Final = 120.0
IDLE_TIMEOUT_S: Final = 60.0
# How long a streamed put without a lease may wait for its connection.
_STREAM_SIGNATURE_S: Final = 300
_UNRESERVED: Final = "/-_.~"
_ERROR_BODY_BYTES: Final = 64 * 2**10
# Hashing more than this would block the event loop.
_LARGE_BODY_BYTES: Final = 2**20
_READS: Final = frozenset({"GET", "HEAD"})
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()

RequestObserver: TypeAlias = Callable[
    [str, SignedRequest], AbstractContextManager[Callable[[int], None]]
]
"""Called with the method and the request; wraps the exchange, and receives the status."""


def _ignore_status(_: int) -> None:
    """Ignore the status."""


_UNOBSERVED: Final = nullcontext(_ignore_status)


def observe_nothing(_: str, __: SignedRequest) -> AbstractContextManager[Callable[[int], None]]:
    """Observe no request."""
    return _UNOBSERVED


@dataclass(frozen=True, slots=True)
class S3Response:
    """A whole response; the names in `headers` are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class S3HttpClient:
    """Sends signed requests for the keys of one bucket.

    `base_url` is the bucket's URL, ending with a slash.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        base_url: str,
        bucket: str,
        region: str,
        credentials: CredentialSource,
        observe: RequestObserver = observe_nothing,
    ) -> None:
        self._pool = pool
        self._observe = observe
        self._host = host_header(base_url)
        self._signer = Signer(base_url, region)
        self._bucket = bucket
        self._credentials = credentials
        self._is_tls = base_url.startswith("https:")

    def copy_source(self, key: str) -> str:
        """Return `x-amz-copy-source` without a version: a pinned copy can undo a delete."""
        return f"/{self._bucket}/{quote(key, safe=_UNRESERVED)}"

    async def call(
        self,
        operation: str,
        method: str,
        key: str,
        headers: dict[str, str],
        *,
        query: str = "",
        body: bytes = b"",
        lease: Lease | None = None,
        timeout_s: float = READ_TIMEOUT_S,
    ) -> S3Response:
        """Send one request with a body in memory, and read its whole response.

        `operation` is the name in errors; `key` is empty for the bucket itself. All `headers` are
        signed; this method adds to them. `query` is percent-encoded. The `body` is sent with its
        MD5, so that the storage checks it. A `lease` bounds the request in time, at the storage
        and here (SPEC 8.4); without one, `timeout_s` does.

        Raises:
            StorageResponseError: a definite refusal.
            StorageUnavailableError: the outcome is unknown.
        """
        with translate_errors(operation):
            signed = await self._sign_body(method, key, query, headers, body, lease)
            total_s = timeout_s if lease is None else lease.expires_s
            response = await self._exchange(method, signed, body, total_s)
        if not 200 <= response.status < 300:  # noqa: PLR2004  # a redirect is not a success
            raise _refusal(operation, method, response)
        return response

    @asynccontextmanager
    async def open_get(
        self, operation: str, key: str, headers: dict[str, str], *, query: str = ""
    ) -> AsyncIterator[Exchange]:
        """Open a GET whose body is read by the caller; leaving early aborts the connection.

        Raises:
            StorageResponseError: a definite refusal.
            StorageUnavailableError: no response, or a failure of the server.
        """
        exchange = Exchange(self._pool, "GET", read_timeout_s=READ_TIMEOUT_S)
        try:
            with translate_errors(operation):
                signed = await self._sign("GET", key, query, headers, _EMPTY_SHA256, None)
                with self._observe("GET", signed) as note_status:
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        await exchange.open()
                    async with asyncio.timeout(READ_TIMEOUT_S):
                        await exchange.send(self._head("GET", signed))
                        await exchange.read_head()
                    note_status(exchange.status)
                if exchange.status >= 300:  # noqa: PLR2004  # a redirect is not a success
                    async with asyncio.timeout(READ_TIMEOUT_S):
                        error_body = await exchange.read_up_to(_ERROR_BODY_BYTES)
                    raise read_error_for(operation, exchange.status, error_code(error_body))
            yield exchange
        finally:
            exchange.close()

    async def put_stream(
        self,
        operation: str,
        key: str,
        headers: dict[str, str],
        body: KnownLengthBody,
        *,
        lease: Lease | None,
    ) -> S3Response:
        """Send one PUT of known length in bounded memory.

        It waits for `100 Continue`, so that a late or forbidden request costs no body. Without a
        lease, over plain http, it is signed in its query all the same: a signature in the header
        would need the hash of the body.

        Raises:
            StorageResponseError: a definite refusal.
            StorageUnavailableError: the outcome is unknown, or there was no progress for 60 s.
            Exception: the error of the body's source, unchanged; nothing was stored.
        """
        if lease is None and not self._is_tls:
            lease = lease_from_now(_STREAM_SIGNATURE_S)
        headers["content-length"] = str(body.size_bytes)
        with translate_errors(operation):
            signed = await self._sign("PUT", key, "", headers, UNSIGNED_PAYLOAD, lease)
        exchange = Exchange(self._pool, "PUT")
        with self._observe("PUT", signed) as note_status:
            try:
                with translate_errors(operation):
                    async with asyncio.timeout(IDLE_TIMEOUT_S):
                        await exchange.open()
                        head = self._head("PUT", signed, expects_continue=True)
                        takes_body = await exchange.send_head(head, body.size_bytes)
                if takes_body:
                    await self._send_pieces(operation, exchange, body)
                with translate_errors(operation):
                    async with asyncio.timeout(IDLE_TIMEOUT_S):
                        response_body = await exchange.read_all()
                note_status(exchange.status)
            finally:
                exchange.close()
        if exchange.status >= 300:  # noqa: PLR2004  # as above
            raise error_for(operation, exchange.status, error_code(response_body))
        return S3Response(exchange.status, exchange.headers, response_body)

    async def _send_pieces(self, operation: str, exchange: Exchange, body: KnownLengthBody) -> None:
        """Send the body until the response begins. Only waiting for the storage is timed."""
        async with aclosing(body.pieces()) as pieces:
            async for piece in pieces:
                with translate_errors(operation):
                    async with asyncio.timeout(IDLE_TIMEOUT_S):
                        if not await exchange.write(piece):
                            return

    async def put_cut_off(
        self,
        operation: str,
        key: str,
        headers: dict[str, str],
        body: bytes,
        *,
        sent_bytes: int,
        lease: Lease | None,
    ) -> None:
        """Send a PUT as `call` does, but close the connection after `sent_bytes` of its body.

        Only for the probe. It waits for `100 Continue`, so that the server has read the headers.
        A response is ignored.

        Raises:
            StorageUnavailableError: there is no connection, or no response to the headers.
        """
        headers["content-length"] = str(len(body))
        exchange = Exchange(self._pool, "PUT")
        with translate_errors(operation):
            signed = await self._sign_body("PUT", key, "", headers, body, lease)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await exchange.open()
                    head = self._head("PUT", signed, expects_continue=True)
                    if await exchange.send_head(head, len(body)):
                        await exchange.write(body[:sent_bytes])
                        exchange.cut_off()
            finally:
                exchange.close()

    async def presign(self, method: str, key: str, lease: Lease) -> str:
        """Return the URL of a request that another client will send while the lease lasts."""
        with translate_errors("presign"):
            return (await self._sign(method, key, "", {}, UNSIGNED_PAYLOAD, lease)).url

    async def _sign_body(
        self,
        method: str,
        key: str,
        query: str,
        headers: dict[str, str],
        body: bytes,
        lease: Lease | None,
    ) -> SignedRequest:
        """Sign a request with a body in memory, and add the body's headers to `headers`."""
        sha256 = UNSIGNED_PAYLOAD if self._is_tls else _EMPTY_SHA256
        if body:
            # Over plain http only the signature protects the body.
            with_sha256 = lease is None and not self._is_tls
            if len(body) > _LARGE_BODY_BYTES:
                md5, hashed = await asyncio.to_thread(_hashes, body, with_sha256)
            else:
                md5, hashed = _hashes(body, with_sha256)
            headers["content-md5"] = md5
            sha256 = hashed or sha256
        return await self._sign(method, key, query, headers, sha256, lease)

    async def _sign(
        self,
        method: str,
        key: str,
        query: str,
        headers: dict[str, str],
        payload_sha256: str,
        lease: Lease | None,
    ) -> SignedRequest:
        credentials = await self._credentials.current()
        return self._signer.sign(
            method,
            quote(key, safe=_UNRESERVED),
            headers,
            credentials=credentials,
            query=query,
            payload_sha256=payload_sha256,
            lease=lease,
        )

    async def _exchange(
        self, method: str, signed: SignedRequest, body: bytes, total_s: float
    ) -> S3Response:
        """Send a request with a body in memory, and read its whole response.

        A timeout or a cancellation aborts the connection. Bytes not sent by then are dropped:
        they could take effect after the lease.
        """
        if method not in _READS:
            signed.headers.setdefault("content-length", str(len(body)))
        head = self._head(method, signed)
        exchange = Exchange(self._pool, method)
        with self._observe(method, signed) as note_status:
            async with asyncio.timeout(total_s):
                try:
                    await exchange.open()
                    await exchange.send(head, body)
                    response_body = await exchange.read_all()
                finally:
                    exchange.close()
            note_status(exchange.status)
        return S3Response(exchange.status, exchange.headers, response_body)

    def _head(self, method: str, signed: SignedRequest, *, expects_continue: bool = False) -> bytes:
        if expects_continue:
            signed.headers["expect"] = "100-continue"
        return encode_head(method, signed.target, self._host, signed.headers)


def _refusal(
    operation: str, method: str, response: S3Response
) -> StorageResponseError | StorageUnavailableError:
    """Return the error for an unsuccessful response."""
    code = error_code(response.body)
    is_marker = response.headers.get("x-amz-delete-marker") == "true"
    if method == "HEAD" and (response.status == 404 or is_marker):  # noqa: PLR2004  # as above
        return UnconfirmedNotFoundError(f"{operation}: {response.status}")
    if is_marker and code == "MethodNotAllowed":
        # 405: a delete marker was read by its version id.
        return error_for(operation, 404, "NoSuchKey")
    if method in _READS:
        return read_error_for(operation, response.status, code)
    return error_for(operation, response.status, code)


def _hashes(body: bytes, with_sha256: bool) -> tuple[str, str]:  # noqa: FBT001  # to_thread
    """Return `Content-MD5`, and on request the SHA-256 in hex (else an empty string)."""
    md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return md5, hashlib.sha256(body).hexdigest() if with_sha256 else ""

"""Signed HTTP requests for the objects of one bucket (SPEC 7, 8.4).

Everything that runs once for each object goes this way, through one aiohttp session and our
own signer: about a quarter of the CPU time of the generated client. The session
(`keyturn_workers.storage.s3_session`) sends each request once. It follows no redirect, and
resends nothing after an error or a lost connection: a conditional put that is resent may meet
its own first attempt and report a false "already exists". The caller learns that the outcome
is unknown instead.

No error may contain a URL, since a URL may contain a signature.
"""

import asyncio
import hashlib
import io
from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp
from aiobotocore.credentials import AioCredentials
from yarl import URL

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.storage.port import Lease
from keyturn_workers.storage.s3_session import abort_on_failure
from keyturn_workers.storage.s3_wire import (
    UnconfirmedNotFoundError,
    error_code,
    error_for,
    read_error_for,
)
from keyturn_workers.storage.signing import UNSIGNED_PAYLOAD, SignedRequest, Signer, lease_from_now
from keyturn_workers.storage.streaming_body import KnownLengthBody
from keyturn_workers.storage.vendor_errors import translate_credential_errors, translate_errors

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0
PLAIN_WRITE_TIMEOUT_S: Final = 120.0
IDLE_TIMEOUT_S: Final = 60.0
# How long a streamed put without a lease may wait for its connection.
_STREAM_SIGNATURE_S: Final = 300
_UNRESERVED: Final = "/-_.~"
_ERROR_BODY_BYTES: Final = 64 * 2**10
# Hashing more than this would block the event loop, and aiohttp wants a file.
_LARGE_BODY_BYTES: Final = 2**20
_READS: Final = frozenset({"GET", "HEAD"})
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
# The whole request is bounded by `asyncio.timeout`: aiohttp would round the end of a lease up to
# a whole second, and has no timer for the silence after an interim response.
_EXCHANGE_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
_READ_STREAM_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
)
_STREAM_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=IDLE_TIMEOUT_S
)


@dataclass(frozen=True, slots=True)
class S3Response:
    """A whole response; the names in `headers` match in any case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class S3HttpClient:
    """Sends signed requests for the keys of one bucket.

    Args:
        session: From `open_session`.
        base_url: The bucket's URL, ending with a slash.
        bucket: The bucket's name, for copy sources.
        region: The bucket's region, for the signatures.
        credentials: Botocore refreshes temporary ones.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        *,
        base_url: str,
        bucket: str,
        region: str,
        credentials: AioCredentials,
    ) -> None:
        self._session = session
        self._signer = Signer(base_url, region)
        self._bucket = bucket
        self._credentials = credentials
        self._is_tls = base_url.startswith("https:")

    def copy_source(self, key: str) -> str:
        """The value of `x-amz-copy-source`, without a version: a pinned copy can undo a delete."""
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

        Args:
            operation: The name of the operation in errors.
            method: In upper case.
            key: The S3 key; empty for the bucket itself.
            headers: The request's headers, which are all signed; this adds to them.
            query: Already percent-encoded.
            body: Sent with its MD5, so that the storage checks what it received.
            lease: Bounds the request in time, at the storage and here (SPEC 8.4).
            timeout_s: For the whole request, unless a lease bounds it.

        Raises:
            StorageAnswerError: a definite refusal.
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
        self, operation: str, key: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Open a GET whose body is read by the caller; leaving closes the connection.

        Raises:
            StorageAnswerError: a definite refusal.
            StorageUnavailableError: no response, or a failure of the server.
        """
        with translate_errors(operation):
            signed = await self._sign("GET", key, "", headers, _EMPTY_SHA256, None)
            async with asyncio.timeout(CONNECT_TIMEOUT_S + READ_TIMEOUT_S):
                response = await self._send("GET", signed, b"", _READ_STREAM_TIMEOUT)
        try:
            if response.status >= 300:  # noqa: PLR2004  # as above
                with translate_errors(operation):
                    error_body = await response.content.read(_ERROR_BODY_BYTES)
                raise read_error_for(operation, response.status, error_code(error_body))
            yield response
        finally:
            # After a complete body this does nothing: the connection is back in the pool.
            response.close()

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
            StorageAnswerError: a definite refusal.
            StorageUnavailableError: the outcome is unknown, or there was no progress for 60 s.
            Exception: what the body's source raised, unchanged; nothing was stored.
        """
        if lease is None and not self._is_tls:
            lease = lease_from_now(_STREAM_SIGNATURE_S)
        headers["content-length"] = str(body.size_bytes)
        try:
            with translate_errors(operation):
                signed = await self._sign("PUT", key, "", headers, UNSIGNED_PAYLOAD, lease)
                # aiohttp has no timer for a server that stops reading.
                async with asyncio.timeout(IDLE_TIMEOUT_S) as idle:
                    watched = body.with_idle_timeout(idle)
                    with abort_on_failure():
                        response = await self._send(
                            "PUT", signed, watched, _STREAM_TIMEOUT, expect100=True
                        )
                        response_body = await response.read()
        except StorageUnavailableError:
            if body.failure is not None:
                raise body.failure from None  # not aiohttp's report of it
            raise
        if response.status >= 300:  # noqa: PLR2004  # as above
            response.close()
            raise error_for(operation, response.status, error_code(response_body))
        return S3Response(response.status, response.headers, response_body)

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
        """Send a PUT as `call` does, and close the connection after so many bytes of its body.

        Only for the probe. It waits for `100 Continue`, so that the server has read the headers.
        A response is ignored.

        Raises:
            StorageUnavailableError: the connection is gone, as intended, or there was none.
        """

        async def beginning() -> AsyncIterator[bytes]:
            if sent_bytes:
                yield body[:sent_bytes]
            raise ConnectionAbortedError

        headers["content-length"] = str(len(body))
        with translate_errors(operation):
            signed = await self._sign_body("PUT", key, "", headers, body, lease)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                with abort_on_failure():
                    response = await self._send(
                        "PUT", signed, beginning(), _EXCHANGE_TIMEOUT, expect100=True
                    )
                    response.close()

    async def presign(self, method: str, key: str, lease: Lease) -> str:
        """Make the URL of a request that another client will send while the lease lasts."""
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
        """Sign a request with a body in memory, which `headers` then describe."""
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
        with translate_credential_errors():
            frozen: ReadOnlyCredentials = await self._credentials.get_frozen_credentials()
        return self._signer.sign(
            method,
            quote(key, safe=_UNRESERVED),
            headers,
            credentials=frozen,
            query=query,
            payload_sha256=payload_sha256,
            lease=lease,
        )

    async def _exchange(
        self, method: str, signed: SignedRequest, body: bytes, total_s: float
    ) -> S3Response:
        """Send a request with a body in memory, and read its whole response.

        A timeout or a cancellation closes the connection. Bytes not sent by then are dropped:
        they could take effect after the lease.
        """
        async with asyncio.timeout(total_s):
            with abort_on_failure():
                response = await self._send(method, signed, body, _EXCHANGE_TIMEOUT)
                return S3Response(response.status, response.headers, await response.read())

    def _send(
        self,
        method: str,
        signed: SignedRequest,
        body: bytes | AsyncIterator[bytes],
        limits: aiohttp.ClientTimeout,
        *,
        expect100: bool = False,
    ) -> Any:
        data: Any = body or None
        if isinstance(body, bytes) and len(body) > _LARGE_BODY_BYTES:
            data = io.BytesIO(body)  # shares the bytes
        return self._session.request(
            method,
            URL(signed.url, encoded=True),
            headers=signed.headers,
            data=data,
            timeout=limits,
            allow_redirects=False,
            expect100=expect100,
        )


def _refusal(
    operation: str, method: str, response: S3Response
) -> StorageAnswerError | StorageUnavailableError:
    """The error for an unsuccessful response."""
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
    """`Content-MD5`, and on request the SHA-256 in hex (else an empty string)."""
    md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return md5, hashlib.sha256(body).hexdigest() if with_sha256 else ""

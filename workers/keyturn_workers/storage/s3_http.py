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
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp
from aiobotocore.credentials import AioCredentials
from botocore.exceptions import BotoCoreError
from yarl import URL

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.storage.port import Lease
from keyturn_workers.storage.s3_responses import UnconfirmedError, code_of, error_of
from keyturn_workers.storage.s3_session import ConnectionLostError
from keyturn_workers.storage.signing import UNSIGNED_PAYLOAD, Signed, Signer, lease_from_now
from keyturn_workers.storage.streaming_body import KnownLengthBody

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


@contextmanager
def _told(operation: str) -> Iterator[None]:
    """Turn every failure of the way into the one error that leaves the outcome open."""
    try:
        yield
    except ConnectionLostError as exc:
        raise StorageUnavailableError(f"{operation}: {exc}") from exc
    except (aiohttp.ClientError, BotoCoreError, OSError) as exc:
        raise StorageUnavailableError(f"{operation}: {type(exc).__name__}") from exc


class S3HttpClient:
    """Sends signed requests for the keys of one bucket.

    Args:
        session: From `open_session`.
        base_url: The bucket's own URL, ending with a slash.
        bucket: Its name, for copy sources.
        region: For the signatures.
        credentials: Refreshed by botocore where they can be.
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
        self._is_private = base_url.startswith("https:")

    def copy_source(self, key: str) -> str:
        """This key as `x-amz-copy-source`, unpinned: a pinned one can revive a deleted key."""
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
        """Send one request with a body in memory, and read its whole answer.

        Args:
            operation: For the text of errors.
            method: In upper case.
            key: The object's.
            headers: What the request says; signed as they are.
            query: Percent-encoded already.
            body: Its MD5 is sent along, so that the storage checks what it received.
            lease: Bounds the request in time, at the storage and here (SPEC 8.4).
            timeout_s: For the whole request, unless a lease bounds it.

        Raises:
            StorageAnswerError: a definite refusal.
            StorageUnavailableError: the outcome is unknown.
        """
        sha256 = UNSIGNED_PAYLOAD if self._is_private else _EMPTY_SHA256
        if body:
            # Over plain http the signature is all that vouches for the body.
            with_sha256 = lease is None and not self._is_private
            if len(body) > _LARGE_BODY_BYTES:
                md5, hashed = await asyncio.to_thread(_hashes, body, with_sha256)
            else:
                md5, hashed = _hashes(body, with_sha256)
            headers["content-md5"] = md5
            sha256 = hashed or sha256
        with _told(operation):
            signed = await self._sign(method, key, query, headers, sha256, lease)
            total_s = timeout_s if lease is None else lease.expires_s
            response = await self._exchange(method, signed, body, total_s)
        if not 200 <= response.status < 300:  # noqa: PLR2004  # HTTP's own numbers; a redirect is no success
            raise _refusal(operation, method, response)
        return response

    @asynccontextmanager
    async def opened(
        self, operation: str, key: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """A GET whose body is still to be read; leaving closes the connection.

        Raises:
            StorageAnswerError: a definite refusal.
            StorageUnavailableError: no answer, or one of failure.
        """
        with _told(operation):
            signed = await self._sign("GET", key, "", headers, _EMPTY_SHA256, None)
            async with asyncio.timeout(CONNECT_TIMEOUT_S + READ_TIMEOUT_S):
                response = await self._send("GET", signed, b"", _READ_STREAM_TIMEOUT)
        try:
            if response.status >= 300:  # noqa: PLR2004  # as above
                with _told(operation):
                    answer = await response.content.read(_ERROR_BODY_BYTES)
                raise error_of(operation, response.status, code_of(answer))
            yield response
        finally:
            # Of a body read to its end the connection went back to the pool already.
            response.close()

    async def send_stream(
        self,
        operation: str,
        key: str,
        headers: dict[str, str],
        body: KnownLengthBody,
        *,
        lease: Lease | None,
    ) -> S3Response:
        """One PUT of known length in bounded memory.

        It waits for `100 Continue`, so that a late or forbidden one costs no body. Signed
        in its query where the hash of the body would be needed otherwise.

        Raises:
            StorageAnswerError: a definite refusal.
            StorageUnavailableError: the outcome is unknown, or no progress for 60 s.
            Exception: whatever the body's source raised, unchanged; nothing was stored.
        """
        if lease is None and not self._is_private:
            lease = lease_from_now(_STREAM_SIGNATURE_S)
        headers["content-length"] = str(body.size_bytes)
        try:
            with _told(operation):
                signed = await self._sign("PUT", key, "", headers, UNSIGNED_PAYLOAD, lease)
                # aiohttp's own timers do not see a server that stops reading.
                async with asyncio.timeout(IDLE_TIMEOUT_S) as idle:
                    response = await self._send(
                        "PUT", signed, body.watched(idle), _STREAM_TIMEOUT, expect100=True
                    )
                    answer = await response.read()
        except StorageUnavailableError:
            if body.failure is not None:
                raise body.failure from None  # the source's own error, not its echo
            raise
        if response.status >= 300:  # noqa: PLR2004  # as above
            response.close()
            raise error_of(operation, response.status, code_of(answer))
        return S3Response(response.status, response.headers, answer)

    async def presign(self, method: str, key: str, lease: Lease) -> str:
        """The URL of a request that somebody else will send, valid while the lease is."""
        with _told("presign"):
            return (await self._sign(method, key, "", {}, UNSIGNED_PAYLOAD, lease)).url

    async def _sign(
        self,
        method: str,
        key: str,
        query: str,
        headers: dict[str, str],
        payload_sha256: str,
        lease: Lease | None,
    ) -> Signed:
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
        self, method: str, signed: Signed, body: bytes, total_s: float
    ) -> S3Response:
        """Send a request with a body in memory, and read its whole response.

        A timeout or a cancellation closes the connection. Bytes not sent by then are dropped:
        they could take effect after the lease.
        """
        async with asyncio.timeout(total_s):
            response = await self._send(method, signed, body, _EXCHANGE_TIMEOUT)
            return S3Response(response.status, response.headers, await response.read())

    def _send(
        self,
        method: str,
        signed: Signed,
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
    operation: str, method: str, answer: S3Response
) -> StorageAnswerError | StorageUnavailableError:
    """The error that a refusal means."""
    code = code_of(answer.body)
    is_marker = answer.headers.get("x-amz-delete-marker") == "true"
    if method == "HEAD" and (answer.status == 404 or is_marker):  # noqa: PLR2004  # as above
        return UnconfirmedError(f"{operation}: {answer.status}")
    if is_marker and code == "MethodNotAllowed":
        # A delete marker that is read by its id: 405.
        return error_of(operation, 404, "NoSuchKey")
    return error_of(operation, answer.status, code)


def _hashes(body: bytes, with_sha256: bool) -> tuple[str, str]:  # noqa: FBT001  # to_thread
    """`Content-MD5`, and where wanted the SHA-256 in hex (else an empty text)."""
    md5 = b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
    return md5, hashlib.sha256(body).hexdigest() if with_sha256 else ""

"""Raw, signed requests to one bucket: the hot path of `keyturn_workers.storage.s3` (SPEC 7, 8.4).

Small requests go straight to aiohttp's connections (`storage.exchange`), streams and
large bodies through a session on the same pool: about a sixth of the CPU of the generated
client. A request is sent once and never again by itself: not after a redirect,
not after an error, and not by aiohttp's own second try when a kept-alive connection
drops. What was written may then be unknown, and is told as such; a silent second try of
a conditional put would meet its own first one and report a false "already there".

Nothing here may put a URL into an error, since it can hold a signature.
"""

import hashlib
import io
from asyncio import timeout, to_thread
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp
from aiobotocore.credentials import AioCredentials
from botocore.exceptions import BotoCoreError
from yarl import URL

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.storage.exchange import (
    CONNECT_TIMEOUT_S,
    READ_AHEAD_BYTES,
    READ_TIMEOUT_S,
    Answer,
    Exchange,
)
from keyturn_workers.storage.port import Lease
from keyturn_workers.storage.s3_responses import UnconfirmedError, code_of, error_of
from keyturn_workers.storage.signing import UNSIGNED_PAYLOAD, Signed, Signer, lease_from_now
from keyturn_workers.storage.streaming_body import KnownLengthBody

if TYPE_CHECKING:
    from botocore.credentials import ReadOnlyCredentials

PLAIN_WRITE_TIMEOUT_S: Final = 120.0
IDLE_TIMEOUT_S: Final = 60.0
# Below the patience of the servers, so that they seldom drop a connection under a write.
_KEEP_ALIVE_S: Final = 4.0
# How long a streamed put without a lease may wait for its connection.
_STREAM_SIGNATURE_S: Final = 300
_UNRESERVED: Final = "/-_.~"
_ERROR_BODY_BYTES: Final = 64 * 2**10
# Beyond this hashing would hold up the event loop, and aiohttp wants a file.
_LARGE_BODY_BYTES: Final = 2**20
_EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_AUTOMATIC_HEADERS: Final = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
_READ_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, connect=CONNECT_TIMEOUT_S, sock_read=READ_TIMEOUT_S
)
_STREAM_TIMEOUT: Final = aiohttp.ClientTimeout(
    total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=IDLE_TIMEOUT_S
)


class _LostError(Exception):
    """The connection failed; its text names the kind of failure alone."""


async def _surface_loss(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Turn a failure into an error that aiohttp does not know, so that it does not resend."""
    try:
        return await handler(request)
    except aiohttp.ClientError as exc:
        # Some of aiohttp's errors repeat the URL with its signature: the chain ends here.
        raise _LostError(type(exc).__name__) from None


@contextmanager
def _told(operation: str) -> Iterator[None]:
    """Turn every failure of the way into the one error that leaves the outcome open."""
    try:
        yield
    except _LostError as exc:
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
        if session.connector is None:
            raise ValueError("the session is closed")
        self._session = session
        self._exchange = Exchange(session.connector, base_url)
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
        timeout_s: float | None = None,
    ) -> Answer:
        """Send one request with a body in memory, and read its whole answer.

        Args:
            operation: For the text of errors.
            method: In upper case.
            key: The object's.
            headers: What the request says; signed as they are.
            query: Percent-encoded already.
            body: Its MD5 is sent along, so that the storage checks what it received.
            lease: Bounds the request in time, at the storage and here (SPEC 8.4).
            timeout_s: In total, where no lease says so.

        Raises:
            StorageAnswerError: a definite refusal.
            StorageUnavailableError: the outcome is unknown.
        """
        sha256 = UNSIGNED_PAYLOAD if self._is_private else _EMPTY_SHA256
        if body:
            large = len(body) > _LARGE_BODY_BYTES
            # Over plain http the signature is all that vouches for the body.
            plain = lease is None and not self._is_private
            md5, hashed = await to_thread(_hashes, body, plain) if large else _hashes(body, plain)
            headers["content-md5"] = md5
            sha256 = hashed or sha256
        with _told(operation):
            signed = await self._sign(method, key, query, headers, sha256, lease)
            total_s = timeout_s if lease is None else lease.expires_s
            if len(body) > _LARGE_BODY_BYTES:
                async with self._send(method, signed, body, _within(total_s)) as response:
                    answer = Answer(response.status, response.headers, await response.read())
            else:
                answer = await self._exchange.ask(method, signed, body, total_s=total_s)
        if not 200 <= answer.status < 300:  # noqa: PLR2004  # HTTP's own numbers; a redirect is no success
            raise _refusal(operation, method, answer)
        return answer

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
            response = await self._send("GET", signed, b"", _READ_TIMEOUT)
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
    ) -> Answer:
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
                async with timeout(IDLE_TIMEOUT_S) as idle:
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
        return Answer(response.status, response.headers, answer)

    async def presigned(self, method: str, key: str, lease: Lease) -> str:
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
        if isinstance(body, bytes) and body:
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
    operation: str, method: str, answer: Answer
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


def _within(total_s: float | None) -> aiohttp.ClientTimeout:
    if total_s is None:
        return _READ_TIMEOUT
    return aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_TIMEOUT_S)


@asynccontextmanager
async def open_session(max_connections: int) -> AsyncIterator[aiohttp.ClientSession]:
    """The one session of a storage: no resending, no cookies, nothing added to requests."""
    connector = aiohttp.TCPConnector(limit=max_connections, keepalive_timeout=_KEEP_ALIVE_S)
    async with aiohttp.ClientSession(
        connector=connector,
        middlewares=(_surface_loss,),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=_AUTOMATIC_HEADERS,
        read_bufsize=READ_AHEAD_BYTES,
        auto_decompress=False,  # a stored Content-Encoding is the object's own
    ) as session:
        yield session

"""S3 behind the port: raw requests where it is hot, aioboto3 where it is not (SPEC 8.2, 8.4, 10).

Reads are tried again for a few seconds; writes are sent once, since a resent conditional
write may meet its own first attempt. ETags are without quotes everywhere here, and
writes send `If-Match` so too, since Ceph's gateway takes no other there.
Tags around a copy are the caller's business.
"""

import hashlib
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote, urlsplit

import aiohttp
import stamina

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn.s3_client import new_session, open_client
from keyturn.settings import S3Settings
from keyturn_workers.errors import ArchivedError
from keyturn_workers.storage.capabilities import BASELINE, Capabilities
from keyturn_workers.storage.listing import page_of, page_query
from keyturn_workers.storage.port import (
    RECORD_MAX_BYTES,
    Condition,
    Headers,
    IfAbsent,
    IfMatch,
    Lease,
    ListingPage,
    ObjectHead,
    ObjectStream,
    Part,
    WriteResult,
)
from keyturn_workers.storage.s3_admin import S3Admin
from keyturn_workers.storage.s3_http import PLAIN_WRITE_TIMEOUT_S, S3HttpClient, S3Response
from keyturn_workers.storage.s3_responses import (
    LOCK_PREFIX,
    META_PREFIX,
    RangeBeyondError,
    UnconfirmedError,
    check_late_error,
    date_of,
    etag_in,
    etag_of,
    head_of,
    text_in,
)
from keyturn_workers.storage.s3_session import open_session
from keyturn_workers.storage.streaming_body import KnownLengthBody

if TYPE_CHECKING:
    from aiobotocore.credentials import AioCredentials
    from types_aiobotocore_s3.client import S3Client

_RETRIES_S: Final = 5.0
_RETRIES: Final = 3
_READ_TOTAL_S: Final = 60.0

# Where a lock is asked for, or the bucket locks by itself, S3 wants a digest of the body,
# also of one that is empty.
_EMPTY_MD5: Final = b64encode(hashlib.md5(b"", usedforsecurity=False).digest()).decode()

_T = TypeVar("_T")


async def _retried(call: Callable[[], Awaitable[_T]]) -> _T:
    """A read, tried again where the storage failed; the first try costs nothing extra."""
    try:
        return await call()
    except StorageUnavailableError:
        pass
    async for attempt in stamina.retry_context(
        on=StorageUnavailableError,
        attempts=_RETRIES,
        timeout=_RETRIES_S,
        wait_initial=0.05,
        wait_max=1.0,
        wait_jitter=0.2,
    ):
        with attempt:
            return await call()
    raise AssertionError("unreachable")  # stamina raises or returns


class S3Stream:
    """An object being read from an open response."""

    def __init__(
        self, head: ObjectHead, response: aiohttp.ClientResponse | None, left: int
    ) -> None:
        self.head = head
        self._response = response
        self._left_bytes = left

    async def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        """Pieces of exactly `size_bytes`, the last one shorter; with None as they come.

        Raises:
            StorageUnavailableError: the connection broke before the object's end.
        """
        if self._response is None:
            return
        content = self._response.content
        while self._left_bytes:
            try:
                if size_bytes is None:
                    # Uncut: what is cut to a length and joined again is copied each time.
                    piece = _present(await content.readany())[: self._left_bytes]
                else:
                    piece = await content.readexactly(min(size_bytes, self._left_bytes))
            except (aiohttp.ClientError, OSError, EOFError) as exc:
                raise StorageUnavailableError(f"stream: {type(exc).__name__}") from exc
            self._left_bytes -= len(piece)
            yield piece


def _present(piece: bytes) -> bytes:
    if not piece:
        raise EOFError
    return piece


class S3Storage(S3Admin):
    """One bucket. See `keyturn_workers.storage.port.Storage` for what each method promises."""

    def __init__(
        self, raw: S3HttpClient, client: "S3Client", bucket: str, capabilities: Capabilities
    ) -> None:
        super().__init__(client, bucket)
        self._raw = raw
        self.capabilities = capabilities

    async def read(
        self, key: str, *, max_bytes: int = RECORD_MAX_BYTES
    ) -> tuple[ObjectHead, bytes]:
        """A small object whole; of a larger one the beginning."""
        return await self.read_start(key, max_bytes)

    async def read_start(
        self, key: str, length_bytes: int, *, version_id: str | None = None
    ) -> tuple[ObjectHead, bytes]:
        """The head and the first bytes in one ranged read."""
        ranged = {"range": f"bytes=0-{length_bytes - 1}"}
        query = "" if version_id is None else f"versionId={quote(version_id, safe='-_.~')}"
        try:
            answer = await self._get("read", key, ranged, query)
        except RangeBeyondError:
            return await self._head(key, {}, query), b""
        return head_of("read", answer.headers), answer.body

    async def head(self, key: str) -> ObjectHead:
        """The head alone."""
        return await self._head(key, {})

    async def _head(self, key: str, headers: dict[str, str], query: str = "") -> ObjectHead:
        async def once() -> S3Response:
            return await self._raw.call("head", "HEAD", key, dict(headers), query=query)

        try:
            return head_of("head", (await _retried(once)).headers)
        except UnconfirmedError:
            return await self._confirmed(key, headers, query)

    async def _confirmed(self, key: str, headers: dict[str, str], query: str) -> ObjectHead:
        """The head by a ranged read, whose refusal names a code: a HEAD's 404 may be anybody's.

        Raises:
            MissingError: the storage itself says that nothing is there.
            StorageUnavailableError: it does not, or cannot tell.
        """
        try:
            answer = await self._get("head", key, {**headers, "range": "bytes=0-0"}, query)
        except (RangeBeyondError, ArchivedError) as exc:
            # It exists, as the HEAD said that it does not.
            raise StorageUnavailableError(f"head: 404, and {exc}") from exc
        return head_of("head", answer.headers)

    async def _get(
        self, operation: str, key: str, headers: dict[str, str], query: str = ""
    ) -> S3Response:
        async def once() -> S3Response:
            return await self._raw.call(
                operation, "GET", key, dict(headers), query=query, timeout_s=_READ_TOTAL_S
            )

        return await _retried(once)

    @asynccontextmanager
    async def stream(
        self,
        key: str,
        *,
        start: int = 0,
        length_bytes: int | None = None,
        if_match: str | None = None,
    ) -> AsyncIterator[ObjectStream]:
        """The object from byte `start` on; nothing where it starts at or behind the end."""
        headers = {} if if_match is None else {"if-match": f'"{if_match}"'}
        last = "" if length_bytes is None else start + length_bytes - 1
        partial = bool(start) or length_bytes is not None
        ranged = {**headers, "range": f"bytes={start}-{last}"} if partial else headers

        async def once() -> tuple[aiohttp.ClientResponse, _Closing]:
            opening = self._raw.opened("stream", key, dict(ranged))
            return await opening.__aenter__(), opening.__aexit__

        try:
            response, close = await _retried(once)
        except RangeBeyondError:
            yield S3Stream(await self._head(key, headers), None, 0)
            return
        try:
            head = head_of("stream", response.headers)
            # A server may answer a range with the whole object.
            if partial and response.status != 206:  # noqa: PLR2004  # HTTP's own number
                raise StorageUnavailableError("stream: range not honoured")
            left = head.size_bytes - start
            yield S3Stream(
                head, response, left if length_bytes is None else min(left, length_bytes)
            )
        finally:
            await close(None, None, None)

    async def presign_get(self, key: str, lease: Lease) -> str:
        """A URL by which whoever has it may GET the object until the lease is over."""
        return await self._raw.presign("GET", key, lease)

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """One put of bytes."""
        said = _request_headers(headers, condition)
        if not body:
            said["content-md5"] = _EMPTY_MD5
        answer = await self._raw.call(
            "put", "PUT", key, said, body=body, lease=lease, timeout_s=PLAIN_WRITE_TIMEOUT_S
        )
        return WriteResult(etag_of("put", answer.headers), date_of(answer.headers))

    async def put_stream(
        self,
        key: str,
        chunks: AsyncIterator[bytes],
        size_bytes: int,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """One put of known length in bounded memory."""
        said = _request_headers(headers, condition)
        body = KnownLengthBody(chunks, size_bytes)
        answer = await self._raw.send_stream("put", key, said, body, lease=lease)
        return WriteResult(etag_of("put", answer.headers), date_of(answer.headers))

    async def copy_onto_itself(
        self, key: str, headers: Headers, *, source_etag: str, lease: Lease
    ) -> None:
        """Replace an object's metadata and leave its body."""
        destination = (
            IfMatch(source_etag) if self.capabilities.conditional_copy_destination else None
        )
        await self.copy_conditionally(
            key, headers, source_etag=source_etag, destination=destination, lease=lease
        )

    async def copy_conditionally(
        self,
        key: str,
        headers: Headers,
        *,
        source_etag: str | None,
        destination: Condition | None,
        lease: Lease,
    ) -> None:
        """A self-copy with the conditions that are named; for the probe, and for the above."""
        said = _request_headers(headers, destination)
        said["x-amz-copy-source"] = self._raw.copy_source(key)
        said["x-amz-metadata-directive"] = "REPLACE"
        if source_etag is not None:
            said["x-amz-copy-source-if-match"] = source_etag
        if any(name.startswith(LOCK_PREFIX) for name in said):
            said["content-md5"] = _EMPTY_MD5
        answer = await self._raw.call("copy", "PUT", key, said, lease=lease)
        check_late_error("copy", answer.body, b"<CopyObjectResult")

    async def create_multipart(self, key: str, headers: Headers) -> str:
        """The id of a new multipart upload."""
        answer = await self._raw.call(
            "begin multipart",
            "POST",
            key,
            _request_headers(headers, None),
            query="uploads=",
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        return text_in("begin multipart", answer.body, "UploadId")

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytes) -> Part:
        """One part, 5 MiB or more but for the last."""
        answer = await self._raw.call(
            "put part",
            "PUT",
            key,
            {},
            query=_part_query(upload_id, number),
            body=body,
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        return Part(number, etag_of("put part", answer.headers))

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, first: int, last: int, source_etag: str
    ) -> Part:
        """Bytes `first` to `last` (both included) of the object itself as a part."""
        said = {
            "x-amz-copy-source": self._raw.copy_source(key),
            "x-amz-copy-source-range": f"bytes={first}-{last}",
            "x-amz-copy-source-if-match": source_etag,
        }
        answer = await self._raw.call(
            "copy part",
            "PUT",
            key,
            said,
            query=_part_query(upload_id, number),
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        check_late_error("copy part", answer.body, b"<CopyPartResult")
        return Part(number, etag_in("copy part", answer.body))

    async def complete_multipart(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """Make the parts the object."""
        answer = await self._raw.call(
            "complete multipart",
            "POST",
            key,
            {"content-type": "application/xml", **_condition_headers(condition)},
            query=f"uploadId={quote(upload_id, safe='-_.~')}",
            body=_completion(parts),
            lease=lease,
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        check_late_error("complete multipart", answer.body, b"<CompleteMultipartUploadResult")
        return WriteResult(etag_in("complete multipart", answer.body), date_of(answer.headers))

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        """One request of a listing, with the answer's `Date`."""
        answer = await self._get("list", "", {}, page_query(prefix, after))
        return page_of(answer.body, date_of(answer.headers))

    async def delete_if_match(self, key: str, etag: str) -> None:
        """A conditional delete; for the probe alone, since few servers honour it."""
        await self._raw.call(
            "delete", "DELETE", key, {"if-match": etag}, timeout_s=PLAIN_WRITE_TIMEOUT_S
        )


_Closing = Callable[[None, None, None], Awaitable[bool | None]]


def _request_headers(headers: Headers, condition: Condition | None) -> dict[str, str]:
    said = dict(headers.restated)
    if headers.content_type is not None:
        said["content-type"] = headers.content_type
    for name, value in headers.metadata.items():
        said[META_PREFIX + name] = value
    said.update(_condition_headers(condition))
    return said


def _condition_headers(condition: Condition | None) -> Mapping[str, str]:
    match condition:
        case None:
            return {}
        case IfAbsent():
            return {"if-none-match": "*"}
        case IfMatch(etag):
            return {"if-match": etag}


def _part_query(upload_id: str, number: int) -> str:
    return f"partNumber={number}&uploadId={quote(upload_id, safe='-_.~')}"


def _completion(parts: Sequence[Part]) -> bytes:
    rows = "".join(
        f'<Part><PartNumber>{part.number}</PartNumber><ETag>"{part.etag}"</ETag></Part>'
        for part in parts
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{namespace}">{rows}</CompleteMultipartUpload>'.encode()


async def _bucket_url(client: "S3Client", bucket: str) -> str:
    """Where the bucket is, by botocore's own rules (virtual host, region, partition, endpoint)."""
    signed = await client.generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": "k"}
    )
    parts = urlsplit(signed)
    return f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('k')}"


@asynccontextmanager
async def open_storage(
    settings: S3Settings,
    *,
    capabilities: Capabilities = BASELINE,
    max_connections: int = 128,
) -> AsyncIterator[S3Storage]:
    """The configured bucket, for the process's life.

    Args:
        settings: Where it is, and the keys.
        capabilities: As `keyturn_workers.storage.probe.runner` measured them.
        max_connections: The pool's size; at least the concurrency that is meant.

    Raises:
        SettingsError: no credentials anywhere in the standard AWS chain.
    """
    # The stubs miss that it is a coroutine.
    credentials: AioCredentials | None = await new_session(settings).get_credentials()  # type: ignore[misc]
    if credentials is None:
        raise SettingsError(
            "no S3 credentials: set KEYTURN_S3_ACCESS_KEY_ID and KEYTURN_S3_SECRET_ACCESS_KEY, "
            "or give them by the standard AWS chain"
        )
    async with (
        open_client(settings, max_connections=max_connections) as client,
        open_session(max_connections) as session,
    ):
        raw = S3HttpClient(
            session,
            base_url=await _bucket_url(client, settings.s3_bucket),
            bucket=settings.s3_bucket,
            region=settings.s3_region,
            credentials=credentials,
        )
        yield S3Storage(raw, client, settings.s3_bucket, capabilities)

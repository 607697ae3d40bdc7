"""S3 behind the port (SPEC 8.2, 8.4, 10).

Every request is signed and sent by `storage.s3_http`. Reads are retried for a few seconds. Writes
are sent once, since a resent conditional write may meet its own first attempt. Preserving tags
across a copy is up to the caller.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import quote

from keyturn.errors import StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn.tls import STORAGE, renewing_context
from keyturn_workers.core.errors import ArchivedError, MissingError
from keyturn_workers.core.storage_port import ObjectStream
from keyturn_workers.core.storage_values import (
    BASELINE,
    RECORD_MAX_BYTES,
    Capabilities,
    Condition,
    Headers,
    IfMatch,
    Lease,
    ObjectHead,
    Part,
    Versioning,
    WriteResult,
)
from keyturn_workers.storage.credentials import Credentials, CredentialSource
from keyturn_workers.storage.s3_connections import Exchange, open_pool
from keyturn_workers.storage.s3_http import (
    PLAIN_WRITE_TIMEOUT_S,
    RequestObserver,
    S3HttpClient,
    S3Response,
    observe_nothing,
)
from keyturn_workers.storage.s3_listings import S3Listings, with_retries
from keyturn_workers.storage.s3_wire import (
    EMPTY_MD5,
    LOCK_PREFIX,
    RangeNotSatisfiableError,
    UnconfirmedNotFoundError,
    check_embedded_error,
    completion_body,
    condition_headers,
    delete_marker_version,
    etag_header,
    object_headers,
    parse_date,
    parse_head,
    parse_tags,
    parse_versioning,
    part_query,
    tagging_body,
    text_element,
    upload_query,
    version_query,
)
from keyturn_workers.storage.streaming_body import KnownLengthBody
from keyturn_workers.storage.vendor_errors import translate_errors

_CUT_PUT_SETTLES_S: Final = 0.5


class S3Stream:
    """An object being read from an open exchange."""

    def __init__(self, head: ObjectHead, exchange: Exchange | None, left_bytes: int) -> None:
        self.head = head
        self._exchange = exchange
        self._left_bytes = left_bytes

    async def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        """Yield pieces of exactly `size_bytes`, the last one shorter; with None as they arrive.

        Raises:
            StorageUnavailableError: the connection broke before the object's end.
        """
        if self._exchange is None:
            return
        while self._left_bytes:
            with translate_errors("stream"):
                if size_bytes is None:
                    # As it arrives: cutting and joining would copy every byte.
                    piece = (await self._exchange.read_some())[: self._left_bytes]
                    is_short = not piece
                else:
                    wanted_bytes = min(size_bytes, self._left_bytes)
                    piece = await self._exchange.read_up_to(wanted_bytes)
                    is_short = len(piece) < wanted_bytes
            if is_short:
                raise StorageUnavailableError("stream: the body is too short")
            self._left_bytes -= len(piece)
            yield piece


class S3Storage(S3Listings):
    """One bucket. `keyturn_workers.core.storage_port.Storage` documents the methods."""

    async def read(
        self, key: str, *, max_bytes: int = RECORD_MAX_BYTES
    ) -> tuple[ObjectHead, bytes]:
        """Read a small object completely, or the beginning of a larger one."""
        return await self.read_start(key, max_bytes)

    async def read_start(
        self, key: str, length_bytes: int, *, version_id: str | None = None
    ) -> tuple[ObjectHead, bytes]:
        """Read the head and the first bytes in one ranged read."""
        ranged = {"range": f"bytes=0-{length_bytes - 1}"}
        query = version_query(version_id)
        try:
            response = await self._get("read", key, ranged, query)
        except RangeNotSatisfiableError:
            return await self._head(key, {}, query), b""
        except MissingError:
            if not self.capabilities.keys_are_paths:
                raise
            return await self._head_of_empty(key, query), b""
        return parse_head("read", response.headers), response.body

    async def _head_of_empty(self, key: str, query: str) -> ObjectHead:
        """Return the head of an empty object that a ranged read did not find.

        SeaweedFS responds 404 instead of 416 to such a read if other keys are below this one.
        Without this HEAD, a tombstone there would look like a missing object.

        Raises:
            MissingError: HEAD does not find it either.
            StorageUnavailableError: HEAD finds an object that is not empty.
        """

        async def once() -> S3Response:
            return await self._http.call("read", "HEAD", key, {}, query=query)

        try:
            head = parse_head("read", (await with_retries(once)).headers)
        except UnconfirmedNotFoundError as exc:
            raise MissingError("read: NoSuchKey") from exc
        if head.size_bytes:
            raise StorageUnavailableError("read: 404, but an object exists")
        return head

    async def head(self, key: str) -> ObjectHead:
        """Read only the head."""
        return await self._head(key, {})

    async def _head(self, key: str, headers: dict[str, str], query: str = "") -> ObjectHead:
        async def once() -> S3Response:
            return await self._http.call("head", "HEAD", key, dict(headers), query=query)

        try:
            return parse_head("head", (await with_retries(once)).headers)
        except UnconfirmedNotFoundError:
            return await self._head_by_read(key, headers, query)

    async def _head_by_read(self, key: str, headers: dict[str, str], query: str) -> ObjectHead:
        """Read the head with a ranged GET, whose errors have a code: a proxy may send a bare 404.

        Raises:
            MissingError: the storage itself reports that the object does not exist.
            StorageUnavailableError: the object exists, or the storage failed.
        """
        try:
            response = await self._get("head", key, {**headers, "range": "bytes=0-0"}, query)
        except (RangeNotSatisfiableError, ArchivedError) as exc:
            # The object exists, although the HEAD reported that it does not.
            raise StorageUnavailableError(f"head: 404, and {exc}") from exc
        return parse_head("head", response.headers)

    @asynccontextmanager
    async def stream(
        self,
        key: str,
        *,
        start: int = 0,
        length_bytes: int | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> AsyncIterator[ObjectStream]:
        """Open the object from byte `start` on; empty if `start` is at or past the end."""
        headers = {} if if_match is None else {"if-match": f'"{if_match}"'}
        last = "" if length_bytes is None else start + length_bytes - 1
        partial = bool(start) or length_bytes is not None
        ranged = {**headers, "range": f"bytes={start}-{last}"} if partial else headers
        query = version_query(version_id)

        async def once() -> tuple[Exchange, _Closing]:
            opening = self._http.open_get("stream", key, dict(ranged), query=query)
            return await opening.__aenter__(), opening.__aexit__

        try:
            exchange, close = await with_retries(once)
        except RangeNotSatisfiableError:
            yield S3Stream(await self._head(key, headers, query), None, 0)
            return
        try:
            head = parse_head("stream", exchange.headers)
            # A server may ignore the range and send the whole object.
            if partial and exchange.status != 206:  # noqa: PLR2004  # HTTP's own number
                raise StorageUnavailableError("stream: range not honored")
            left_bytes = head.size_bytes - start
            if length_bytes is not None:
                left_bytes = min(left_bytes, length_bytes)
            yield S3Stream(head, exchange, left_bytes)
        finally:
            await close(None, None, None)

    async def presign_get(self, key: str, lease: Lease) -> str:
        """Make a URL with which any HTTP client may GET the object while the lease lasts."""
        return await self._http.presign("GET", key, lease)

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """Store an object from bytes in memory."""
        request_headers = object_headers(headers, condition)
        if not body:
            request_headers["content-md5"] = EMPTY_MD5
        response = await self._http.call(
            "put",
            "PUT",
            key,
            request_headers,
            body=body,
            lease=lease,
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        return WriteResult(etag_header("put", response.headers), parse_date(response.headers))

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
        """Store an object of known length in bounded memory."""
        request_headers = object_headers(headers, condition)
        body = KnownLengthBody(chunks, size_bytes)
        response = await self._http.put_stream("put", key, request_headers, body, lease=lease)
        return WriteResult(etag_header("put", response.headers), parse_date(response.headers))

    async def put_cut_off(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        sent_bytes: int,
        condition: Condition | None,
        lease: Lease | None,
    ) -> None:
        """Send a put as `put` does, but close the connection within it; only for the probe.

        A server may store the bytes that it has a moment after the connection is gone.
        """
        request_headers = object_headers(headers, condition)
        with suppress(StorageUnavailableError):
            await self._http.put_cut_off(
                "put", key, request_headers, body, sent_bytes=sent_bytes, lease=lease
            )
        await asyncio.sleep(_CUT_PUT_SETTLES_S)

    async def copy_onto_itself(
        self, key: str, headers: Headers, *, source_etag: str, lease: Lease
    ) -> None:
        """Replace an object's metadata and keep its body."""
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
        """Copy an object onto itself with exactly these conditions; the probe needs all of them."""
        request_headers = object_headers(headers, destination)
        request_headers["x-amz-copy-source"] = self._http.copy_source(key)
        request_headers["x-amz-metadata-directive"] = "REPLACE"
        if source_etag is not None:
            request_headers["x-amz-copy-source-if-match"] = source_etag
        if any(name.startswith(LOCK_PREFIX) for name in request_headers):
            request_headers["content-md5"] = EMPTY_MD5
        response = await self._http.call("copy", "PUT", key, request_headers, lease=lease)
        check_embedded_error("copy", response.body, b"<CopyObjectResult")

    async def create_multipart(self, key: str, headers: Headers) -> str:
        """Create a multipart upload and return its id."""
        response = await self._http.call(
            "create multipart",
            "POST",
            key,
            object_headers(headers, None),
            query="uploads=",
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        return text_element("create multipart", response.body, "UploadId")

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytes) -> Part:
        """Store one part: at least 5 MiB, except for the last."""
        response = await self._http.call(
            "upload part",
            "PUT",
            key,
            {},
            query=part_query(upload_id, number),
            body=body,
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        return Part(number, etag_header("upload part", response.headers))

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, first: int, last: int, source_etag: str
    ) -> Part:
        """Store bytes `first` to `last` (inclusive) of the object itself as a part."""
        request_headers = {
            "x-amz-copy-source": self._http.copy_source(key),
            "x-amz-copy-source-range": f"bytes={first}-{last}",
            "x-amz-copy-source-if-match": source_etag,
        }
        response = await self._http.call(
            "copy part",
            "PUT",
            key,
            request_headers,
            query=part_query(upload_id, number),
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        check_embedded_error("copy part", response.body, b"<CopyPartResult")
        return Part(number, _etag_element("copy part", response.body))

    async def complete_multipart(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        """Make the parts an object."""
        response = await self._http.call(
            "complete multipart",
            "POST",
            key,
            {"content-type": "application/xml", **condition_headers(condition)},
            query=upload_query(upload_id),
            body=completion_body(parts),
            lease=lease,
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )
        check_embedded_error("complete multipart", response.body, b"<CompleteMultipartUploadResult")
        etag = _etag_element("complete multipart", response.body)
        return WriteResult(etag, parse_date(response.headers))

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload. A missing one is no error."""
        await self._delete("abort multipart", key, upload_query(upload_id))

    async def delete(self, key: str) -> None:
        """Delete an object. A missing one is no error."""
        await self._delete("delete", key)

    async def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version or delete marker for good. A missing one is no error."""
        await self._delete("delete version", key, version_query(version_id))

    async def delete_if_match(self, key: str, etag: str) -> str | None:
        """Delete an object that has this ETag; return the delete marker's version id, if any."""
        response = await self._http.call(
            "delete", "DELETE", key, {"if-match": etag}, timeout_s=PLAIN_WRITE_TIMEOUT_S
        )
        return delete_marker_version(response.headers)

    async def _delete(self, operation: str, key: str, query: str = "") -> None:
        with suppress(MissingError):
            await self._http.call(
                operation, "DELETE", key, {}, query=query, timeout_s=PLAIN_WRITE_TIMEOUT_S
            )

    async def read_tags(self, key: str) -> Mapping[str, str]:
        """Read an object's tags."""
        response = await self._get("read tags", key, {}, "tagging=")
        return parse_tags(response.body)

    async def write_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Replace an object's tags."""
        await self._http.call(
            "write tags",
            "PUT",
            key,
            {"content-type": "application/xml"},
            query="tagging=",
            body=tagging_body(tags),
            timeout_s=PLAIN_WRITE_TIMEOUT_S,
        )

    async def versioning(self) -> Versioning:
        """Return the bucket's versioning status; empty if it was never enabled."""
        response = await self._get("versioning", "", {}, "versioning=")
        return parse_versioning(response.body)

    async def purge(self, prefix: str) -> None:
        """Remove objects, all versions and open uploads under a prefix; only for the probe."""
        async for upload in self.list_multipart_uploads(prefix):
            await self.abort_multipart(upload.key, upload.upload_id)
        if await self.versioning():
            async for version in self.list_versions(prefix):
                await self.delete_version(version.key, version.version_id)
        async for row in self.list(prefix):
            await self.delete(row.key)


def _etag_element(operation: str, body: bytes) -> str:
    return text_element(operation, body, "ETag").strip('"')


_Closing = Callable[[None, None, None], Awaitable[bool | None]]


def _bucket_of(settings: S3Settings) -> tuple[str, CredentialSource] | None:
    """Return the bucket's URL and the credentials, if the settings have both."""
    endpoint, key_id = settings.s3_endpoint_url, settings.s3_access_key_id
    secret = settings.s3_secret_access_key
    if endpoint is None or key_id is None or secret is None:
        return None
    # A private endpoint seldom has a DNS name for each bucket, so the bucket is in the path.
    url = f"{endpoint.rstrip('/')}/{quote(settings.s3_bucket)}/"
    return url, Credentials(key_id, secret.get_secret_value())


async def _bucket_by_aws(
    settings: S3Settings, tls: ssl.SSLContext | None
) -> tuple[str, CredentialSource]:
    # A command that is given all of it does not wait for botocore.
    from keyturn_workers.storage.aws_chain import find_bucket  # noqa: PLC0415

    return await find_bucket(settings, tls)


@asynccontextmanager
async def open_storage(
    settings: S3Settings,
    *,
    capabilities: Capabilities = BASELINE,
    max_connections: int = 128,
    observe: RequestObserver = observe_nothing,
) -> AsyncIterator[S3Storage]:
    """Open the configured bucket for the life of the process.

    `capabilities` are as measured by `keyturn_workers.storage.probe.runner`. `max_connections` is
    at least the intended concurrency.

    Raises:
        SettingsError: the standard AWS chain has no credentials, or a file of certificates cannot
            be used.
    """
    files = (settings.s3_ca_file, settings.s3_cert_file, settings.s3_key_file)
    tls = renewing_context(STORAGE, *files) if any(files) else None
    base_url, credentials = _bucket_of(settings) or await _bucket_by_aws(settings, tls)
    async with open_pool(base_url, max_connections, tls=tls) as pool:
        http = S3HttpClient(
            pool,
            base_url=base_url,
            bucket=settings.s3_bucket,
            region=settings.s3_region,
            credentials=credentials,
            observe=observe,
        )
        yield S3Storage(http, capabilities)

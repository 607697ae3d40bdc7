"""S3 behind the port (SPEC 8.2, 8.4, 10).

What runs for each object is here, on signed HTTP requests (`storage.s3_http`); the rest is in
`storage.s3_admin`, on aioboto3. Reads are retried for a few seconds. Writes are sent once, since
a resent conditional write may meet its own first attempt. Tags around a copy are the caller's
business.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import aiohttp
import stamina

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn.identifiers import OWN_PREFIX
from keyturn.s3_client import new_session, open_client, storage_context
from keyturn.settings import S3Settings
from keyturn_workers.errors import ArchivedError, MissingError, RefusedError, StorageTlsError
from keyturn_workers.storage.capabilities import BASELINE, Capabilities
from keyturn_workers.storage.entries import (
    entries_query,
    is_after_all,
    is_longer_than_keys,
    last_key_before,
    page_within,
    parse_entries,
    start_after,
    without_early,
    without_folder_ending,
)
from keyturn_workers.storage.listing import page_query, parse_page, rows_after
from keyturn_workers.storage.listing_order import (
    Rows,
    find_order,
    find_order_by_listing,
    has_witness,
    page_or_order,
)
from keyturn_workers.storage.port import (
    PAGE_KEYS,
    RECORD_MAX_BYTES,
    Condition,
    EntriesPage,
    Headers,
    IfMatch,
    Lease,
    ListingPage,
    ObjectHead,
    ObjectStream,
    ObjectSummary,
    ObjectVersion,
    Part,
    WriteResult,
)
from keyturn_workers.storage.s3_admin import S3Admin
from keyturn_workers.storage.s3_http import PLAIN_WRITE_TIMEOUT_S, S3HttpClient, S3Response
from keyturn_workers.storage.s3_requests import (
    EMPTY_MD5,
    completion_body,
    condition_headers,
    object_headers,
    part_query,
    upload_query,
    version_query,
)
from keyturn_workers.storage.s3_responses import (
    LOCK_PREFIX,
    RangeNotSatisfiableError,
    UnconfirmedNotFoundError,
    check_embedded_error,
    etag_element,
    etag_header,
    parse_date,
    parse_head,
    text_element,
)
from keyturn_workers.storage.s3_session import open_session
from keyturn_workers.storage.segment_order import Entries, Fetch, SegmentOrder
from keyturn_workers.storage.streaming_body import KnownLengthBody
from keyturn_workers.storage.vendor_errors import may_pass, translate_errors
from keyturn_workers.storage.version_groups import VersionGroups

if TYPE_CHECKING:
    from aiobotocore.credentials import AioCredentials
    from types_aiobotocore_s3.client import S3Client

_RETRIES_S: Final = 5.0
_RETRIES: Final = 3
_READ_TOTAL_S: Final = 60.0
# A server may list nothing although more follows; so often in a row is an error.
_EMPTY_PAGES: Final = 100
_CUT_PUT_SETTLES_S: Final = 0.5

_T = TypeVar("_T")


async def _with_retries(call: Callable[[], Awaitable[_T]]) -> _T:
    """Run a read with retries while the storage fails; the first attempt costs nothing extra."""
    try:
        return await call()
    except StorageTlsError:
        raise
    except StorageUnavailableError:
        pass
    async for attempt in stamina.retry_context(
        on=may_pass,
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
        self, head: ObjectHead, response: aiohttp.ClientResponse | None, left_bytes: int
    ) -> None:
        self.head = head
        self._response = response
        self._left_bytes = left_bytes

    async def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        """Yield pieces of exactly `size_bytes`, the last one shorter; with None as they arrive.

        Raises:
            StorageUnavailableError: the connection broke before the object's end.
        """
        if self._response is None:
            return
        content = self._response.content
        while self._left_bytes:
            with translate_errors("stream"):
                if size_bytes is None:
                    # As it comes: cutting and joining would copy every byte.
                    piece = _not_empty(await content.readany())[: self._left_bytes]
                else:
                    piece = await content.readexactly(min(size_bytes, self._left_bytes))
            self._left_bytes -= len(piece)
            yield piece


def _not_empty(piece: bytes) -> bytes:
    if not piece:
        raise EOFError
    return piece


class S3Storage(S3Admin):
    """One bucket. See `keyturn_workers.storage.port.Storage` for what each method promises."""

    def __init__(
        self, http: S3HttpClient, client: "S3Client", bucket: str, capabilities: Capabilities
    ) -> None:
        super().__init__(client, bucket)
        self._http = http
        self.capabilities = capabilities
        self._versioned: bool | None = None

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
        """The head of an empty object that a ranged read did not find.

        SeaweedFS answers such a read 404 instead of 416 if other keys are below this one. Without
        this, a tombstone there would look like an object that is gone.

        Raises:
            MissingError: HEAD does not find it either.
            StorageUnavailableError: it finds one that is not empty.
        """

        async def once() -> S3Response:
            return await self._http.call("read", "HEAD", key, {}, query=query)

        try:
            head = parse_head("read", (await _with_retries(once)).headers)
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
            return parse_head("head", (await _with_retries(once)).headers)
        except UnconfirmedNotFoundError:
            return await self._head_by_read(key, headers, query)

    async def _head_by_read(self, key: str, headers: dict[str, str], query: str) -> ObjectHead:
        """Read the head with a ranged GET, whose errors have a code: a proxy may send a bare 404.

        Raises:
            MissingError: the storage itself reports that the object does not exist.
            StorageUnavailableError: it does not, or cannot.
        """
        try:
            response = await self._get("head", key, {**headers, "range": "bytes=0-0"}, query)
        except (RangeNotSatisfiableError, ArchivedError) as exc:
            # The object exists, although the HEAD reported that it does not.
            raise StorageUnavailableError(f"head: 404, and {exc}") from exc
        return parse_head("head", response.headers)

    async def _get(
        self, operation: str, key: str, headers: dict[str, str], query: str = ""
    ) -> S3Response:
        async def once() -> S3Response:
            return await self._http.call(
                operation, "GET", key, dict(headers), query=query, timeout_s=_READ_TOTAL_S
            )

        return await _with_retries(once)

    @asynccontextmanager
    async def stream(
        self,
        key: str,
        *,
        start: int = 0,
        length_bytes: int | None = None,
        if_match: str | None = None,
    ) -> AsyncIterator[ObjectStream]:
        """Open the object from byte `start` on; nothing if `start` is at or past the end."""
        headers = {} if if_match is None else {"if-match": f'"{if_match}"'}
        last = "" if length_bytes is None else start + length_bytes - 1
        partial = bool(start) or length_bytes is not None
        ranged = {**headers, "range": f"bytes={start}-{last}"} if partial else headers

        async def once() -> tuple[aiohttp.ClientResponse, _Closing]:
            opening = self._http.open_get("stream", key, dict(ranged))
            return await opening.__aenter__(), opening.__aexit__

        try:
            response, close = await _with_retries(once)
        except RangeNotSatisfiableError:
            yield S3Stream(await self._head(key, headers), None, 0)
            return
        try:
            head = parse_head("stream", response.headers)
            # A server may ignore the range and send the whole object.
            if partial and response.status != 206:  # noqa: PLR2004  # HTTP's own number
                raise StorageUnavailableError("stream: range not honored")
            left_bytes = head.size_bytes - start
            if length_bytes is not None:
                left_bytes = min(left_bytes, length_bytes)
            yield S3Stream(head, response, left_bytes)
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
        """Send a put as `put` does, and close the connection within it; only for the probe.

        A server may store what it has a moment after the connection is gone.
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
        return Part(number, etag_element("copy part", response.body))

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
        return WriteResult(
            etag_element("complete multipart", response.body), parse_date(response.headers)
        )

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        """Read one page of a listing, with the response's `Date`."""
        response = await self._get("list", "", {}, page_query(prefix, after))
        return parse_page(response.body, parse_date(response.headers))

    def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """List the objects under a prefix, in the byte order of their keys."""
        by_segment = self.capabilities.listings_by_segment
        if by_segment is not False and (wide := without_folder_ending(prefix)) != prefix:
            return self._list_within(wide, prefix, after, limit)
        match by_segment:
            case None:
                return self._list_in_unknown_order(prefix, after, limit)
            case True:
                size = PAGE_KEYS if limit is None else min(limit, PAGE_KEYS)
                return self._objects_in_byte_order(prefix, after, limit, size)
            case False:
                return super().list(prefix, after=after, limit=limit)

    async def _list_within(
        self, wide: str, prefix: str, after: str, limit: int | None
    ) -> AsyncIterator[ObjectSummary]:
        """List a wider prefix, and keep only the keys that have this one."""
        start = max(after, last_key_before(prefix))
        async for row in self.list(wide, after=start, limit=limit):
            if not row.key.startswith(prefix):
                return
            yield row

    async def _list_in_unknown_order(
        self, prefix: str, after: str, limit: int | None
    ) -> AsyncIterator[ObjectSummary]:
        """List pages that are correct in either order, and the rest once the order is known."""
        start: str | None = None if is_after_all(prefix, after) else after
        while start is not None and (limit is None or limit > 0):
            size = PAGE_KEYS if limit is None else min(limit, PAGE_KEYS)
            page = await self._page_in_unknown_order(prefix, "", start, size)
            if page is None:
                async for row in self.list(prefix, after=start, limit=limit):
                    yield row
                return
            for row in page.objects:
                yield row
            start = page.next_after
            limit = None if limit is None else limit - len(page.objects)

    async def _page_in_unknown_order(
        self, prefix: str, delimiter: str, after: str, limit: int
    ) -> EntriesPage | None:
        """Read a page that is correct in either order; None if the order is known now."""
        if self.capabilities.listings_by_segment is not None:
            return None
        start = start_after(prefix, delimiter, after)

        async def read() -> EntriesPage:
            return (await self._read_entries(prefix, delimiter, start, limit, after))[0]

        fetch = self._fetch_in_segments("")
        found = await page_or_order(read, fetch, prefix, after if start else "")
        if isinstance(found, EntriesPage):
            return found
        self._set_order(by_segment=found)
        return None

    def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        """List the versions and delete markers under a prefix; for one key the newest first."""
        match self.capabilities.listings_by_segment:
            case None:
                return self._list_versions_in_unknown_order(prefix, after, limit)
            case True:
                rows = VersionGroups(self.versions_page).versions(prefix, after)
                return rows_after(rows, after, limit)
            case False:
                return super().list_versions(prefix, after=after, limit=limit)

    async def _list_versions_in_unknown_order(
        self, prefix: str, after: str, limit: int | None
    ) -> AsyncIterator[ObjectVersion]:
        """List versions if one page has them all; otherwise find out the order from objects."""
        page, truncated = await self.versions_page(prefix, after, "", "")
        if truncated or after:

            async def read_again() -> Rows:
                return _existing((await self.versions_page(prefix, after, "", ""))[0])

            fetch = self._fetch_in_segments("")
            order = await find_order(_existing(page), read_again, fetch, prefix)
            if order is None:
                order = await self._find_order_elsewhere(prefix)
            if order is not None:
                self._set_order(by_segment=order)
                rows = self.list_versions(prefix, after=after, limit=limit)
            else:
                rows = rows_after(self._list_versions_in_any_order(prefix, after), after, limit)
            async for row in rows:
                yield row
            return
        for row in [row for row in page if row.key.startswith(prefix)][:limit]:
            yield row

    async def _list_versions_in_any_order(
        self, prefix: str, after: str
    ) -> AsyncGenerator[ObjectVersion, None]:
        """List versions if no object shows the order; deleted keys may still depend on it."""
        by_bytes = super().list_versions(prefix, after=after)
        of_one_key: list[ObjectVersion] = []
        if not has_witness([after], prefix):
            async for row in by_bytes:
                if has_witness([row.key], prefix):
                    break
                if of_one_key and row.key != of_one_key[0].key:
                    for version in of_one_key:
                        yield version
                    after, of_one_key = of_one_key[0].key, []
                if row.key.startswith(prefix):
                    of_one_key.append(row)
            else:
                for version in of_one_key:
                    yield version
                return
        async for row in VersionGroups(self.versions_page).versions(prefix, after):
            yield row

    async def _find_order_elsewhere(self, prefix: str) -> bool | None:
        for listed in (OWN_PREFIX, prefix):
            # Credentials for one project may be refused a listing of Keyturn's own folder.
            with suppress(RefusedError):
                wide = without_folder_ending(listed)
                order = await find_order_by_listing(self._fetch_in_segments(""), wide)
                if order is not None:
                    return order
        return None

    def _set_order(self, *, by_segment: bool) -> None:
        self.capabilities = replace(self.capabilities, listings_by_segment=by_segment)

    async def _objects_in_byte_order(
        self, prefix: str, after: str, limit: int | None, page_size: int
    ) -> AsyncIterator[ObjectSummary]:
        order = await self._segment_order("", page_size)
        async for row in order.objects(prefix, after, limit):
            yield row

    async def _segment_order(self, delimiter: str, page_size: int) -> SegmentOrder:
        if self._versioned is None:
            self._versioned = bool(await self.versioning())
        return SegmentOrder(
            self._fetch_in_segments(delimiter),
            delimiter=delimiter,
            page_size=page_size,
            versioned=self._versioned,
        )

    def _fetch_in_segments(self, delimiter: str) -> Fetch:
        async def fetch(prefix: str, start: str, limit: int) -> tuple[Entries, str]:
            if is_longer_than_keys(prefix):
                # The folder of a name to start after, which is often the last possible one.
                return {}, ""
            page, marker = await self._read_entries(prefix, delimiter, start, limit)
            objects: dict[str, ObjectSummary | None] = {row.key: row for row in page.objects}
            following = "" if page.next_after is None else marker or page.next_after
            return objects | dict.fromkeys(page.prefixes), following

        return fetch

    async def list_entries(
        self, prefix: str, *, delimiter: str = "", after: str = "", limit: int = PAGE_KEYS
    ) -> EntriesPage:
        """Read one page of entries, or the first of several that is not empty."""
        if is_after_all(prefix, after):
            return EntriesPage((), (), None)
        wide = without_folder_ending(prefix)
        if wide != prefix and self.capabilities.listings_by_segment is not False:
            start = max(after, last_key_before(prefix))
            page = await self.list_entries(wide, delimiter=delimiter, after=start, limit=limit)
            return page_within(page, prefix)
        right = await self._page_in_unknown_order(prefix, delimiter, after, limit)
        if right is not None:
            return right
        if self.capabilities.listings_by_segment:
            size = min(limit + 1, PAGE_KEYS)  # one more shows whether any follow
            order = await self._segment_order(delimiter, size)
            return await order.page(prefix, after, limit)
        start = start_after(prefix, delimiter, after)
        return (await self._read_entries(prefix, delimiter, start, limit, after))[0]

    async def _read_entries(
        self, prefix: str, delimiter: str, start: str, limit: int, after: str = ""
    ) -> tuple[EntriesPage, str]:
        """Read one page in the server's order, without entries up to `after`, and its marker."""
        token = ""
        for _ in range(_EMPTY_PAGES):
            query = entries_query(prefix, delimiter, limit, start=start, token=token)
            response = await self._get("list", "", {}, query)
            listed, token = parse_entries(response.body, prefix)
            page = without_early(listed, after)
            if page.objects or page.prefixes or page.next_after is None:
                return page, token
            if not token:
                break
        raise StorageUnavailableError("list: no progress")

    async def delete_if_match(self, key: str, etag: str) -> None:
        """Delete conditionally; only for the probe, since few servers honor the condition."""
        await self._http.call(
            "delete", "DELETE", key, {"if-match": etag}, timeout_s=PLAIN_WRITE_TIMEOUT_S
        )


def _existing(versions: Sequence[ObjectVersion]) -> Rows:
    """The latest versions that are not delete markers: what a listing of objects shows."""
    return {row.key: row for row in versions if row.is_latest and not row.is_delete_marker}


_Closing = Callable[[None, None, None], Awaitable[bool | None]]


async def _bucket_url(client: "S3Client", bucket: str) -> str:
    """The bucket's URL by botocore's rules (virtual host, region, partition, endpoint)."""
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
    http_client: type[S3HttpClient] = S3HttpClient,
    on_client: Callable[["S3Client"], None] | None = None,
) -> AsyncIterator[S3Storage]:
    """Open the configured bucket for the life of the process.

    Args:
        settings: The bucket and its credentials.
        capabilities: As measured by `keyturn_workers.storage.probe.runner`.
        max_connections: The size of the pool; at least the intended concurrency.
        http_client: Sends what runs for each object.
        on_client: Called with the client that sends the rest.

    Raises:
        SettingsError: the standard AWS chain has no credentials, or a file of certificates cannot
            be used.
    """
    tls = storage_context(settings)
    # The stubs do not know that this is a coroutine.
    credentials: AioCredentials | None = await new_session(settings).get_credentials()  # type: ignore[misc]
    if credentials is None:
        raise SettingsError(
            "no S3 credentials: set KEYTURN_S3_ACCESS_KEY_ID and KEYTURN_S3_SECRET_ACCESS_KEY, "
            "or provide credentials through the standard AWS chain"
        )
    async with (
        open_client(settings, max_connections=max_connections, tls=tls) as client,
        open_session(max_connections, tls=tls or True) as session,
    ):
        if on_client is not None:
            on_client(client)
        http = http_client(
            session,
            base_url=await _bucket_url(client, settings.s3_bucket),
            bucket=settings.s3_bucket,
            region=settings.s3_region,
            credentials=credentials,
        )
        yield S3Storage(http, client, settings.s3_bucket, capabilities)

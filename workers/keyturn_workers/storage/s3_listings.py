"""The listings of one bucket, in the server's order (SPEC 8.4, 8.5, 10).

Reads are retried for a few seconds. A listing of objects continues after the last entry in the
server's order, so it is complete in either order, even if the order was not measured.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

import stamina

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import byte_order, path_order
from keyturn_workers.core.errors import RefusedError, StorageTlsError
from keyturn_workers.core.storage_values import (
    PAGE_KEYS,
    Capabilities,
    EntriesPage,
    ListingPage,
    MultipartUpload,
    ObjectSummary,
    ObjectVersion,
)
from keyturn_workers.storage.listing import (
    ServerPage,
    entry_of,
    last_key_below,
    objects_query,
    parse_entries,
    parse_etags,
    parse_uploads,
    parse_versions,
    start_after,
    uploads_query,
    versions_query,
)
from keyturn_workers.storage.s3_http import S3HttpClient, S3Response
from keyturn_workers.storage.s3_wire import parse_date
from keyturn_workers.storage.vendor_errors import may_pass

_RETRIES_S: Final = 5.0
_RETRIES: Final = 3
_READ_TOTAL_S: Final = 60.0
# A server may list nothing although more follows; this many times in a row is an error.
_EMPTY_PAGES: Final = 100
# Keys in which every character is encoded take a tenth of a second to decode.
_LARGE_PAGE_BYTES: Final = 2**20

_T = TypeVar("_T")


async def with_retries(call: Callable[[], Awaitable[_T]]) -> _T:
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


class S3Listings:
    """The listings of a storage. `core.storage_port.Storage` documents the methods."""

    def __init__(self, http: S3HttpClient, capabilities: Capabilities) -> None:
        self._http = http
        self.capabilities = capabilities

    async def _get(
        self, operation: str, key: str, headers: dict[str, str], query: str = ""
    ) -> S3Response:
        async def once() -> S3Response:
            return await self._http.call(
                operation, "GET", key, dict(headers), query=query, timeout_s=_READ_TOTAL_S
            )

        return await with_retries(once)

    async def _get_page(self, operation: str, query: str, parse: Callable[[bytes], _T]) -> _T:
        body = (await self._get(operation, "", {}, query)).body
        if len(body) < _LARGE_PAGE_BYTES:
            return parse(body)
        return await asyncio.to_thread(parse, body)

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        """Read one page of a listing, with the response's `Date`."""
        response = await self._get("list", "", {}, objects_query(prefix, PAGE_KEYS, start=after))
        return parse_etags(response.body, parse_date(response.headers))

    async def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """List the objects under a prefix, in the server's order."""
        left = limit
        following: str | None = after
        while following is not None and (left is None or left > 0):
            size = PAGE_KEYS if left is None else min(left, PAGE_KEYS)
            page = await self.list_entries(prefix, after=following, limit=size)
            for row in page.objects:
                yield row
            following = page.next_after
            left = None if left is None else left - len(page.objects)

    async def list_entries(
        self, prefix: str, *, delimiter: str = "", after: str = "", limit: int = PAGE_KEYS
    ) -> EntriesPage:
        """Read one page of entries, or the first of several that is not empty."""
        if not after.startswith(prefix):
            if self.capabilities.order(after) > self.capabilities.order(prefix):
                return EntriesPage((), (), None)
            after = ""
        entry = entry_of(after, prefix, delimiter)
        if entry and not entry.endswith("/"):
            await self._find_order(entry)
            folder = f"{entry}/"
            if delimiter and self.capabilities.lists_by_path and await self._has_any(folder):
                return EntriesPage((), (folder,), folder)  # the server would leave it out
        start, token = start_after(prefix, delimiter, entry, self.capabilities.order), ""
        for _ in range(_EMPTY_PAGES):
            page = await self._read_entries(prefix, delimiter, limit, start=start, token=token)
            following = await self._last_entry(page, limit)
            objects = [row for row in page.objects if row.key != entry]
            prefixes = [folder for folder in page.prefixes if folder != entry]
            if following is None or ((objects or prefixes) and following != entry):
                return EntriesPage(objects, prefixes, following)
            token = page.token
            if not token:
                break
        raise StorageUnavailableError("list: no progress")

    async def _read_entries(
        self, prefix: str, delimiter: str, limit: int, *, start: str = "", token: str = ""
    ) -> ServerPage:
        query = objects_query(prefix, limit, delimiter=delimiter, start=start, token=token)
        return await self._get_page("list", query, lambda body: parse_entries(body, prefix))

    async def _has_any(self, prefix: str) -> bool:
        return bool((await self._read_entries(prefix, "", 1)).objects)

    async def _last_entry(self, page: ServerPage, limit: int) -> str | None:
        """Return the entry to continue after; None if none follows."""
        by_bytes, by_path = page.last_entry(byte_order), page.last_entry(path_order)
        if page.is_last:
            # SeaweedFS ends a listing after a full page, if only keys below its last object follow.
            is_full = len(page.objects) + len(page.prefixes) == limit
            may_hide = self.capabilities.lists_by_path is not False and not by_path.endswith("/")
            return by_path if is_full and may_hide and await self._has_any(f"{by_path}/") else None
        if by_bytes != by_path:
            await self._find_order(by_bytes.removesuffix("/"))
        return by_path if self.capabilities.lists_by_path else by_bytes

    async def _find_order(self, folder: str) -> None:
        """If the order was not measured, find it out by the keys below this name, if there are any.

        In byte order, these keys follow all names that begin with `a.`; in path order they come
        before those. A key that is not shown there proves that only if it existed meanwhile.
        """
        below = f"{folder}/"
        while folder and self.capabilities.lists_by_path is None:
            before = (await self._read_entries(below, "", 1)).objects
            if not before:
                return
            parent, start = folder[: folder.rfind("/") + 1], last_key_below(f"{folder}.")
            shown = (await self._read_entries(parent, "", 1, start=start)).objects
            by_bytes = bool(shown) and shown[0].key.startswith(below)
            if by_bytes or before == (await self._read_entries(below, "", 1)).objects:
                self.capabilities = replace(self.capabilities, lists_by_path=not by_bytes)

    async def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        """List the versions and delete markers under a prefix; for one key the newest first."""
        with suppress(RefusedError):  # these credentials may be for this prefix alone
            await self._find_order(prefix.rpartition("/")[0])
        if self.capabilities.lists_by_path:
            raise StorageUnavailableError("list versions: not in byte order")
        left = limit
        following: tuple[str, str] | None = (after, "")
        while following is not None and (left is None or left > 0):
            size = PAGE_KEYS if left is None else min(left, PAGE_KEYS)
            page = await self._get_page(
                "list versions",
                versions_query(prefix, size, *following),
                lambda body: parse_versions(body, prefix),
            )
            # Some servers start in the middle of the key that was to be skipped.
            rows = [row for row in page.rows if row.key > after][:left]
            for row in rows:
                yield row
            if page.following == following:
                raise StorageUnavailableError("list versions: no progress")
            following = page.following
            left = None if left is None else left - len(rows)

    async def list_multipart_uploads(self, prefix: str) -> AsyncIterator[MultipartUpload]:
        """List the open multipart uploads under a prefix."""
        following: tuple[str, str] | None = ("", "")
        while following is not None:
            page = await self._get_page(
                "list multiparts", uploads_query(prefix, *following), parse_uploads
            )
            for row in page.rows:
                yield row
            # A key that no XML can name could lead back to the start of this page.
            following = None if page.following == following else page.following

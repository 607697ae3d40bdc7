"""Storages in memory that break one promise each."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.core.storage_values import (
    RECORD_MAX_BYTES,
    Capabilities,
    Headers,
    IfAbsent,
    IfMatch,
)
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from keyturn_workers.core.storage_values import (
        Condition,
        Lease,
        ListingPage,
        ObjectHead,
        ObjectSummary,
        Part,
        WriteResult,
    )


EVERYTHING = Capabilities(
    conditional_completion=True,
    conditional_copy_destination=True,
    copy_keeps_tags=True,
    listings_show_overwrites=True,
    late_writes_refused=True,
    lists_by_path=False,
)


# What a bucket in memory does whatever its capabilities.
ALWAYS = Capabilities(listings_show_overwrites=True, late_writes_refused=True, lists_by_path=False)


class ListsLate(MemoryStorage):
    """Its listings show a body by the ETag of the one before."""

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        page = await super().list_page(prefix, after=after)
        shown = {key: self._seen.get(key, etag) for key, etag in page.etags.items()}
        self._seen = dict(page.etags)
        return replace(page, etags=shown)

    _seen: dict[str, str] = {}  # noqa: RUF012  # replaced, never changed


class IgnoresIfAbsent(MemoryStorage):
    """Creates over what exists."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        kept = None if isinstance(condition, IfAbsent) else condition
        return await super().put(key, body, headers, condition=kept, lease=lease)


class IgnoresIfMatch(MemoryStorage):
    """Replaces whatever exists."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        kept = None if isinstance(condition, IfMatch) else condition
        return await super().put(key, body, headers, condition=kept, lease=lease)


class ChecksThenStores(MemoryStorage):
    """Honors conditions one request at a time, and lets two at once through."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        self._check(key, condition)
        await asyncio.sleep(0)
        return await super().put(key, body, headers, lease=lease)


class DeletesAnyway(MemoryStorage):
    """Looks at no ETag before it deletes."""

    async def delete_if_match(self, key: str, etag: str) -> str | None:
        del etag
        await self.delete(key)
        return None


class OverwritesOnFailure(MemoryStorage):
    """Returns an error to the losers of a race, but stores their bodies."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        try:
            return await super().put(key, body, headers, condition=condition, lease=lease)
        except Exception as exc:
            if len(body) > 1000:  # a body of the races
                await super().put(key, body, headers)
            raise StorageUnavailableError("put: InternalError") from exc


class ShowsDeleted(MemoryStorage):
    """Lists what was deleted."""

    def __init__(self) -> None:
        super().__init__()
        self._deleted: list[ObjectSummary] = []

    async def delete(self, key: str) -> None:
        self._deleted = [row async for row in super().list(key)]
        await super().delete(key)

    async def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        async for row in super().list(prefix, after=after, limit=limit):
            yield row
        for row in self._deleted:
            yield row


class ReadsStale(MemoryStorage):
    """Answers each read with the first body that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, tuple[ObjectHead, bytes]] = {}

    async def read(
        self, key: str, *, max_bytes: int = RECORD_MAX_BYTES
    ) -> tuple[ObjectHead, bytes]:
        return self._seen.setdefault(key, await super().read(key, max_bytes=max_bytes))


class KeepsMetadata(MemoryStorage):
    """Copies without replacing anything."""

    async def copy_conditionally(
        self,
        key: str,
        headers: Headers,
        *,
        source_etag: str | None,
        destination: Condition | None,
        lease: Lease,
    ) -> None:
        old = (await super().head(key)).headers
        await super().copy_conditionally(
            key, old, source_etag=source_etag, destination=destination, lease=lease
        )
        assert headers is not None


class StoresCutPuts(MemoryStorage):
    """Stores what arrived of a body whose connection broke, as SeaweedFS may."""

    def __init__(self, *, streamed: bool = False, from_bytes: int = 0) -> None:
        super().__init__()
        self._streamed = streamed
        self._from_bytes = from_bytes

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
        if not self._streamed and sent_bytes >= self._from_bytes:
            await self.put(key, body[:sent_bytes], headers, condition=condition, lease=lease)

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
        arrived = b""
        try:
            async for chunk in chunks:
                arrived += chunk
            assert len(arrived) == size_bytes
        except Exception:
            if self._streamed and len(arrived) >= self._from_bytes:
                await self.put(key, arrived, headers, condition=condition)
            raise
        return await self.put(key, arrived, headers, condition=condition, lease=lease)


class KeysArePaths(MemoryStorage):
    """Keeps objects as files: a backslash is a slash, and a name is a file or a folder."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        path = _path(key)
        folders = [path[:at] for at in range(len(path)) if path[at] == "/"]
        stored = self.stored_keys()
        if any(name in folders or name.startswith(f"{path}/") for name in stored):
            raise PreconditionError("put: PreconditionFailed")
        if any(len(segment) > _FILE_NAME for segment in path.split("/")):
            raise StorageUnavailableError("put: InternalError")
        return await super().put(path, body, headers, condition=condition, lease=lease)

    async def read(
        self, key: str, *, max_bytes: int = RECORD_MAX_BYTES
    ) -> tuple[ObjectHead, bytes]:
        return await super().read(_path(key), max_bytes=max_bytes)


_FILE_NAME = 255


def _path(key: str) -> str:
    return "/".join(filter(None, key.replace("\\", "/").split("/")))


class HidesNames(MemoryStorage):
    """Has folders of its own among the objects, which no listing shows."""

    async def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        async for row in super().list(prefix, after=after, limit=limit):
            if ".versions/" not in row.key:
                yield row


class ListsByPath(MemoryStorage):
    """Sorts keys by one folder after the other, and resumes in that order."""

    def __init__(self, *, versioned: bool = False) -> None:
        super().__init__(capabilities=Capabilities(lists_by_path=True), versioned=versioned)


class ResumesLate(MemoryStorage):
    """Skips the key behind the one that it should resume after."""

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        page = await super().list_page(prefix, after=after)
        return replace(page, etags=dict(list(page.etags.items())[1 if after else 0 :]))


class ListsFew(MemoryStorage):
    """Leaves out the last key of each listing."""

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        page = await super().list_page(prefix, after=after)
        return replace(page, etags=dict(list(page.etags.items())[:-1]))


class LosesParts(MemoryStorage):
    """Completes with the first part alone."""

    async def complete_multipart(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[Part],
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        return await super().complete_multipart(
            key, upload_id, parts[:1], condition=condition, lease=lease
        )


class TakesLateWrites(MemoryStorage):
    """Looks at no signature's time, in one of the three kinds of write or in all."""

    def __init__(self, *operations: str) -> None:
        super().__init__()
        self.operations = operations

    @asynccontextmanager
    async def _acting(self, operation: str, lease: Lease | None = None) -> AsyncIterator[None]:
        kept = None if operation in self.operations else lease
        async with super()._acting(operation, kept):
            yield

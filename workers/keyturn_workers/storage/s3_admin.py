"""The administrative half of the S3 storage: listings, tags, versions and deletes, by aioboto3.

What does not run for each object, and has XML to parse, goes through the generated client.
Errors and retries are those of `keyturn_workers.storage.s3`.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import stamina

from keyturn_workers.errors import MissingError
from keyturn_workers.storage.listing import (
    BEFORE_PARSING,
    parse_versions,
    rows_after,
    sanitize_listing,
)
from keyturn_workers.storage.port import (
    PAGE_KEYS,
    MultipartUpload,
    ObjectSummary,
    ObjectVersion,
    Versioning,
)
from keyturn_workers.storage.vendor_errors import may_pass, translate_errors

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

_PAGE_KEYS: Final = PAGE_KEYS
_READ_ATTEMPTS: Final = 4
_READ_TOTAL_S: Final = 5.0

_T = TypeVar("_T")


async def _call(operation: str, call: Callable[..., Awaitable[_T]], **parameters: Any) -> _T:
    """Call the client once."""
    with translate_errors(operation):
        return await call(**parameters)


@stamina.retry(
    on=may_pass,
    attempts=_READ_ATTEMPTS,
    timeout=_READ_TOTAL_S,
    wait_initial=0.05,
    wait_max=1.0,
    wait_jitter=0.2,
)
async def _read(operation: str, call: Callable[..., Awaitable[_T]], **parameters: Any) -> _T:
    """Call the client for a read, with retries while the storage fails."""
    return await _call(operation, call, **parameters)


def _page_keys(limit: int | None) -> int:
    return _PAGE_KEYS if limit is None else max(1, min(limit, _PAGE_KEYS))


class S3Admin:
    """The operations of an S3 storage that do not run for each object."""

    def __init__(self, client: "S3Client", bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        client.meta.events.register_first(BEFORE_PARSING, sanitize_listing)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload. A missing one is no error."""
        with suppress(MissingError):
            await _call(
                "abort multipart",
                self._client.abort_multipart_upload,
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
            )

    async def list_multipart_uploads(self, prefix: str) -> AsyncIterator[MultipartUpload]:
        """List the open multipart uploads under a prefix."""
        marker: dict[str, Any] = {}
        while True:
            page = await _read(
                "list multiparts",
                self._client.list_multipart_uploads,
                Bucket=self._bucket,
                Prefix=prefix,
                **marker,
            )
            for row in page.get("Uploads", ()):
                yield MultipartUpload(row["Key"], row["UploadId"], row["Initiated"])
            previous, marker = (
                marker,
                {
                    "KeyMarker": page.get("NextKeyMarker"),
                    "UploadIdMarker": page.get("NextUploadIdMarker"),
                },
            )
            # A sanitized key could lead back to the start of this page.
            if not page.get("IsTruncated") or marker == previous:
                return

    async def delete(self, key: str) -> None:
        """Delete an object. A missing one is no error."""
        with suppress(MissingError):
            await _call("delete", self._client.delete_object, Bucket=self._bucket, Key=key)

    def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """List the objects under a prefix, in the byte order of their keys."""
        return rows_after(self._list(prefix, after, _page_keys(limit)), after, limit)

    async def _list(
        self, prefix: str, after: str, page_keys: int
    ) -> AsyncGenerator[ObjectSummary, None]:
        where: dict[str, Any] = {"StartAfter": after} if after else {}
        while True:
            page = await _read(
                "list",
                self._client.list_objects_v2,
                Bucket=self._bucket,
                Prefix=prefix,
                MaxKeys=page_keys,
                **where,
            )
            rows = page.get("Contents", [])
            for row in rows:
                yield ObjectSummary(
                    row["Key"], row["Size"], row["ETag"].strip('"'), row["LastModified"]
                )
            if not page.get("IsTruncated"):
                return
            where = (
                {"StartAfter": rows[-1]["Key"]}
                if rows
                else {"ContinuationToken": page["NextContinuationToken"]}
            )

    def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        """List the versions and delete markers under a prefix; for one key the newest first."""
        return rows_after(self._list_versions(prefix, after, _page_keys(limit)), after, limit)

    async def _list_versions(
        self, prefix: str, after: str, page_keys: int
    ) -> AsyncGenerator[ObjectVersion, None]:
        marker: dict[str, Any] = {"KeyMarker": after} if after else {}
        while True:
            page = await _read(
                "list versions",
                self._client.list_object_versions,
                Bucket=self._bucket,
                Prefix=prefix,
                MaxKeys=page_keys,
                **marker,
            )
            rows = parse_versions(page)
            for row in rows:
                yield row
            if not page.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": rows[-1].key if rows else page["NextKeyMarker"],
                "VersionIdMarker": page["NextVersionIdMarker"],
            }

    async def versions_page(
        self, prefix: str, after: str, delimiter: str, version: str
    ) -> tuple[Sequence[ObjectVersion], bool]:
        """Read one page of versions, and whether the server says that more follow.

        With a version, the page starts after that version of the key `after`.
        """
        where: dict[str, Any] = {"KeyMarker": after} if after else {}
        if version:
            where["VersionIdMarker"] = version
        if delimiter:
            where["Delimiter"] = delimiter
        page = await _read(
            "list versions",
            self._client.list_object_versions,
            Bucket=self._bucket,
            Prefix=prefix,
            MaxKeys=_PAGE_KEYS,
            **where,
        )
        return parse_versions(page), page["IsTruncated"]

    async def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version or delete marker for good. A missing one is no error."""
        with suppress(MissingError):
            await _call(
                "delete version",
                self._client.delete_object,
                Bucket=self._bucket,
                Key=key,
                VersionId=version_id,
            )

    async def read_tags(self, key: str) -> Mapping[str, str]:
        """Read an object's tags."""
        response = await _read(
            "read tags", self._client.get_object_tagging, Bucket=self._bucket, Key=key
        )
        return {tag["Key"]: tag["Value"] for tag in response["TagSet"]}

    async def write_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Replace an object's tags."""
        await _call(
            "write tags",
            self._client.put_object_tagging,
            Bucket=self._bucket,
            Key=key,
            Tagging={"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]},
        )

    async def versioning(self) -> Versioning:
        """The bucket's versioning status; empty if it was never enabled."""
        response = await _read(
            "versioning", self._client.get_bucket_versioning, Bucket=self._bucket
        )
        status: Versioning = response.get("Status", "")
        return status

    async def purge(self, prefix: str) -> None:
        """Remove objects, all versions and open uploads under a prefix; only for the probe's."""
        async for upload in self.list_multipart_uploads(prefix):
            await self.abort_multipart(upload.key, upload.upload_id)
        if await self.versioning():
            async for version in self.list_versions(prefix):
                await self.delete_version(version.key, version.version_id)
        async for row in self.list(prefix):
            await self.delete(row.key)

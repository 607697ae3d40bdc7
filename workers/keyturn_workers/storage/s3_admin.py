"""The cold half of S3 behind the port: listings, tags, versions, aborts, by aioboto3.

Whatever is not called for each object, and has XML to read, goes through the generated
client. Errors are mapped as on the hot path, and reads are tried again in the same way.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import stamina
from aiohttp import ClientError as HttpError
from botocore.exceptions import BotoCoreError, ClientError

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import MissingError
from keyturn_workers.storage.listing import BEFORE_PARSING, behind, make_speakable, versions_of
from keyturn_workers.storage.port import (
    PAGE_KEYS,
    MultipartUpload,
    ObjectSummary,
    ObjectVersion,
    Versioning,
)
from keyturn_workers.storage.s3_responses import error_of

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

_PAGE_KEYS: Final = PAGE_KEYS
_READ_ATTEMPTS: Final = 4
_READ_TOTAL_S: Final = 5.0

_T = TypeVar("_T")


async def _once(operation: str, call: Callable[..., Awaitable[_T]], **said: Any) -> _T:
    """One call of the client with the port's errors."""
    try:
        return await call(**said)
    except ClientError as exc:
        status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
        code = exc.response.get("Error", {}).get("Code", "")
        raise error_of(operation, status, code) from exc
    except (BotoCoreError, HttpError, OSError) as exc:
        raise StorageUnavailableError(f"{operation}: {type(exc).__name__}") from exc


@stamina.retry(
    on=StorageUnavailableError,
    attempts=_READ_ATTEMPTS,
    timeout=_READ_TOTAL_S,
    wait_initial=0.05,
    wait_max=1.0,
    wait_jitter=0.2,
)
async def _read(operation: str, call: Callable[..., Awaitable[_T]], **said: Any) -> _T:
    """A read, tried again where the storage failed."""
    return await _once(operation, call, **said)


def _page_keys(limit: int | None) -> int:
    return _PAGE_KEYS if limit is None else max(1, min(limit, _PAGE_KEYS))


class S3Admin:
    """What an S3 storage does seldom."""

    def __init__(self, client: "S3Client", bucket: str) -> None:
        self._client = client
        self._bucket = bucket
        client.meta.events.register_first(BEFORE_PARSING, make_speakable)

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; one that is gone is fine."""
        with suppress(MissingError):
            await _once(
                "abort multipart",
                self._client.abort_multipart_upload,
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
            )

    async def list_multipart_uploads(self, prefix: str) -> AsyncIterator[MultipartUpload]:
        """All open multipart uploads under a prefix."""
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
            before, marker = (
                marker,
                {
                    "KeyMarker": page.get("NextKeyMarker"),
                    "UploadIdMarker": page.get("NextUploadIdMarker"),
                },
            )
            # A key that was told wrongly could lead back to where this page began.
            if not page.get("IsTruncated") or marker == before:
                return

    async def delete(self, key: str) -> None:
        """Remove an object; one that is gone is fine."""
        with suppress(MissingError):
            await _once("delete", self._client.delete_object, Bucket=self._bucket, Key=key)

    def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """The objects under a prefix in the order of their keys' bytes."""
        return behind(self._list(prefix, after, _page_keys(limit)), after, limit)

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
        """All versions and delete markers under a prefix, of one key the newest first."""
        return behind(self._list_versions(prefix, after, _page_keys(limit)), after, limit)

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
            rows = versions_of(page)
            for row in rows:
                yield row
            if not page.get("IsTruncated"):
                return
            marker = {
                "KeyMarker": rows[-1].key if rows else page["NextKeyMarker"],
                "VersionIdMarker": page["NextVersionIdMarker"],
            }

    async def delete_version(self, key: str, version_id: str) -> None:
        """Remove one version or delete marker for good; one that is gone is fine."""
        with suppress(MissingError):
            await _once(
                "delete version",
                self._client.delete_object,
                Bucket=self._bucket,
                Key=key,
                VersionId=version_id,
            )

    async def read_tags(self, key: str) -> Mapping[str, str]:
        """An object's tags."""
        told = await _read(
            "read tags", self._client.get_object_tagging, Bucket=self._bucket, Key=key
        )
        return {tag["Key"]: tag["Value"] for tag in told["TagSet"]}

    async def write_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Put an object's tags back."""
        await _once(
            "write tags",
            self._client.put_object_tagging,
            Bucket=self._bucket,
            Key=key,
            Tagging={"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]},
        )

    async def versioning(self) -> Versioning:
        """Whether the bucket keeps versions; empty where it never did."""
        told = await _read("versioning", self._client.get_bucket_versioning, Bucket=self._bucket)
        status: Versioning = told.get("Status", "")
        return status

    async def purge(self, prefix: str) -> None:
        """Remove everything under a prefix: objects, all versions, open uploads.

        For the probe's own prefix alone.
        """
        async for upload in self.list_multipart_uploads(prefix):
            await self.abort_multipart(upload.key, upload.upload_id)
        if await self.versioning():
            async for version in self.list_versions(prefix):
                await self.delete_version(version.key, version.version_id)
        async for row in self.list(prefix):
            await self.delete(row.key)

"""The port through which all code reaches S3 (SPEC 8.4, 10).

Implementations: `keyturn_workers.storage.s3`, and one in memory for tests. Differences between
servers are fields of `Capabilities`, measured by `keyturn_workers.storage.probe`, never guessed
from a server's name.

A `key` here is always an S3 object key, never key material. An ETag is without quotes.

Every method raises `MissingError`, `PreconditionError` or `RefusedError` (reads and copies also
`ArchivedError`) for a definite refusal, and `keyturn.errors.StorageUnavailableError` if the
outcome of a write is unknown, or a read failed after its retries. No error of a client library
leaves the port. Writes are never resent: a resent conditional write may collide with its own
first attempt.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from keyturn_workers.core.storage_values import (
    PAGE_KEYS,
    RECORD_MAX_BYTES,
    Capabilities,
    Condition,
    EntriesPage,
    Headers,
    Lease,
    ListingPage,
    MultipartUpload,
    ObjectHead,
    ObjectSummary,
    ObjectVersion,
    Part,
    Versioning,
    WriteResult,
)


class ObjectStream(Protocol):
    """An open read of an object: its head, and its bytes in order."""

    head: ObjectHead

    def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        """Yield pieces of `size_bytes`, the last one shorter; if None, pieces as they arrive.

        Raises:
            StorageUnavailableError: the connection broke before the object's end.
        """
        ...


class Storage(Protocol):
    """One bucket."""

    capabilities: Capabilities

    async def read(
        self, key: str, *, max_bytes: int = RECORD_MAX_BYTES
    ) -> tuple[ObjectHead, bytes]:
        """Read a small object (a record) completely.

        A larger object than `max_bytes` may be cut, which leaves no valid record.
        """
        ...

    async def read_start(
        self, key: str, length_bytes: int, *, version_id: str | None = None
    ) -> tuple[ObjectHead, bytes]:
        """Read the head and the first bytes in one ranged read; `b""` for an empty object.

        Reads the latest version, or the given one.

        Raises:
            MissingError: no such object or version, or a delete marker.
            ArchivedError: the bytes cannot be read; `head` still works.
        """
        ...

    async def head(self, key: str) -> ObjectHead:
        """Read only the head."""
        ...

    def stream(
        self,
        key: str,
        *,
        start: int = 0,
        length_bytes: int | None = None,
        if_match: str | None = None,
        version_id: str | None = None,
    ) -> AbstractAsyncContextManager[ObjectStream]:
        """Open the object from byte `start` on; with `if_match` only the body with this ETag.

        Reads the latest version, or the given one. `length_bytes` (1 or more) limits the read;
        the object may end sooner. Leaving the context closes the connection.
        """
        ...

    async def presign_get(self, key: str, lease: Lease) -> str:
        """Make a URL for any HTTP client to GET the object while the lease lasts."""
        ...

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
        ...

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
        """Store an object of known length in bounded memory.

        If `chunks` raises, the request is aborted, so nothing is stored, and the exception
        propagates unchanged.
        """
        ...

    async def copy_onto_itself(
        self, key: str, headers: Headers, *, source_etag: str, lease: Lease
    ) -> None:
        """Replace an object's metadata and keep its body (SPEC 8.2).

        Not atomic on every server: a concurrent put or delete may be undone.

        Raises:
            ArchivedError: the body cannot be read from its storage class.
            RefusedError: a lock forbids it, or the lease was over.
        """
        ...

    async def create_multipart(self, key: str, headers: Headers) -> str:
        """Create a multipart upload and return its id."""
        ...

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytes) -> Part:
        """Store one part: at least 5 MiB, except for the last."""
        ...

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, first: int, last: int, source_etag: str
    ) -> Part:
        """Store bytes `first` to `last` (inclusive) of the object itself as a part."""
        ...

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
        ...

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Abort a multipart upload. A missing one is no error."""
        ...

    def list_multipart_uploads(self, prefix: str) -> AsyncIterator[MultipartUpload]:
        """List the open multipart uploads under a prefix."""
        ...

    async def delete(self, key: str) -> None:
        """Delete an object. A missing one is no error. Never used on a project's objects."""
        ...

    async def delete_if_match(self, key: str, etag: str) -> str | None:
        """Delete the object if it has this ETag.

        A storage that does not honor the condition deletes any object at this key. Never used on
        a project's objects. Returns the version id of the delete marker in a versioned bucket.
        """
        ...

    def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """List the objects under a prefix, in the storage's order (`capabilities.order`).

        Keys are returned unchanged, whatever characters another writer put into them. `after`
        skips the keys up to and including itself.
        """
        ...

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        """Read one page of a listing, with the `Date` of the response.

        A server with folders may omit the keys below `after`. To get every key, use `list` or
        `list_entries`.
        """
        ...

    async def list_entries(
        self, prefix: str, *, delimiter: str = "", after: str = "", limit: int = PAGE_KEYS
    ) -> EntriesPage:
        """Read one page of at most `limit` entries (1 to `PAGE_KEYS`) that sort after `after`.

        An entry is a key under the prefix, or with a delimiter a common prefix: a key up to and
        including the first delimiter after the prefix. So no key below `after`, or below a
        folder that contains `after`, is listed. A page may have fewer entries although more
        follow. Keys are returned unchanged, whatever characters another writer put into them.
        """
        ...

    def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        """List the versions and delete markers under a prefix, as `list` does for objects.

        Only on a storage that lists in byte order. Per key the latest comes first, then the
        others by time. A bucket without versioning lists each object as its one version `null`.

        Raises:
            StorageUnavailableError: the storage lists in another order, so versions may be missing.
        """
        ...

    async def delete_version(self, key: str, version_id: str) -> None:
        """Delete one version or delete marker for good. A missing one is no error.

        Raises:
            RefusedError: a lock forbids it.
        """
        ...

    async def read_tags(self, key: str) -> Mapping[str, str]:
        """Read an object's tags."""
        ...

    async def write_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Replace an object's tags."""
        ...

    async def versioning(self) -> Versioning:
        """The bucket's versioning status; empty if it was never enabled.

        While it is suspended, old versions remain, and a write replaces the version `null`.
        """
        ...

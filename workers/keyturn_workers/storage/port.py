"""The port through which everything reaches S3 (SPEC 8.4, 10).

Implementations: `keyturn_workers.storage.s3`, and one in memory for tests. What differs between
servers is named in `Capabilities` and measured by `keyturn_workers.storage.probe`, never guessed
from a server's name.

A `key` here is always an S3 object key, never key material. An ETag is without quotes.

Every method raises `MissingError`, `PreconditionError` or `RefusedError` (reads and copies also
`ArchivedError`) for a definite refusal, and `keyturn.errors.StorageUnavailableError` if the
outcome of a write is unknown, or a read failed after its retries. No error of a client library
leaves the port. Writes are never resent: a resent conditional write may meet its own first
attempt.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol

import structlog

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import Order, byte_order, path_order
from keyturn_workers.errors import StorageAnswerError

RECORD_MAX_BYTES: Final = 64 * 1024**2
"""Far above every record of ours. Without it, one object that an attacker writes to the bucket
could fill the memory of every process that reads it."""
PAGE_KEYS: Final = 1000
"""The most keys on one page of a listing."""
Versioning = Literal["", "Enabled", "Suspended"]
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the configured bucket does beyond what SPEC 10 requires."""

    # A completion honors If-None-Match: *. Otherwise two completions both succeed, and the second
    # body wins: large bodies are then stored by one streamed conditional put.
    conditional_completion: bool = False
    # A copy honors If-Match on its destination. Otherwise the header is not sent.
    conditional_copy_destination: bool = False
    # A self-copy keeps the tags. Otherwise they are read before it and restored after it.
    copy_keeps_tags: bool = False
    # A listing that starts after an overwrite was acknowledged shows the new ETag. Otherwise
    # keyrings are read one by one.
    listings_show_overwrites: bool = False
    # Puts, self-copies and completions are refused after the lease they were signed with.
    # Otherwise a stalled worker may revert an object after a proof, and the report of each sweep
    # says so.
    late_writes_refused: bool = False

    # Keys are paths: `a\b` is `a/b`, or no object can exist beside those below its key. Then
    # uploads to keys with a backslash are refused.
    keys_are_paths: bool = False
    # Listings leave out some names (of the server's own folders). Then uploads to such keys are
    # refused, since a rotation could not find them.
    unlisted_names: bool = False
    # The server lists keys by their paths, `a/x` before `a-b`, and continues in that order.
    # Otherwise by their bytes. Sweeps divide a project into ranges of this order. None: not
    # measured. A storage then finds it out from the keys that it lists, where it matters.
    lists_by_path: bool | None = None

    @property
    def order(self) -> Order:
        """The order in which the server lists."""
        return path_order if self.lists_by_path else byte_order


BASELINE = Capabilities()


@dataclass(frozen=True, slots=True)
class Lease:
    """Until when a write may arrive (SPEC 8.4); the storage itself refuses later ones.

    `read_at` is the storage's own `Date` of the keyring read that the write relies on.
    """

    read_at: datetime
    expires_s: int


@dataclass(frozen=True, slots=True)
class Headers:
    """The headers of an object, as a write sends them and a self-copy must restate them (SPEC 8.2).

    `metadata` is as on the wire: lower-case names without `x-amz-meta-`, ASCII values.
    `restated` has further request headers, with lower-case names (`cache-control`,
    `x-amz-storage-class`, `x-amz-website-redirect-location`, ...).
    """

    metadata: Mapping[str, str]
    content_type: str | None = None
    restated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What the storage reports about a stored object.

    `date` is the storage's time of the response. `headers` is what a self-copy has to restate so
    that everything else stays as it was. `size_bytes` is the whole object's, also after a ranged
    read.
    """

    size_bytes: int
    etag: str
    date: datetime
    last_modified: datetime
    headers: Headers
    tag_count: int = 0
    version_id: str | None = None
    archived: bool = False
    locked: bool = False

    @property
    def metadata(self) -> Mapping[str, str]:
        """The object's metadata as on the wire, with lower-case names."""
        return self.headers.metadata


@dataclass(frozen=True, slots=True)
class WriteResult:
    """The response to a write of an object.

    `etag` is the new body's. `date` is the storage's time of the response, or None if the
    response has no readable `Date`.
    """

    etag: str
    date: datetime | None


@dataclass(frozen=True, slots=True)
class ObjectSummary:
    """One row of a listing."""

    key: str
    size_bytes: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class ListingPage:
    """One page of a listing: the ETags of up to 1,000 keys, in the server's order.

    `is_last`: no key follows under the prefix. `date` is as in `WriteResult`.
    """

    etags: Mapping[str, str]
    is_last: bool
    date: datetime | None


@dataclass(frozen=True, slots=True)
class EntriesPage:
    """One page of a listing by folder: objects and common prefixes, each in the storage's order.

    `next_after`: the entry after which the next page starts, or None if no entry follows.
    """

    objects: Sequence[ObjectSummary]
    prefixes: Sequence[str]
    next_after: str | None


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object, or a delete marker (which has no body and no ETag).

    `version_id` is `null` for what was written while the bucket kept no versions.
    """

    key: str
    version_id: str
    is_latest: bool
    is_delete_marker: bool
    size_bytes: int
    etag: str
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """An open multipart upload: neither completed nor aborted."""

    key: str
    upload_id: str
    initiated: datetime


@dataclass(frozen=True, slots=True)
class Part:
    """A stored part of a multipart upload; `number` counts from 1."""

    number: int
    etag: str


@dataclass(frozen=True, slots=True)
class IfMatch:
    """Write only if the stored body has this ETag."""

    etag: str


@dataclass(frozen=True, slots=True)
class IfAbsent:
    """Write only if no object exists (`If-None-Match: *`)."""


Condition = IfMatch | IfAbsent


class ObjectStream(Protocol):
    """An open read of an object: its head, and its bytes in order."""

    head: ObjectHead

    def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        """Yield pieces of `size_bytes`, the last one shorter; with None as they arrive.

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

        If it is larger than `max_bytes`, only its beginning may be returned, which is no valid
        record.
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

        Reads the latest version, or the given one.

        With `length_bytes` (1 or more) at most that many bytes are requested; there are fewer if
        the object ends before. Leaving the context closes the connection.
        """
        ...

    async def presign_get(self, key: str, lease: Lease) -> str:
        """Make a URL with which any HTTP client may GET the object while the lease lasts."""
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

        If `chunks` raises, the request is cut short, which stores nothing, and the exception is
        raised unchanged.
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
        """Delete the object if it has this ETag, where the storage honors that.

        A storage that does not honor it deletes whatever is there. Never used on a project's
        objects.

        Returns:
            The version id of the delete marker that a bucket with versions got.
        """
        ...

    def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """List the objects under a prefix, in the storage's order (`capabilities.order`).

        Keys are returned as they are, whatever characters another writer put into them. `after`
        skips the keys up to and including itself.
        """
        ...

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        """Read one page of a listing, with the `Date` of the response.

        A server with folders may leave out the keys below `after`. Callers that need every key
        use `list` or `list_entries`.
        """
        ...

    async def list_entries(
        self, prefix: str, *, delimiter: str = "", after: str = "", limit: int = PAGE_KEYS
    ) -> EntriesPage:
        """Read one page of at most `limit` entries (1 to `PAGE_KEYS`) that sort after `after`.

        An entry is a key under the prefix, or with a delimiter a common prefix: a key up to and
        including the first delimiter after the prefix. So no key below `after`, or below a
        folder that `after` lies in, is listed. A page may have fewer entries although more
        follow. Keys are returned as they are, whatever characters another writer put into them.
        """
        ...

    def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        """List the versions and delete markers under a prefix, as `list` does for objects.

        Only on a storage that lists in byte order. For one key the latest comes first, then the
        others by their times. A bucket without versioning lists each object as its one version
        `null`.

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


@contextlib.asynccontextmanager
async def open_multipart(storage: Storage, s3_key: str, headers: Headers) -> AsyncIterator[str]:
    """Create a multipart upload, and abort it if the block raises. Yields its id."""
    upload_id = await storage.create_multipart(s3_key, headers)
    try:
        yield upload_id
    except BaseException:
        # Shielded: a canceled upload must not leave its parts behind either.
        await asyncio.shield(abort_multipart(storage, s3_key, upload_id))
        raise


async def abort_multipart(storage: Storage, s3_key: str, upload_id: str) -> None:
    """Abort one upload. A failure is only logged: a later cleanup repeats it."""
    try:
        await storage.abort_multipart(s3_key, upload_id)
    except (StorageUnavailableError, StorageAnswerError) as exc:
        _log.warning("multipart upload not aborted", s3_key=s3_key, problem=type(exc).__name__)

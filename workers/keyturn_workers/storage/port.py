"""The one port through which everything reaches S3 (SPEC 8.4, 10).

Implementations: `keyturn_workers.storage.s3` (aioboto3 and leased requests) and
`keyturn_workers.testing.memory_storage` (for tests). Whatever differs between servers is named in
`keyturn_workers.storage.capabilities` and measured by `keyturn_workers.storage.probe`, never
guessed from a server's name.

Errors, of every method: `MissingError`, `PreconditionError`, `RefusedError`, and of
reads and copies `ArchivedError`, for definite answers;
`keyturn.errors.StorageUnavailableError` where the outcome of a write is unknown or a
read failed after its retries. Writes are never resent here: a resent conditional write
may meet its own first attempt.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, Protocol

from keyturn_workers.storage.capabilities import Capabilities


@dataclass(frozen=True, slots=True)
class Lease:
    """How long a write may still arrive (SPEC 8.4): the storage itself refuses later ones.

    `read_at` is the storage's own `Date` of the keyring read that the write rests on.
    """

    read_at: datetime
    expires_s: int


@dataclass(frozen=True, slots=True)
class Headers:
    """What a write says of its object, and what a self-copy must restate (SPEC 8.2).

    `metadata` is as on the wire: lower-case names without `x-amz-meta-`, ASCII values.
    `restated` holds further request headers in lower case, by name (`cache-control`,
    `x-amz-storage-class`, `x-amz-website-redirect-location`, ...).
    """

    metadata: Mapping[str, str]
    content_type: str | None = None
    restated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """What the storage tells of a stored object.

    `etag` is without quotes. `date` is the storage's clock at the answer. `headers` is
    what a self-copy has to restate so that everything else stays as it was.
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
    """What the storage answers to a write of an object.

    `etag` is the new body's, without quotes; `date` the storage's clock at the answer, None
    where the answer has no `Date` that can be read.
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
    """One answer to a listing: the ETags of up to 1,000 keys, in the order of the keys' bytes.

    `is_last` says that no key follows under the prefix; `date` is as in `WriteResult`.
    """

    etags: Mapping[str, str]
    is_last: bool
    date: datetime | None


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of an object, or a delete marker (which has no body and no ETag).

    `version_id` is `null` of what was written while the bucket kept no versions.
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
    """A multipart upload that was neither completed nor aborted."""

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
    """Write only over the body with this ETag (without quotes)."""

    etag: str


@dataclass(frozen=True, slots=True)
class IfAbsent:
    """Write only where nothing stands (`If-None-Match: *`)."""


Condition = IfMatch | IfAbsent

RECORD_MAX_BYTES: Final = 64 * 1024**2
"""No record of ours comes near. Whoever writes the bucket could put one there that fills the
memory of all who read it."""

PAGE_KEYS: Final = 1000
"""The most keys that one answer to a listing holds."""

Versioning = Literal["", "Enabled", "Suspended"]


class ObjectStream(Protocol):
    """An object being read: its head, and its bytes in order."""

    head: ObjectHead

    def chunks(self, size_bytes: int | None) -> AsyncIterator[bytes]:
        """Pieces of about `size_bytes`, the last one shorter; with None as they come.

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
        """A small object whole (a record).

        Of one that is larger than `max_bytes` only the beginning may come, which opens as none.
        """
        ...

    async def read_start(
        self, key: str, length_bytes: int, *, version_id: str | None = None
    ) -> tuple[ObjectHead, bytes]:
        """The head and the first bytes in one ranged read; `b""` of an empty object.

        Of the latest version, or of the one named.

        Raises:
            MissingError: no object, no such version, or a delete marker.
            ArchivedError: its bytes cannot be read; `head` still can.
        """
        ...

    async def head(self, key: str) -> ObjectHead:
        """The head alone."""
        ...

    def stream(
        self,
        key: str,
        *,
        start: int = 0,
        length_bytes: int | None = None,
        if_match: str | None = None,
    ) -> AbstractAsyncContextManager[ObjectStream]:
        """The object from byte `start` on, pinned to an ETag where one is given.

        With `length_bytes` (1 or more) no more than so many are asked for; fewer come where
        the object ends. `head.size_bytes` is the whole object's. Leaving the context closes
        the connection.
        """
        ...

    async def presign_get(self, key: str, lease: Lease) -> str:
        """A URL by which whoever has it may GET the object until the lease is over."""
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
        """One put of bytes."""
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
        """One put of known length in bounded memory.

        Where `chunks` raises, the request is cut short (which stores nothing) and that
        exception is raised unchanged.
        """
        ...

    async def copy_onto_itself(
        self, key: str, headers: Headers, *, source_etag: str, lease: Lease
    ) -> None:
        """Replace an object's metadata and leave its body (SPEC 8.2).

        Not atomic on every server: a put or a delete that comes between may be undone.

        Raises:
            ArchivedError: the body cannot be copied from where it lies.
            RefusedError: a lock forbids it, or it came after its lease.
        """
        ...

    async def create_multipart(self, key: str, headers: Headers) -> str:
        """The id of a new multipart upload."""
        ...

    async def upload_part(self, key: str, upload_id: str, number: int, body: bytes) -> Part:
        """One part, 5 MiB or more but for the last."""
        ...

    async def copy_part(
        self, key: str, upload_id: str, number: int, *, first: int, last: int, source_etag: str
    ) -> Part:
        """Bytes `first` to `last` (both included) of the object itself as a part."""
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
        """Make the parts the object."""
        ...

    async def abort_multipart(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; one that is gone is fine."""
        ...

    def list_multipart_uploads(self, prefix: str) -> AsyncIterator[MultipartUpload]:
        """All open multipart uploads under a prefix."""
        ...

    async def delete(self, key: str) -> None:
        """Remove an object; one that is gone is fine. Never used on a project's objects."""
        ...

    def list(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """The objects under a prefix in the order of their keys' bytes.

        Keys come as they are, whatever a foreign writer put into them. `after` leaves out
        the keys up to and including it.
        """
        ...

    async def list_page(self, prefix: str, *, after: str = "") -> ListingPage:
        """One request of `list`, with the answer's `Date`.

        Keys that no XML document can hold may be missing.
        """
        ...

    def list_versions(
        self, prefix: str, *, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectVersion]:
        """All versions and delete markers under a prefix, as `list` gives objects.

        In the order of the keys' bytes, and of one key the newest first, as far as their
        times tell; the latest in any case. A bucket that keeps no versions shows each
        object as its one version `null`.
        """
        ...

    async def delete_version(self, key: str, version_id: str) -> None:
        """Remove one version or delete marker for good; one that is gone is fine.

        Raises:
            RefusedError: a lock forbids it.
        """
        ...

    async def read_tags(self, key: str) -> Mapping[str, str]:
        """An object's tags."""
        ...

    async def write_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Put an object's tags back."""
        ...

    async def versioning(self) -> Versioning:
        """Whether the bucket keeps versions; empty where it never did.

        Where that was suspended old versions stand, and a write replaces the one named `null`.
        """
        ...

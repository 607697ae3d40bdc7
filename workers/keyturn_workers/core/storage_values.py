"""Parameters and results of the storage's port (SPEC 8.4, 10). Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from keyturn.identifiers import Order, byte_order, path_order

RECORD_MAX_BYTES: Final = 64 * 1024**2
"""Far above the size of any record. Without it, one object that an attacker writes to the bucket
could fill the memory of every process that reads it."""
PAGE_KEYS: Final = 1000
"""The most keys on one page of a listing."""
Versioning = Literal["", "Enabled", "Suspended"]


@dataclass(frozen=True, slots=True)
class Capabilities:
    """Features of the configured bucket beyond the requirements of SPEC 10."""

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
    # Otherwise a stalled worker may revert an object after a proof; each sweep's report says so.
    late_writes_refused: bool = False

    # Keys are paths: `a\b` is `a/b`, or `a` and `a/b` cannot both exist. Then uploads to keys
    # with a backslash are refused.
    keys_are_paths: bool = False
    # Listings omit some names (of the server's own folders). Then uploads to such keys are
    # refused, since a rotation could not find them.
    unlisted_names: bool = False
    # The server lists keys by path, `a/x` before `a-b`, and continues in that order; otherwise
    # by their bytes. Sweeps divide a project into ranges of this order. None: not measured, to
    # be detected from listed keys where it matters.
    lists_by_path: bool | None = None

    @property
    def order(self) -> Order:
        """The order in which the server lists."""
        return path_order if self.lists_by_path else byte_order


BASELINE = Capabilities()


@dataclass(frozen=True, slots=True)
class Lease:
    """The time until which a write may arrive (SPEC 8.4); the storage refuses later ones.

    `read_at` is the storage's own `Date` of the keyring read that the write relies on.
    """

    read_at: datetime
    expires_s: int


@dataclass(frozen=True, slots=True)
class Headers:
    """An object's headers, which a write sends and a self-copy must restate (SPEC 8.2).

    `metadata` is as on the wire: lower-case names without `x-amz-meta-`, ASCII values.
    `restated` has further request headers, with lower-case names (`cache-control`,
    `x-amz-storage-class`, `x-amz-website-redirect-location`, ...).
    """

    metadata: Mapping[str, str]
    content_type: str | None = None
    restated: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ObjectHead:
    """The storage's report on a stored object.

    `date` is the storage's time of the response. A self-copy has to restate `headers`, or they
    would be lost. `size_bytes` is the whole object's, also after a ranged read.
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

    `version_id` is `null` for objects written while the bucket kept no versions.
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

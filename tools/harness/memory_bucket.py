"""The content of the in-memory bucket: objects, or all their versions (for `memory_storage`).

The rules of S3 without I/O: which version a key shows, what a lock forbids, what a delete leaves.
Nothing here awaits, so each step is atomic among tasks.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import count
from typing import Final

from keyturn.identifiers import Order, byte_order
from keyturn_workers.core.errors import ArchivedError, MissingError, PreconditionError, RefusedError
from keyturn_workers.core.storage_values import (
    Condition,
    Headers,
    IfAbsent,
    IfMatch,
    ObjectHead,
    ObjectVersion,
    Versioning,
)
from keyturn_workers.storage.s3_wire import is_archived, lock_state

DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"
# The version id of what was written while the bucket kept no versions.
NULL_VERSION: Final = "null"


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of an object, or a delete marker."""

    body: bytes
    headers: Headers
    etag: str
    last_modified: datetime
    tags: Mapping[str, str] = field(default_factory=dict)
    archived: bool = False
    version_id: str = NULL_VERSION
    is_delete_marker: bool = False

    def head(self, now: datetime) -> ObjectHead:
        """The head that a read at `now` returns."""
        headers, locked = lock_state(self.headers, now)
        return ObjectHead(
            size_bytes=len(self.body),
            etag=self.etag,
            date=now,
            last_modified=self.last_modified,
            headers=headers,
            tag_count=len(self.tags),
            version_id=None if self.version_id == NULL_VERSION else self.version_id,
            archived=self.archived,
            locked=locked,
        )

    def readable_body(self) -> bytes:
        """The body, unless it is archived."""
        if self.archived:
            raise ArchivedError("InvalidObjectState")
        return self.body

    def check_lock(self, now: datetime) -> None:
        """Raise `RefusedError` if a lock protects this version."""
        if not self.is_delete_marker and lock_state(self.headers, now)[1]:
            raise RefusedError("AccessDenied")


class Bucket:
    """All keys, each with its versions, the oldest first.

    Args:
        versioned: Whether a write keeps the earlier versions.
        order: The order of listings.

    Attributes:
        versioning: The status, which may change at any time. Where it is suspended, the versions
            remain, and a write replaces the version `null`.
    """

    def __init__(self, *, versioned: bool, order: Order = byte_order) -> None:
        self.versioning: Versioning = "Enabled" if versioned else ""
        self.order = order
        self._rows: dict[str, list[Stored]] = {}
        self._ids = count(1)

    def keys(self) -> list[str]:
        """The keys of all existing objects, in the order of listings."""
        existing = (key for key, rows in self._rows.items() if not rows[-1].is_delete_marker)
        return sorted(existing, key=self.order)

    def get(self, key: str, version_id: str | None = None) -> Stored:
        """The latest version, or the given one. A delete marker counts as missing."""
        rows = self._rows.get(key, ())
        for stored in reversed(rows):
            if version_id in {None, stored.version_id}:
                if stored.is_delete_marker:
                    break
                return stored
        raise MissingError("NoSuchKey")

    def check(self, key: str, condition: Condition | None) -> None:
        """Raise if a write's condition does not hold."""
        match condition:
            case IfAbsent():
                rows = self._rows.get(key)
                if rows and not rows[-1].is_delete_marker:
                    raise PreconditionError("PreconditionFailed")
            case IfMatch(etag) if self.get(key).etag != etag:
                raise PreconditionError("PreconditionFailed")

    def store(self, key: str, stored: Stored) -> None:
        """Add a version; unless versioning is enabled, in place of the version `null`."""
        version_id = f"v{next(self._ids):06}"
        if self.versioning != "Enabled":
            version_id = NULL_VERSION
            for old in self._rows.get(key, ()):
                if old.version_id == NULL_VERSION:
                    old.check_lock(stored.last_modified)
            self._remove_null(key)
        self._rows.setdefault(key, []).append(replace(stored, version_id=version_id))

    def plant(self, key: str, stored: Stored) -> None:
        """Like `store`, ignoring locks."""
        if self.versioning != "Enabled":
            self._remove_null(key)
        self.store(key, stored)

    def change_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Replace the tags of the latest version."""
        changed = replace(self.get(key), tags=dict(tags))
        self._rows[key][-1] = changed

    def delete(self, key: str, now: datetime) -> str | None:
        """Delete an object; a bucket with versions adds a delete marker, and returns its id."""
        if self.versioning:
            marker = Stored(b"", Headers({}), "", now, is_delete_marker=True)
            self.store(key, marker)
            return self._rows[key][-1].version_id
        for stored in self._rows.get(key, ()):
            stored.check_lock(now)
        self._rows.pop(key, None)
        return None

    def delete_version(self, key: str, version_id: str, now: datetime) -> None:
        """Delete one version or delete marker. A missing one is no error."""
        kept = []
        for stored in self._rows.get(key, ()):
            if stored.version_id == version_id:
                stored.check_lock(now)
            else:
                kept.append(stored)
        self._rows[key] = kept
        if not kept:
            del self._rows[key]

    def versions(self) -> Iterator[ObjectVersion]:
        """All versions, in the order of the keys; for one key the newest first."""
        for key in sorted(self._rows, key=self.order):
            rows = self._rows[key]
            for stored in reversed(rows):
                yield ObjectVersion(
                    key=key,
                    version_id=stored.version_id,
                    is_latest=stored is rows[-1],
                    is_delete_marker=stored.is_delete_marker,
                    size_bytes=len(stored.body),
                    etag=stored.etag,
                    last_modified=stored.last_modified,
                )

    def _remove_null(self, key: str) -> None:
        kept = [old for old in self._rows.pop(key, ()) if old.version_id != NULL_VERSION]
        if kept:
            self._rows[key] = kept

    def purge(self, prefix: str) -> None:
        """Delete everything under a prefix, ignoring locks."""
        self._rows = {k: rows for k, rows in self._rows.items() if not k.startswith(prefix)}


def etag_of(body: bytes) -> str:
    """The ETag that S3 gives a body stored by a single put."""
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


def new_version(
    body: bytes,
    headers: Headers,
    etag: str,
    now: datetime,
    tags: Mapping[str, str] | None = None,
) -> Stored:
    """The version that a write with these headers creates."""
    kept = Headers(
        metadata={name.lower(): value for name, value in headers.metadata.items()},
        content_type=headers.content_type or DEFAULT_CONTENT_TYPE,
        restated=dict(headers.restated),
    )
    archived = is_archived(kept.restated)
    return Stored(body, kept, etag, now, dict(tags or {}), archived=archived)

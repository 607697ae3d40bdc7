"""A source: the bucket that others write to, and that workers empty (SPEC 17).

It shares the network with Keyturn's own bucket. Nothing that a worker deletes here may be lost: it
was stored, and published as stored, before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from keyturn.upload_ids import source_upload_id
from keyturn_workers.core.source_mapping import Source
from keyturn_workers.core.storage_values import Capabilities, Headers
from tests.protocol.wire import _SERVING, Server
from tools.harness.memory_bucket import NULL_VERSION, Bucket

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tests.protocol.wire import Network
    from tools.harness.memory_bucket import Stored

NAME: Final = "drop"
PREFIX: Final = "in/"
SOURCE: Final = Source.model_validate(
    {
        "bucket": "the-drop",
        "prefix": PREFIX,
        "project": "{first}",
        "key": "{rest}",
        "delete": True,
    }
)


def id_of(s3_key: str, stored: Stored) -> str:
    """The id of the upload of this very object."""
    version = "" if stored.version_id == NULL_VERSION else stored.version_id
    return source_upload_id("test", NAME, s3_key, stored.etag, version)


class _Emptied(Bucket):
    """A bucket that reports what workers delete from it."""

    def __init__(self, *, versioned: bool, deleted: Callable[[str, Stored], None]) -> None:
        super().__init__(versioned=versioned)
        self._deleted = deleted

    def delete(self, key: str, now: datetime) -> str | None:
        if not self.versioning:
            self._report(key, None)
        return super().delete(key, now)

    def delete_version(self, key: str, version_id: str, now: datetime) -> None:
        self._report(key, version_id)
        super().delete_version(key, version_id, now)

    def _report(self, key: str, version_id: str | None) -> None:
        by_worker = _SERVING.get() is not None and not key.startswith(f"{PREFIX}.keyturn/")
        for stored in self._rows.get(key, ()) if by_worker else ():
            if not stored.is_delete_marker and version_id in {None, stored.version_id}:
                self._deleted(key, stored)


class Drop(Server):
    """The bucket of the source.

    Args:
        network: As that of Keyturn's own bucket.
        deleted: Called with each object that a worker is about to delete for good.
        versioned: Whether it keeps versions.
        honors_conditions: Whether it honors `If-Match` of a delete.
    """

    def __init__(
        self,
        network: Network,
        deleted: Callable[[str, Stored], None],
        *,
        versioned: bool,
        honors_conditions: bool = True,
    ) -> None:
        super().__init__(
            network,
            lambda *_: None,
            parts_lost=lambda _: None,
            capabilities=Capabilities(),
            versioned=versioned,
        )
        self._bucket: Any = _Emptied(versioned=versioned, deleted=deleted)
        self._honors_conditions = honors_conditions

    async def delete_if_match(self, key: str, etag: str) -> str | None:
        if self._honors_conditions:
            return await super().delete_if_match(key, etag)
        async with self._acting("delete_if_match"):
            deleted: str | None = self._bucket.delete(key, self.now)
            return deleted

    def written(self, s3_key: str, body: bytes) -> dict[str, Any]:
        """An object that its owner writes, as a request names it."""
        self.plant(s3_key, body, Headers({}))
        stored: Stored = self._bucket.get(s3_key)
        named = {"name": NAME, "key": s3_key, "etag": stored.etag, "size": len(body)}
        if stored.version_id != NULL_VERSION:
            named["version"] = stored.version_id
        return named

    def removed(self, s3_key: str) -> None:
        """Its owner deletes it."""
        self._bucket.delete(s3_key, self.now)

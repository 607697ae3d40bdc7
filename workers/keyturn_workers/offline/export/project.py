"""Another project as the destination: each object becomes an upload of its own (SPEC 18).

The id of an upload is derived from the object that is copied. So a copy that is interrupted, or run
again, stores each object once, and continues where it was: an object that the target has under that
id is not read again. Plaintext is only in the memory of this process; a body that does not fit into
a message is staged sealed, like any other.
"""

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Final, Protocol, Self

from keyturn.errors import (
    AlreadyExistsError,
    BadSignatureError,
    NotDeliveredError,
    NotPermittedError,
    OutcomeUnknownError,
    ProjectErasedError,
    UnknownProjectError,
    WaitTimeoutError,
    all_errors,
)
from keyturn.identifiers import object_s3_key
from keyturn.messages.events import Event, Rejected
from keyturn.messages.requests import INLINE_MAX_BYTES
from keyturn.metadata import UPLOAD
from keyturn.publisher.client import Publisher
from keyturn.upload_ids import copy_upload_id
from keyturn_workers.core.errors import ExportError, MissingError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.offline.export.run import Incoming

_ATTEMPTS: Final = 2
# Every other object of the project would be refused, too.
_ENDS_RUN: Final = frozenset(
    error.code
    for error in (BadSignatureError, NotPermittedError, ProjectErasedError, UnknownProjectError)
)


@dataclass(frozen=True, slots=True)
class Copy:
    """What is copied: a project to another one, in a deployment; `timeout_s` is for one answer."""

    project: str
    to_project: str
    deployment: str
    timeout_s: float


class Waits(Protocol):
    """Is informed of requests that are sent, and of their answers."""

    def add_sent(self) -> None:
        """Count a request."""

    def add_answered(self) -> None:
        """Count an answer."""


class TargetProject:
    """A project as a destination.

    Args:
        copy: What is copied.
        storage: The bucket of the target.
        publisher: It requests the uploads, and may stage bodies.
        keys: The keys that the target has.
        waits: Is informed of requests and answers.
    """

    def __init__(
        self,
        copy: Copy,
        storage: Storage,
        publisher: Publisher,
        keys: "TargetKeys",
        waits: Waits,
    ) -> None:
        self._copy = copy
        self._storage = storage
        self._publisher = publisher
        self._keys = keys
        self._waits = waits
        self._answered = 0

    async def size_of(self, key: str) -> None:
        """See `Destination`: only the object that is copied says whether its copy is there."""
        self._keys.see(key)

    async def store(self, incoming: Incoming) -> bool:
        """Upload a copy, and wait until it is stored; return False if it is there already.

        Raises:
            AlreadyExistsError: the target holds, or held, another object with this key.
            CodedError: the upload was refused.
            ExportError: it was refused, and all others would be.
            NotDeliveredError: no worker serves uploads.
        """
        copy, info = self._copy, incoming.info
        upload_id = copy_upload_id(
            copy.deployment, copy.project, copy.to_project, incoming.key, info.etag or ""
        )
        if self._keys.has(incoming.key) and await self._is_copy(incoming.key, upload_id):
            return False
        is_small = info.size_bytes <= INLINE_MAX_BYTES
        body = b"".join([block async for block in incoming.blocks()]) if is_small else None
        for attempt in range(_ATTEMPTS):
            try:
                await self._publisher.upload(
                    copy.to_project,
                    incoming.key,
                    # A second attempt finds the staged body of the first one, and reads no block.
                    incoming.blocks() if body is None else body,
                    content_type=info.content_type,
                    metadata=info.metadata,
                    upload_id=upload_id,
                )
                break
            except OutcomeUnknownError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        _check_stored(await self._answer(upload_id))
        return True

    async def _is_copy(self, key: str, upload_id: str) -> bool:
        try:
            head = await self._storage.head(object_s3_key(self._copy.to_project, key))
        except MissingError:
            return False
        if head.metadata.get(UPLOAD) != upload_id:
            raise AlreadyExistsError(f"{self._copy.to_project} holds, or held, another object")
        return True

    async def _answer(self, upload_id: str) -> Event:
        copy, before = self._copy, self._answered
        self._waits.add_sent()
        try:
            event = await self._publisher.wait(
                upload_id,
                timeout_s=copy.timeout_s,
                project=copy.to_project,
                request_type="upload.requested",
            )
        except WaitTimeoutError as exc:
            if self._answered == before:  # nor has any other upload had an answer meanwhile
                raise NotDeliveredError(f"no worker serves uploads: {exc}") from exc
            raise
        self._answered += 1
        self._waits.add_answered()
        return event


def _check_stored(event: Event) -> None:
    if not isinstance(event, Rejected):
        return
    error = all_errors().get(event.code)
    if error is None or event.code in _ENDS_RUN:
        raise ExportError(f"{event.code}: {event.detail}" if event.detail else event.code)
    raise error(event.detail or "")


class TargetKeys:
    """The object keys of a target, on disk, since there may be millions. Use `open`."""

    def __init__(self) -> None:
        # A database without a name is a temporary file of SQLite's own.
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            """
            PRAGMA journal_mode = OFF;
            PRAGMA synchronous = OFF;
            CREATE TABLE keys (key TEXT PRIMARY KEY, seen INTEGER DEFAULT 0) WITHOUT ROWID;
            """
        )

    @classmethod
    @asynccontextmanager
    async def open(cls, storage: Storage, project: str) -> AsyncIterator[Self]:
        """Yield the keys of a project, and of its deleted objects, as they are now.

        Raises:
            StorageUnavailableError, StorageResponseError: the bucket cannot be listed.
        """
        keys, prefix = cls(), object_s3_key(project, "")
        with closing(keys._database):
            async for row in storage.list(prefix):
                key = row.key.removeprefix(prefix)
                keys._database.execute("INSERT OR IGNORE INTO keys (key) VALUES (?)", (key,))
            yield keys

    def has(self, key: str) -> bool:
        """Return True if the target has, or had, an object with this key."""
        found = self._database.execute("SELECT 1 FROM keys WHERE key = ?", (key,))
        return found.fetchone() is not None

    def see(self, key: str) -> None:
        """Record that the project that is copied has this key."""
        self._database.execute("UPDATE keys SET seen = 1 WHERE key = ?", (key,))

    def without_original(self) -> Iterator[str]:
        """Yield the keys of the target that were not seen."""
        rows = self._database.execute("SELECT key FROM keys WHERE seen = 0 ORDER BY key")
        return (key for (key,) in rows)

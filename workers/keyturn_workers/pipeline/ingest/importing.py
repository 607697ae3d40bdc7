"""An import: request every object of a source once, and count the outcomes (SPEC 17.5).

An import keeps no record. The upload ids are derived from the objects, so an interrupted import is
simply run again: a request for a stored object is answered from its target.

Upload workers read the objects, with one exception: the import itself opens objects of the earlier
system, by a key that no worker has, and uploads their plaintext (SPEC 17.6).
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from keyturn.crypto.keys import Kek
from keyturn.errors import (
    AlreadyExistsError,
    ArchivedObjectError,
    BodyTooLargeError,
    OutcomeUnknownError,
    PermanentError,
    SourceChangedError,
    SourceMissingError,
    SourceUnavailableError,
    UnknownProjectError,
    WaitTimeoutError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages.events import Rejected
from keyturn.metadata import UPLOAD
from keyturn.publisher.client import Publisher
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.source_mapping import Target
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import ObjectSummary
from keyturn_workers.pipeline.ingest import v0
from keyturn_workers.pipeline.ingest.source_ingest import (
    POLL_SLOTS,
    Candidate,
    inspect,
    is_folder_marker,
    objects_of,
)
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.pipeline.sources.description import (
    check_plaintext,
    content_type_of,
    metadata_of,
)

MAX_FAILURES: Final = 1000
"""How many failed objects the result names; it counts all of them."""
CONNECTIONS: Final = POLL_SLOTS + 8
# An import ends when no object has had an outcome for this long.
_IDLE_S: Final = 900.0
_ATTEMPTS: Final = 3

STORED: Final = "stored"
ALREADY_THERE: Final = "already there"
QUEUED: Final = "queued"
NOT_REQUESTED: Final = "not requested"
GONE: Final = "gone"
WAITING: Final = "waiting"


@dataclass(frozen=True, slots=True)
class NotImported:
    """An object that was not imported: its S3 key, a code or `waiting`, and the reason."""

    s3_key: str
    code: str
    detail: str


@dataclass(slots=True)
class ImportResult:
    """The outcomes of the objects of an import so far.

    Attributes:
        objects: How many are done, without folder markers.
        size_bytes: The sum of their sizes.
        statuses: How many are stored, already there, queued, not requested or gone.
        refused: How many were not imported, by code; those without an outcome are `waiting`.
        not_imported: Some of those, with the reasons.
    """

    objects: int = 0
    size_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    not_imported: list[NotImported] = field(default_factory=list)

    def add(self, row: ObjectSummary, outcome: str | NotImported) -> None:
        """Count one object that is done."""
        self.objects += 1
        self.size_bytes += row.size_bytes
        if isinstance(outcome, str):
            self.statuses[outcome] += 1
            return
        self.refused[outcome.code] += 1
        if len(self.not_imported) < MAX_FAILURES:
            self.not_imported.append(outcome)


class Import:
    """One import.

    `bucket` is the source, `own_bucket` Keyturn's. `publisher` signs the requests; None for a dry
    run, which requests nothing. `v0_kek` opens objects of the earlier system; without it they are
    requested like any other, and refused. `wait`: wait for the outcomes. `on_progress` is called
    whenever the result has changed.
    """

    def __init__(
        self,
        bucket: SourceBucket,
        own_bucket: Storage,
        deployment: str,
        publisher: Publisher | None,
        *,
        v0_kek: Kek | None = None,
        wait: bool = True,
        on_progress: Callable[[ImportResult], None] = lambda _: None,
    ) -> None:
        self._bucket = bucket
        self._own_bucket = own_bucket
        self._deployment = deployment
        self._publisher = publisher
        self._v0_kek = v0_kek
        self._wait = wait
        self._on_progress = on_progress
        self._slots = asyncio.Semaphore(POLL_SLOTS)
        self._v0_slots = asyncio.Semaphore(v0.AT_ONCE)
        self._projects: dict[str, bool] = {}
        self.result = ImportResult()

    async def run(self, prefix: str = "") -> ImportResult:
        """Import every object whose S3 key begins with the source's prefix and then this one.

        Raises:
            ExceptionGroup: the errors of storage and broker.
        """
        # Without waiting, a change of an object after it was listed goes unnoticed. Only a HEAD
        # shows what a worker would refuse, and whether an object is of the earlier system.
        listing_suffices = (
            self._wait
            and self._publisher is not None
            and self._v0_kek is None
            and not await self._bucket.may_keep_versions()
        )
        async with asyncio.TaskGroup() as group:
            async for row in objects_of(self._bucket, prefix):
                if is_folder_marker(row):
                    continue
                await self._slots.acquire()
                group.create_task(self._import(row, listing_suffices=listing_suffices))
        return self.result

    async def _import(self, row: ObjectSummary, *, listing_suffices: bool) -> None:
        try:
            outcome = await self._outcome(row.key, row if listing_suffices else None)
        finally:
            self._slots.release()
        self.result.add(row, outcome)
        self._on_progress(self.result)

    async def _outcome(self, s3_key: str, row: ObjectSummary | None) -> str | NotImported:
        for _ in range(_ATTEMPTS):
            try:
                found = await inspect(self._bucket, self._deployment, s3_key, row)
                if found is None:
                    return GONE
                outcome = await self._request(found)
            except (PermanentError, SourceUnavailableError) as exc:
                outcome = NotImported(s3_key, exc.code, exc.detail)
            if not isinstance(outcome, NotImported) or outcome.code != SourceChangedError.code:
                break
            row = None  # the object has changed since it was listed
        if isinstance(outcome, NotImported) and outcome.code == SourceMissingError.code:
            return GONE
        return outcome

    async def _request(self, found: Candidate) -> str | NotImported:
        target = found.target
        is_v0 = (
            self._v0_kek is not None and found.head is not None and v0.is_v0(found.head.metadata)
        )
        if is_v0 and found.object.size > v0.MAX_BYTES:
            raise BodyTooLargeError(
                f"an object of the earlier system is opened whole, up to {v0.MAX_BYTES} bytes"
            )
        upload_id = await self._upload_at(target)
        is_there = upload_id == found.upload_id
        if self._publisher is None:
            if is_there:
                return ALREADY_THERE
            if not await self._is_enrolled(target.project):
                raise UnknownProjectError.of(target.project)
            _check_importable(found, is_occupied=upload_id is not None, is_v0=is_v0)
            return NOT_REQUESTED
        await self._publish(self._publisher, found, is_v0=is_v0)
        if not self._wait:
            return QUEUED
        outcome = await self._answer(self._publisher, found)
        if is_v0 and outcome == STORED:
            await self._bucket.delete_read(found.object)
        return ALREADY_THERE if is_there and outcome == STORED else outcome

    async def _publish(self, publisher: Publisher, found: Candidate, *, is_v0: bool) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                if is_v0:
                    await self._open_and_upload(publisher, found)
                else:
                    # The result names what was refused: a letter would say it once more.
                    await publisher.upload_from_source(
                        found.target.project,
                        found.target.object_key,
                        found.object,
                        letter=not self._wait,
                    )
            except OutcomeUnknownError:
                if attempt + 1 == _ATTEMPTS:
                    raise
            else:
                return

    async def _open_and_upload(self, publisher: Publisher, found: Candidate) -> None:
        """Upload the plaintext of an object of the earlier system.

        Its id is the one that a request for the source's object has: it is stored once.
        """
        if self._v0_kek is None:
            raise TypeError("an import without the key of the earlier system")
        async with self._v0_slots:
            async with self._bucket.stream(found.object) as stream:
                head = stream.head
                body = b"".join([piece async for piece in self._bucket.pieces_of(stream)])
            plaintext = await asyncio.to_thread(v0.open_object, self._v0_kek, head.metadata, body)
            del body
            await publisher.upload(
                found.target.project,
                found.target.object_key,
                plaintext,
                content_type=content_type_of(head),
                metadata=metadata_of(head),
                upload_id=found.upload_id,
            )

    async def _answer(self, publisher: Publisher, found: Candidate) -> str | NotImported:
        done = -1
        while done != self.result.objects:  # others have had outcomes meanwhile
            done = self.result.objects
            try:
                event = await publisher.wait(
                    found.upload_id,
                    timeout_s=_IDLE_S,
                    project=found.target.project,
                    request_type="upload.requested",
                )
            except WaitTimeoutError as exc:
                detail = str(exc)
            else:
                if isinstance(event, Rejected):
                    return NotImported(found.object.key, event.code, event.detail)
                return STORED
        return NotImported(found.object.key, WAITING, detail)

    async def _upload_at(self, target: Target) -> str | None:
        """The id of the upload whose object is at the target, by its metadata.

        It is empty for an object without one, such as the tombstone of a deleted object, and None
        if nothing is there.
        """
        try:
            head = await self._own_bucket.head(object_s3_key(target.project, target.object_key))
        except MissingError:
            return None
        return head.metadata.get(UPLOAD, "")

    async def _is_enrolled(self, project: str) -> bool:
        if project not in self._projects:
            try:
                await self._own_bucket.head(keyring_s3_key(project))
                self._projects[project] = True
            except MissingError:
                self._projects[project] = False
        return self._projects[project]


def _check_importable(found: Candidate, *, is_occupied: bool, is_v0: bool) -> None:
    """Check what an upload worker would check before it reads the body.

    Raises:
        MalformedRequestError: its description is not allowed, or it is encrypted already.
        ArchivedObjectError: its storage class must be restored first.
        AlreadyExistsError: its target has, or had, another object.
    """
    if found.head is not None:
        if not is_v0:
            check_plaintext(found.head)
        content_type_of(found.head)
        metadata_of(found.head)
        if found.head.archived:
            raise ArchivedObjectError("it is archived: restore it first")
    if is_occupied:
        raise AlreadyExistsError(f"{found.target.object_key} holds, or held, another object")

"""An import: every object of a source is requested once, and its outcome counted (SPEC 17.5).

It keeps no record of its own. The upload ids are derived from the objects, so an import that was
interrupted is simply run again: what is stored already is answered from where it is stored.
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from keyturn.errors import (
    MalformedRequestError,
    OutcomeUnknownError,
    SourceChangedError,
    SourceMissingError,
    SourceUnavailableError,
    UnknownProjectError,
    WaitTimeoutError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import Rejected
from keyturn.metadata import UPLOAD
from keyturn.publisher import Publisher
from keyturn_workers.errors import MissingError
from keyturn_workers.ingest.intake import (
    POLL_SLOTS,
    Candidate,
    inspect,
    is_folder_marker,
    objects_of,
)
from keyturn_workers.sources.bucket import SourceBucket
from keyturn_workers.storage import ObjectSummary, Storage

MAX_FAILURES: Final = 1000
"""How many objects that were not taken in the result names; it counts all of them."""
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
class NotIn:
    """An object that was not taken in: its S3 key, a code or `waiting`, and the reason."""

    s3_key: str
    code: str
    detail: str


@dataclass(slots=True)
class ImportResult:
    """The outcomes of the objects of an import so far.

    Attributes:
        objects: How many are done, folder markers aside.
        size_bytes: Their sizes added up.
        statuses: How many are stored, already there, queued, not requested or gone.
        refused: How many were not taken in, by code; those without an outcome are `waiting`.
        not_in: Some of those, with the reasons.
    """

    objects: int = 0
    size_bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    not_in: list[NotIn] = field(default_factory=list)

    def add(self, row: ObjectSummary, outcome: str | NotIn) -> None:
        """Count one object that is done."""
        self.objects += 1
        self.size_bytes += row.size_bytes
        if isinstance(outcome, str):
            self.statuses[outcome] += 1
            return
        self.refused[outcome.code] += 1
        if len(self.not_in) < MAX_FAILURES:
            self.not_in.append(outcome)


class Import:
    """One import.

    Args:
        bucket: The source.
        own_bucket: Keyturn's.
        deployment: The installation's name.
        publisher: Signs the requests; None for a dry run, which requests nothing.
        wait: Whether to wait for the outcomes.
        on_progress: Called whenever the result has changed.
    """

    def __init__(
        self,
        bucket: SourceBucket,
        own_bucket: Storage,
        deployment: str,
        publisher: Publisher | None,
        *,
        wait: bool = True,
        on_progress: Callable[[ImportResult], None] = lambda _: None,
    ) -> None:
        self._bucket = bucket
        self._own_bucket = own_bucket
        self._deployment = deployment
        self._publisher = publisher
        self._wait = wait
        self._on_progress = on_progress
        self._slots = asyncio.Semaphore(POLL_SLOTS)
        self._projects: dict[str, bool] = {}
        self.result = ImportResult()

    async def run(self, prefix: str = "") -> ImportResult:
        """Import every object whose S3 key begins with the source's prefix and then this one.

        Raises:
            ExceptionGroup: of the errors of storage and broker.
        """
        # Without waiting, nobody notices that an object has changed since it was listed.
        listing_suffices = self._wait and not await self._bucket.may_keep_versions()
        async with asyncio.TaskGroup() as group:
            async for row in objects_of(self._bucket, prefix):
                if is_folder_marker(row):
                    continue
                await self._slots.acquire()
                group.create_task(self._take_in(row, listing_suffices=listing_suffices))
        return self.result

    async def _take_in(self, row: ObjectSummary, *, listing_suffices: bool) -> None:
        try:
            outcome = await self._outcome(row.key, row if listing_suffices else None)
        finally:
            self._slots.release()
        self.result.add(row, outcome)
        self._on_progress(self.result)

    async def _outcome(self, s3_key: str, row: ObjectSummary | None) -> str | NotIn:
        for _ in range(_ATTEMPTS):
            try:
                found = await inspect(self._bucket, self._deployment, s3_key, row)
            except (MalformedRequestError, SourceUnavailableError) as exc:
                return NotIn(s3_key, exc.code, exc.detail)
            if found is None:
                return GONE
            outcome = await self._request(found)
            if not isinstance(outcome, NotIn) or outcome.code != SourceChangedError.code:
                break
            row = None  # it has changed since it was listed
        if isinstance(outcome, NotIn) and outcome.code == SourceMissingError.code:
            return GONE
        return outcome

    async def _request(self, found: Candidate) -> str | NotIn:
        target = found.target
        is_there = await self._is_there(found)
        if self._publisher is None:
            if is_there:
                return ALREADY_THERE
            if not await self._is_enrolled(target.project):
                detail = f"{target.project} is not enrolled"
                return NotIn(found.object.key, UnknownProjectError.code, detail)
            return NOT_REQUESTED
        for attempt in range(_ATTEMPTS):
            try:
                await self._publisher.upload_from_source(
                    target.project, target.object_key, found.object
                )
                break
            except OutcomeUnknownError:
                if attempt + 1 == _ATTEMPTS:
                    raise
        if not self._wait:
            return QUEUED
        outcome = await self._answer(self._publisher, found)
        return ALREADY_THERE if is_there and outcome == STORED else outcome

    async def _answer(self, publisher: Publisher, found: Candidate) -> str | NotIn:
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
                    return NotIn(found.object.key, event.code, event.detail)
                return STORED
        return NotIn(found.object.key, WAITING, detail)

    async def _is_there(self, found: Candidate) -> bool:
        """Whether its place holds an object of this very upload, by its metadata."""
        try:
            head = await self._own_bucket.head(
                object_s3_key(found.target.project, found.target.object_key)
            )
        except MissingError:
            return False
        return head.metadata.get(UPLOAD) == found.upload_id

    async def _is_enrolled(self, project: str) -> bool:
        if project not in self._projects:
            try:
                await self._own_bucket.head(keyring_s3_key(project))
                self._projects[project] = True
            except MissingError:
                self._projects[project] = False
        return self._projects[project]

"""One source: from a key that was found to the outcome of its upload (SPEC 17.4).

Whatever named the key, only an existing object counts. Requests wait for their outcomes, a limited
number at once, so that a full source never fills the queue that all publishers share.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from typing import Final

import structlog
from pydantic import ValidationError

from keyturn.errors import (
    MalformedRequestError,
    PublisherError,
    RequestExpiredError,
    SourceChangedError,
    SourceMissingError,
    SourceUnavailableError,
    WaitTimeoutError,
)
from keyturn.messages.events import Rejected
from keyturn.messages.json_text import problems
from keyturn.messages.requests import SourceObject
from keyturn.publisher.client import Publisher
from keyturn_workers.core.source_mapping import Target
from keyturn_workers.core.storage_values import ObjectHead, ObjectSummary
from keyturn_workers.pipeline.ingest.metrics import IngestMetrics
from keyturn_workers.pipeline.ingest.record import MAX_REFUSED, Refusal, SourceRecord, newest
from keyturn_workers.pipeline.sources.bucket import SourceBucket

MAX_REMEMBERED: Final = 10_000
"""Requests of each source that a process remembers with their outcomes, and as many without."""
POLL_SLOTS: Final = 256
"""Objects of one source that a listing has under way at once."""
HINT_SLOTS: Final = 64
"""Objects of one source that notifications have under way at once."""
# An object without an outcome makes room for others after this time.
_SLOT_S: Final = 60.0
# A process does not request the same object again within this time.
_REMEMBER_S: Final = 3600.0
# An object that should have been deleted but still exists, was not found, or has no known outcome
# is requested again after this time, then after twice this time, and so on.
_REPEAT_S: Final = 60.0
REFUSED_FOR: Final = timedelta(days=1)
"""After this time, a refused object is requested again."""
# A notification of nothing new keeps its slot for this long, which slows down a flood.
_VAIN_HINT_S: Final = 1.0
# The object has changed or is gone: there is nothing to remember.
_OVERTAKEN: Final = frozenset(
    {SourceChangedError.code, SourceMissingError.code, RequestExpiredError.code}
)

_log = structlog.get_logger()


class Outcome(Enum):
    """The outcome for an object that was found."""

    STORED = "stored"
    REFUSED = "refused"
    GONE = "gone"
    """The object does not exist, or has changed since."""
    WAITING = "waiting"
    """No outcome yet."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An object of a source, as its storage describes it; its target; the id of its upload.

    `head` is None if a listing described the object.
    """

    object: SourceObject
    target: Target
    upload_id: str
    head: ObjectHead | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    """When an object was requested (monotonic), its outcome, and how long that is valid."""

    at: float
    outcome: Outcome
    valid_s: float


async def inspect(
    bucket: SourceBucket, deployment: str, s3_key: str, row: ObjectSummary | None = None
) -> Candidate | None:
    """Look up an object in the source; None if it does not exist.

    If the source keeps no versions, `row` may be the object's row of a listing: then no HEAD is
    sent.

    Raises:
        MalformedRequestError: its name maps to no target in Keyturn, or cannot be requested.
        SourceUnavailableError: the source does not respond, or refuses the request.
    """
    target = bucket.source.target(s3_key)
    if target is None:
        raise MalformedRequestError("its name does not map to a valid project id and object key")
    try:
        described = row or await bucket.head(s3_key)
    except SourceMissingError:
        return None
    try:
        found = SourceObject(
            name=bucket.name,
            key=s3_key,
            etag=described.etag,
            version=described.version_id if isinstance(described, ObjectHead) else None,
            size=described.size_bytes,
        )
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None
    head = described if isinstance(described, ObjectHead) else None
    return Candidate(found, target, found.upload_id(deployment), head)


async def objects_of(bucket: SourceBucket, prefix: str = "") -> AsyncIterator[ObjectSummary]:
    """All objects of a source whose S3 keys begin with its prefix and then this one."""
    after: str | None = ""
    while after is not None:
        page = await bucket.list_page(prefix=prefix, after=after)
        for row in page.objects:
            yield row
        after = page.next_after


def is_folder_marker(row: ObjectSummary) -> bool:
    """Check if this is an empty object with which some programs mark a folder."""
    return row.key.endswith("/") and row.size_bytes == 0


class SourceIngest:
    """Ingests the objects of one source: requests uploads, and remembers their outcomes.

    `publisher` signs the requests, and receives their outcomes. `refused` has the latest refused
    objects, by S3 key, the earliest first; at most `MAX_REFUSED`.
    """

    def __init__(
        self,
        bucket: SourceBucket,
        publisher: Publisher,
        deployment: str,
        metrics: IngestMetrics,
        now: Callable[[], datetime],
    ) -> None:
        self.name = bucket.name
        self.source = bucket.source
        self.bucket = bucket
        self.refused: dict[str, Refusal] = {}
        self._publisher = publisher
        self._deployment = deployment
        self._metrics = metrics
        self._now = now
        self._started_at = self._retried_at = now()
        self._poll_slots = asyncio.Semaphore(POLL_SLOTS)
        self._hint_slots = asyncio.Semaphore(HINT_SLOTS)
        self._tasks: set[asyncio.Task[Outcome]] = set()
        self._pending: dict[str, asyncio.Task[Outcome]] = {}
        self._asked: OrderedDict[str, _Asked] = OrderedDict()  # by upload id

    def remember(self, record: SourceRecord) -> None:
        """Adopt the refusals of a record; forget older ones that its last listing did not meet."""
        listed_at = record.finished_at
        newer = {
            s3_key: refusal
            for s3_key, refusal in self.refused.items()
            if listed_at is None or refusal.at >= listed_at
        }
        self.refused = newest({**record.refused, **newer})
        self._retried_at = record.retried_at or self._retried_at

    async def begin(self, s3_key: str, *, is_hint: bool) -> asyncio.Task[Outcome]:
        """Wait for a slot, then ingest the object at this key; the task ends with its outcome.

        The task raises `PublisherError` if the request could not be published.
        """
        slots = self._hint_slots if is_hint else self._poll_slots
        await slots.acquire()
        task = asyncio.create_task(self._ingest(s3_key, is_hint=is_hint))
        self._tasks.add(task)

        def ended(task: asyncio.Task[Outcome]) -> None:
            self._tasks.discard(task)
            slots.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.warning("object not ingested", source=self.name, problem=str(error))

        task.add_done_callback(ended)
        return task

    async def close(self) -> None:
        """Stop waiting for outcomes."""
        tasks = {*self._tasks, *self._pending.values()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ingest(self, s3_key: str, *, is_hint: bool) -> Outcome:
        try:
            found = await inspect(self.bucket, self._deployment, s3_key)
        except SourceUnavailableError as exc:  # of this object alone, perhaps
            _log.warning("object not readable", source=self.name, problem=exc.detail)
            return Outcome.WAITING
        except MalformedRequestError as exc:
            if not is_hint:  # only a listing proves that there is an object of this name
                return self._refuse(s3_key, "", exc.code)
            found = None
        known = Outcome.GONE if found is None else self._known(found)
        if found is None or known is not None:
            if is_hint:
                await asyncio.sleep(_VAIN_HINT_S)
            return known or Outcome.GONE
        request = asyncio.create_task(self._request(found))
        self._pending[found.upload_id] = request
        request.add_done_callback(partial(self._requested, found.upload_id))
        await asyncio.wait({request}, timeout=_SLOT_S)
        return request.result() if request.done() else Outcome.WAITING

    def _requested(self, upload_id: str, request: asyncio.Task[Outcome]) -> None:
        del self._pending[upload_id]
        if not request.cancelled():
            request.exception()  # marks it as retrieved: its waiter may be gone

    def _known(self, found: Candidate) -> Outcome | None:
        """The outcome of this very object, or None if it is to be requested now."""
        if found.upload_id in self._pending or len(self._pending) >= MAX_REMEMBERED:
            return Outcome.WAITING
        refusal = self.refused.get(found.object.key)
        # The reason may have been fixed when some process restarted, or within a day.
        since = max(self._started_at, self._retried_at, self._now() - REFUSED_FOR)
        if refusal is not None and refusal.upload_id == found.upload_id and refusal.at >= since:
            return Outcome.REFUSED
        asked = self._asked.get(found.upload_id)
        if asked is None or time.monotonic() - asked.at >= asked.valid_s:
            return None
        return asked.outcome

    async def _request(self, found: Candidate) -> Outcome:
        target, asked_at = found.target, self._now()
        try:
            known = self.refused.get(found.object.key)
            is_repeated = known is not None and known.upload_id == found.upload_id
            await self._publisher.upload_from_source(
                target.project, target.object_key, found.object, letter=not is_repeated
            )
        except MalformedRequestError as exc:
            return self._refuse(found.object.key, found.upload_id, exc.code)
        self._metrics.count(self.name, "requested")
        outcome = await self._outcome(found, asked_at)
        before = self._asked.pop(found.upload_id, None)
        valid_s = self._valid_s(outcome, before)
        self._asked[found.upload_id] = _Asked(time.monotonic(), outcome, valid_s)
        while len(self._asked) > MAX_REMEMBERED:
            self._asked.popitem(last=False)
        return outcome

    def _valid_s(self, outcome: Outcome, before: _Asked | None) -> float:
        """The seconds for which an object with this outcome is not requested again."""
        stays = outcome is Outcome.STORED and self.source.delete is False
        if stays or outcome is Outcome.REFUSED:
            return _REMEMBER_S
        return _REPEAT_S if before is None else min(2 * before.valid_s, _REMEMBER_S)

    async def _outcome(self, found: Candidate, asked_at: datetime) -> Outcome:
        try:
            event = await self._publisher.wait(
                found.upload_id,
                timeout_s=_REMEMBER_S,
                project=found.target.project,
                request_type="upload.requested",
            )
        except WaitTimeoutError:
            return Outcome.WAITING
        except PublisherError as exc:  # the request was published, so the object may be stored
            _log.warning("outcome not known", source=self.name, problem=str(exc))
            return Outcome.WAITING
        if not isinstance(event, Rejected):
            self._forget_refusal(found, asked_at)
            self._metrics.count(self.name, "stored")
            return Outcome.STORED
        if event.code in _OVERTAKEN:
            return Outcome.GONE
        return self._refuse(found.object.key, found.upload_id, event.code)

    def _forget_refusal(self, stored: Candidate, asked_at: datetime) -> None:
        """Forget that this object, or one that it has replaced, was refused.

        A later refusal at its key is of an object that has replaced this one meanwhile.
        """
        refusal = self.refused.get(stored.object.key)
        if refusal and (refusal.upload_id == stored.upload_id or refusal.at <= asked_at):
            del self.refused[stored.object.key]

    def _refuse(self, s3_key: str, upload_id: str, code: str) -> Outcome:
        known = self.refused.get(s3_key)
        is_new = known is None or known.upload_id != upload_id
        if is_new or upload_id:  # the refusal of a name is final
            self.refused.pop(s3_key, None)
            self.refused[s3_key] = Refusal(upload_id, code, self._now())
            if len(self.refused) > MAX_REFUSED:
                del self.refused[next(iter(self.refused))]
        if is_new:
            self._metrics.count(self.name, "refused")
            # Anyone who can write the source can make any number of bad names.
            log = _log.warning if upload_id else _log.debug
            log("object refused", source=self.name, upload_id=upload_id, code=code)
        return Outcome.REFUSED

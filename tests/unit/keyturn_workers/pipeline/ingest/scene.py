"""One source in memory, and a publisher whose outcomes the test decides."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, cast

from keyturn.crypto import Secret
from keyturn.errors import WaitTimeoutError
from keyturn.identifiers import format_time
from keyturn.messages import UploadRejected, UploadStored
from keyturn_workers.core.source_mapping import Source, parse_sources
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.pipeline.ingest.metrics import IngestMetrics
from keyturn_workers.pipeline.ingest.poll import Poller
from keyturn_workers.pipeline.ingest.record import SourceRecord, SourceRecords
from keyturn_workers.pipeline.ingest.source_ingest import SourceIngest
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.process.metrics_registry import Registry
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.messages import Event, SourceObject
    from keyturn.publisher import Publisher

DEPLOYMENT: Final = "test"
MASTER_KEYS: Final = {"main": Secret(bytes(32))}


def source_of(**fields: Any) -> Source:
    drop = {"bucket": "acme-drop", "prefix": "in/", "project": "acme", "key": "{name}"}
    return parse_sources({"drop": {**drop, **fields}})["drop"]


class Outcomes:
    """In place of a publisher: notes each request, and answers as `codes` says by object key.

    A code refuses, None leaves the request without an outcome; all others are stored. `letters` has
    the requests that leave a dead letter if they are refused.
    """

    def __init__(self) -> None:
        self.requested: list[SourceObject] = []
        self.letters: list[SourceObject] = []
        self.uploaded: list[dict[str, Any]] = []
        self.codes: dict[str, str | None] = {}
        self.failure: Exception | None = None
        self.hold = asyncio.Event()
        self.hold.set()
        self._keys: dict[str, tuple[str, str]] = {}
        self._more = asyncio.Event()

    async def reached(self, count: int) -> None:
        """Wait until so many requests were published."""
        while len(self.requested) < count:
            self._more.clear()
            await self._more.wait()

    @property
    def keys(self) -> list[str]:
        return [each.key for each in self.requested]

    async def upload_from_source(
        self, project: str, object_key: str, source_object: SourceObject, *, letter: bool = True
    ) -> str:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.requested.append(source_object)
        if letter:
            self.letters.append(source_object)
        self._more.set()
        upload_id = source_object.upload_id(DEPLOYMENT)
        self._keys[upload_id] = (project, object_key)
        return upload_id

    async def upload(
        self, project: str, object_key: str, body: bytes, *, upload_id: str, **described: Any
    ) -> str:
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self._keys[upload_id] = (project, object_key)
        upload = {"key": object_key, "body": body, "upload_id": upload_id, **described}
        self.uploaded.append(upload)
        return upload_id

    async def wait(self, upload_id: str, **how: Any) -> Event:
        del how
        await self.hold.wait()
        project, key = self._keys[upload_id]
        code = self.codes.get(key, "")
        at = format_time(datetime.now(UTC))
        if code is None:
            raise WaitTimeoutError("no event")
        if code:
            return UploadRejected(at=at, upload_id=upload_id, project=project, code=code, detail="")
        return UploadStored(
            at=at, upload_id=upload_id, project=project, key=key, size=1, generation=1
        )


class Scene:
    """A source's bucket, Keyturn's own, and what the processes of one deployment share."""

    def __init__(self, **fields: Any) -> None:
        self.source = source_of(**fields)
        self.bucket = MemoryStorage()
        self.own = MemoryStorage()
        self.outcomes = Outcomes()
        self.now = datetime(2026, 11, 30, 3, tzinfo=UTC)
        self.records = SourceRecords(self.own, operator_keys(MASTER_KEYS), "main")

    def put(self, *keys: str, body: bytes = b"x") -> None:
        for key in keys:
            self.bucket.plant(f"in/{key}", body, Headers(metadata={}))

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def process(self) -> tuple[SourceIngest, Poller]:
        """The parts of a process that starts now."""
        metrics = IngestMetrics(Registry(), ["drop"])
        publisher = cast("Publisher", self.outcomes)
        clock = lambda: self.now  # noqa: E731
        bucket = SourceBucket("drop", self.source, self.bucket, self.own)
        ingest = SourceIngest(bucket, publisher, DEPLOYMENT, metrics, clock)
        return ingest, Poller(ingest, self.records, metrics, interval_s=300, now=clock)

    async def poll(self, poller: Poller, *, take_over: bool = False) -> list[str]:
        """List once; the keys that were asked for, without the prefix, sorted."""
        before = len(self.outcomes.requested)
        await poller.poll(take_over=take_over)
        asked = self.outcomes.requested[before:]
        return sorted(each.key.removeprefix("in/") for each in asked)

    async def record(self) -> SourceRecord:
        return (await self.records.read("drop")).record

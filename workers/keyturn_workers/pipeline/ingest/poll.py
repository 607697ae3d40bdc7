"""Lists a source from its start to its end, by one worker at a time (SPEC 17.4).

A notification can be lost; a listing finds every object. It is divided into runs of about 64
objects, and the record keeps a digest of each run's stored objects: only runs that have changed
are requested again. The keys alone determine where a run ends, so a new object changes one run.
Refused objects are remembered by their keys, up to a limit: so a run with refused objects has a
second digest, of all its objects, which is valid until they are due again. If Keyturn deletes from
the source, the listed objects are those not stored or not deleted: all are requested again, unless
there are suspiciously many.

The record is also the lock. The worker that lists the source writes it at least every minute, each
time on the condition that no other worker has written it. A worker that starts takes over at once;
otherwise the next listing begins when no worker has written the record for `SOURCE_POLL_S`.
"""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Final

import structlog

from keyturn.errors import CodedError, PublisherError
from keyturn.identifiers import format_time
from keyturn_workers.core.errors import PreconditionError, StorageResponseError, first_error
from keyturn_workers.core.source_mapping import Source
from keyturn_workers.core.storage_values import ObjectSummary
from keyturn_workers.pipeline.ingest.metrics import IngestMetrics
from keyturn_workers.pipeline.ingest.record import DIGEST_BYTES, SourceRecord, SourceRecords
from keyturn_workers.pipeline.ingest.source_ingest import (
    MAX_REMEMBERED,
    REFUSED_FOR,
    Outcome,
    SourceIngest,
    is_folder_marker,
    objects_of,
)
from keyturn_workers.process.background import repeat

RUN_OBJECTS: Final = 64
"""How many objects a run has on average."""
_RUN_MAX_OBJECTS: Final = 512
_WRITE_EVERY_S: Final = 60.0

_log = structlog.get_logger()


async def runs(
    rows: AsyncIterator[ObjectSummary],
) -> AsyncGenerator[Sequence[ObjectSummary], None]:
    """Divide a listing into runs."""
    run: list[ObjectSummary] = []
    async for row in rows:
        run.append(row)
        ends = sha256(_bytes(row.key)).digest()[0] % RUN_OBJECTS == 0
        if ends or len(run) == _RUN_MAX_OBJECTS:
            yield run
            run = []
    if run:
        yield run


def digest_of(
    rows: Iterable[ObjectSummary], source: Source, retried_at: datetime | None = None
) -> bytes:
    """A digest of these objects, their contents, and where the source maps them.

    `retried_at` is None if no object is refused, else when refused objects were last due again.
    """
    texts = [source.project, source.key]
    for row in rows:
        texts += (row.key, row.etag)
    if retried_at is not None:  # one more text, so no other objects have the same texts
        texts.append(format_time(retried_at))
    digest = sha256()
    for part in map(_bytes, texts):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()[:DIGEST_BYTES]


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


class Poller:
    """Lists one source periodically.

    `now` is this machine's clock: the lock's times are minutes, so its drift does not matter.
    """

    def __init__(
        self,
        ingest: SourceIngest,
        records: SourceRecords,
        metrics: IngestMetrics,
        *,
        interval_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._ingest = ingest
        self._records = records
        self._metrics = metrics
        self._interval_s = interval_s
        self._now = now
        self._is_first = True

    async def run(self) -> None:
        """List the source at once, and then periodically."""
        await repeat(self._poll_logged, lambda: self._interval_s)

    async def _poll_logged(self) -> None:
        name = self._ingest.name
        take_over, self._is_first = self._is_first, False
        try:
            await self.poll(take_over=take_over)
        except* PreconditionError:
            _log.info("another worker lists the source", source=name)
        except* (CodedError, StorageResponseError, PublisherError) as errors:
            problem = first_error(errors)
            text = f"{type(problem).__name__}: {problem}"
            _log.error("source not listed to its end", source=name, problem=text)
        except* Exception as errors:  # noqa: BLE001  # a bug of ours must not end the listings for good
            _log.error("source not listed to its end", source=name, exc_info=first_error(errors))

    async def poll(self, *, take_over: bool) -> None:
        """List the source once, and wait for the outcomes; do nothing if another worker lists it.

        With `take_over`, list it even then; the other worker stops.

        Raises:
            ExceptionGroup: `PreconditionError` if another worker has taken over, and the errors
                of storage and broker.
        """
        before = await self._records.read(self._ingest.name)
        record = before.record
        self._ingest.remember(record)
        self._report(record)
        now, polled_at = self._now(), record.polled_at
        interval = timedelta(seconds=self._interval_s)
        if not take_over and polled_at is not None and abs(now - polled_at) < interval:
            return
        retried_at = record.retried_at
        if take_over or retried_at is None or abs(now - retried_at) >= REFUSED_FOR:
            record = replace(record, retried_at=now)
            self._ingest.remember(record)
        is_deleted_from = self._ingest.source.delete
        if is_deleted_from and take_over:
            record = replace(record, digests=frozenset())
        asks_stored = is_deleted_from and (take_over or record.objects <= MAX_REMEMBERED)
        listing = _Listing(self._ingest, record, now, asks_stored=asks_stored)
        stored = await self._records.write(self._ingest.name, before, listing.record_at(now))
        async with asyncio.TaskGroup() as group:
            work = group.create_task(listing.take_in())
            while not work.done():
                await asyncio.wait({work}, timeout=min(_WRITE_EVERY_S, self._interval_s / 3))
                record = listing.record_at(self._now())
                stored = await self._records.write(self._ingest.name, stored, record)
        self._report(stored.record)

    def _report(self, record: SourceRecord) -> None:
        finished_at = record.finished_at
        self._metrics.report(
            self._ingest.name,
            listed_at=0.0 if finished_at is None else finished_at.timestamp(),
            waiting=record.waiting,
            refused=len(record.refused),
        )


class _Listing:
    """One listing of a source under way.

    `before` is the record when it began, at `started_at`. With `asks_stored`, stored objects are
    requested again, so that they are deleted.
    """

    def __init__(
        self, ingest: SourceIngest, before: SourceRecord, started_at: datetime, *, asks_stored: bool
    ) -> None:
        self._ingest = ingest
        self._before = before
        self._started_at = started_at
        self._asks_stored = asks_stored
        self._objects = 0
        self._waiting = 0
        self._digests: set[bytes] = set()
        # Refused objects that the listing has not met.
        self._unmet = set(ingest.refused)
        self._is_finished = False

    async def take_in(self) -> None:
        """Ingest every listed object, and wait for the outcomes.

        Raises:
            ExceptionGroup: the errors of source and broker.
        """
        bucket = self._ingest.bucket
        async with (
            asyncio.TaskGroup() as group,
            aclosing(runs(objects_of(bucket))) as found,
        ):
            async for run in found:
                self._objects += len(run)
                rows = [row for row in run if not is_folder_marker(row)]
                if self._is_settled(rows):
                    continue
                known = self._stored(rows)
                tasks = {
                    row.key: await self._ingest.begin(row.key, is_hint=False)
                    for row in rows
                    if row.key not in known
                }
                group.create_task(self._finish(rows, known, tasks))
        self._is_finished = True

    def _stored(self, rows: Sequence[ObjectSummary]) -> set[str]:
        """The run's keys that the record shows as stored: all but the refused ones, or no key."""
        if self._asks_stored:
            return set()
        others = self._not_refused(rows)
        is_known = digest_of(others, self._ingest.source) in self._before.digests
        return {row.key for row in others} if is_known else set()

    def _is_settled(self, rows: Sequence[ObjectSummary]) -> bool:
        """Check if a run has nothing to request, although not all its refusals are known."""
        digest = digest_of(rows, self._ingest.source, self._before.retried_at)
        if digest not in self._before.digests or not self._not_refused(rows) or self._stored(rows):
            return False
        self._digests.add(digest)
        self._unmet.difference_update(row.key for row in rows)
        return True

    def _not_refused(self, rows: Sequence[ObjectSummary]) -> list[ObjectSummary]:
        return [row for row in rows if row.key not in self._ingest.refused]

    async def _finish(
        self,
        rows: Sequence[ObjectSummary],
        known: Collection[str],
        tasks: Mapping[str, asyncio.Task[Outcome]],
    ) -> None:
        outcomes = dict.fromkeys(known, Outcome.STORED)
        outcomes |= zip(tasks, await asyncio.gather(*tasks.values()), strict=True)
        waiting = list(outcomes.values()).count(Outcome.WAITING)
        self._waiting += waiting
        refused = {key for key in outcomes if outcomes[key] is Outcome.REFUSED}
        self._unmet -= refused
        if waiting:
            return
        source = self._ingest.source
        stored = [row for row in rows if outcomes[row.key] is Outcome.STORED]
        self._digests.add(digest_of(stored, source))
        is_settled = len(refused) + len(stored) == len(rows)
        if refused and is_settled and not (stored and self._asks_stored):
            self._digests.add(digest_of(rows, source, self._before.retried_at))

    def record_at(self, now: datetime) -> SourceRecord:
        """The record of the source as of now."""
        if not self._is_finished:
            return replace(
                self._before,
                polled_at=now,
                digests=self._before.digests | self._digests,
                refused=dict(self._ingest.refused),
            )
        # Refusals that the listing met, and those from notifications meanwhile.
        refused = {
            s3_key: refusal
            for s3_key, refusal in self._ingest.refused.items()
            if s3_key not in self._unmet or refusal.at >= self._started_at
        }
        self._ingest.refused = refused
        return SourceRecord(
            polled_at=now,
            finished_at=now,
            objects=self._objects,
            waiting=self._waiting,
            digests=frozenset(self._digests),
            retried_at=self._before.retried_at,
            refused=refused,
        )

"""Lists a source from its start to its end, by one worker at a time (SPEC 17.4).

A notification can be lost; a listing finds every object. It is divided into runs of about 64
objects, and the record keeps a digest of those of each run that are stored: only runs that have
changed are requested again. Where a run ends depends on the keys alone, so that a new object
changes one run. Refused objects are remembered by their keys, but only so many of them: a run with
refused objects has a second digest, of all its objects, which is valid until they are due again.
If Keyturn deletes from the source, a listing shows what has not been taken in, or could not be
deleted: all of it is requested again, unless there is suspiciously much of it.

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
from keyturn_workers.background import repeat
from keyturn_workers.errors import PreconditionError, StorageAnswerError, first_error
from keyturn_workers.ingest.intake import (
    MAX_REMEMBERED,
    REFUSED_FOR,
    Intake,
    Outcome,
    is_folder_marker,
    objects_of,
)
from keyturn_workers.ingest.metrics import IngestMetrics
from keyturn_workers.ingest.record import DIGEST_BYTES, SourceRecord, SourceRecords
from keyturn_workers.sources.config import Source
from keyturn_workers.storage import ObjectSummary

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
    """What identifies these objects, their contents, and where the source maps them.

    Args:
        rows: The objects.
        source: Where they are.
        retried_at: If some of them are refused: when refused objects were last due again.
    """
    texts = [source.project, source.key]
    for row in rows:
        texts += (row.key, row.etag)
    if retried_at is not None:  # one text more: no other objects have the same texts
        texts.append(format_time(retried_at))
    digest = sha256()
    for part in map(_bytes, texts):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()[:DIGEST_BYTES]


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


class Poller:
    """Lists one source periodically.

    Args:
        intake: Takes in what is found.
        records: The records of sources.
        metrics: Reports what the record says.
        interval_s: `SOURCE_POLL_S`.
        now: This machine's clock. The lock's times are minutes, so its drift does not matter.
    """

    def __init__(
        self,
        intake: Intake,
        records: SourceRecords,
        metrics: IngestMetrics,
        *,
        interval_s: float,
        now: Callable[[], datetime],
    ) -> None:
        self._intake = intake
        self._records = records
        self._metrics = metrics
        self._interval_s = interval_s
        self._now = now
        self._is_first = True

    async def run(self) -> None:
        """List the source at once, and then again and again."""
        await repeat(self._poll_logged, lambda: self._interval_s)

    async def _poll_logged(self) -> None:
        name = self._intake.name
        take_over, self._is_first = self._is_first, False
        try:
            await self.poll(take_over=take_over)
        except* PreconditionError:
            _log.info("another worker lists the source", source=name)
        except* (CodedError, StorageAnswerError, PublisherError) as errors:
            problem = first_error(errors)
            text = f"{type(problem).__name__}: {problem}"
            _log.error("source not listed to its end", source=name, problem=text)
        except* Exception as errors:  # noqa: BLE001  # a bug of ours must not end the listings for good
            _log.error("source not listed to its end", source=name, exc_info=first_error(errors))

    async def poll(self, *, take_over: bool) -> None:
        """List the source once, and wait for the outcomes; nothing if another worker lists it.

        Args:
            take_over: List it even then; the other worker stops.

        Raises:
            ExceptionGroup: of `PreconditionError` if another worker has taken over, and of the
                errors of storage and broker.
        """
        before = await self._records.read(self._intake.name)
        record = before.record
        self._intake.remember(record)
        self._report(record)
        now, polled_at = self._now(), record.polled_at
        interval = timedelta(seconds=self._interval_s)
        if not take_over and polled_at is not None and abs(now - polled_at) < interval:
            return
        retried_at = record.retried_at
        if take_over or retried_at is None or abs(now - retried_at) >= REFUSED_FOR:
            record = replace(record, retried_at=now)
            self._intake.remember(record)
        is_deleted_from = self._intake.source.delete
        if is_deleted_from and take_over:
            record = replace(record, digests=frozenset())
        asks_stored = is_deleted_from and (take_over or record.objects <= MAX_REMEMBERED)
        listing = _Listing(self._intake, record, now, asks_stored=asks_stored)
        stored = await self._records.write(self._intake.name, before, listing.record_at(now))
        async with asyncio.TaskGroup() as group:
            work = group.create_task(listing.take_in())
            while not work.done():
                await asyncio.wait({work}, timeout=min(_WRITE_EVERY_S, self._interval_s / 3))
                record = listing.record_at(self._now())
                stored = await self._records.write(self._intake.name, stored, record)
        self._report(stored.record)

    def _report(self, record: SourceRecord) -> None:
        finished_at = record.finished_at
        self._metrics.report(
            self._intake.name,
            listed_at=0.0 if finished_at is None else finished_at.timestamp(),
            waiting=record.waiting,
            refused=len(record.refused),
        )


class _Listing:
    """One listing of a source under way.

    Args:
        intake: Takes in what is found.
        before: The record when it began.
        started_at: That time.
        asks_stored: Whether to request stored objects again, so that they are deleted.
    """

    def __init__(
        self, intake: Intake, before: SourceRecord, started_at: datetime, *, asks_stored: bool
    ) -> None:
        self._intake = intake
        self._before = before
        self._started_at = started_at
        self._asks_stored = asks_stored
        self._objects = 0
        self._waiting = 0
        self._digests: set[bytes] = set()
        # Refused objects that the listing has not met.
        self._unmet = set(intake.refused)
        self._is_finished = False

    async def take_in(self) -> None:
        """Take in every object that is listed, and wait for the outcomes.

        Raises:
            ExceptionGroup: the errors of source and broker.
        """
        bucket = self._intake.bucket
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
                    row.key: await self._intake.begin(row.key, is_hint=False)
                    for row in rows
                    if row.key not in known
                }
                group.create_task(self._finish(rows, known, tasks))
        self._is_finished = True

    def _stored(self, rows: Sequence[ObjectSummary]) -> set[str]:
        """The keys of a run that are stored, by the record: all but the refused ones, or none."""
        if self._asks_stored:
            return set()
        others = self._not_refused(rows)
        is_known = digest_of(others, self._intake.source) in self._before.digests
        return {row.key for row in others} if is_known else set()

    def _is_settled(self, rows: Sequence[ObjectSummary]) -> bool:
        """Whether a run, not all of whose refusals are known, has nothing to request."""
        digest = digest_of(rows, self._intake.source, self._before.retried_at)
        if digest not in self._before.digests or not self._not_refused(rows) or self._stored(rows):
            return False
        self._digests.add(digest)
        self._unmet.difference_update(row.key for row in rows)
        return True

    def _not_refused(self, rows: Sequence[ObjectSummary]) -> list[ObjectSummary]:
        return [row for row in rows if row.key not in self._intake.refused]

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
        source = self._intake.source
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
                refused=dict(self._intake.refused),
            )
        # Those that the listing met, and what notifications met meanwhile.
        refused = {
            s3_key: refusal
            for s3_key, refusal in self._intake.refused.items()
            if s3_key not in self._unmet or refusal.at >= self._started_at
        }
        self._intake.refused = refused
        return SourceRecord(
            polled_at=now,
            finished_at=now,
            objects=self._objects,
            waiting=self._waiting,
            digests=frozenset(self._digests),
            retried_at=self._before.retried_at,
            refused=refused,
        )

"""The role `ingest` of a worker process: notifications and listings of all watched sources.

Nothing here can harm another tenant: notifications are bounded on the broker, useless ones are
slow, and the requests of a source that have no outcome are limited.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

import structlog
from aio_pika.abc import AbstractIncomingMessage

from keyturn.errors import MalformedRequestError
from keyturn.publisher import Publisher
from keyturn.topology import NOTIFICATIONS
from keyturn_workers.amqp.consumer import Settlement
from keyturn_workers.amqp.failures import utc_now
from keyturn_workers.ingest.intake import Intake
from keyturn_workers.ingest.metrics import HintOutcome, IngestMetrics
from keyturn_workers.ingest.notifications import Hint, parse_notification
from keyturn_workers.ingest.poll import Poller
from keyturn_workers.ingest.record import SourceRecords
from keyturn_workers.settings import WorkerSettings
from keyturn_workers.sources.bucket import SourceBucket
from keyturn_workers.worker.metrics import WorkerMetrics

NOTIFICATIONS_AT_ONCE: Final = 8
"""Each may have 16 MiB, which is what a broker accepts by default."""
# After a message that names no object of a source, so that a flood does not take up the process.
_GARBAGE_PAUSE_S: Final = 0.05

_log = structlog.get_logger()


class Ingest:
    """The role `ingest` of one process: for each watched source an intake and a poller.

    Args:
        settings: Of the process.
        watched: The sources that are watched.
        records: What is known about sources.
        publisher: Signs the requests; its owner closes it.
        metrics: Of the process.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        watched: Iterable[SourceBucket],
        records: SourceRecords,
        publisher: Publisher,
        metrics: WorkerMetrics,
    ) -> None:
        watched = list(watched)
        names = [bucket.name for bucket in watched]
        self._metrics = IngestMetrics(metrics.registry, names)
        self._queue = metrics.queue(NOTIFICATIONS)
        self._intakes = [
            Intake(bucket, publisher, settings.deployment, self._metrics, utc_now)
            for bucket in watched
        ]
        self._pollers = [
            Poller(intake, records, self._metrics, interval_s=settings.source_poll_s, now=utc_now)
            for intake in self._intakes
        ]

    async def run(self) -> None:
        """List all sources, forever."""
        try:
            async with asyncio.TaskGroup() as group:
                for poller in self._pollers:
                    group.create_task(poller.run())
        finally:
            await asyncio.gather(*(intake.close() for intake in self._intakes))

    async def handle(self, message: AbstractIncomingMessage) -> Settlement:
        """Follow one notification. It is settled whatever it is: a listing finds what it named."""
        with self._queue.delivery():
            try:
                outcome = await self._follow(message.body)
            except Exception:  # noqa: BLE001  # a bug of ours must not stop the queue
                _log.exception("notification not followed")
                outcome = "malformed"
            self._metrics.count_hint(outcome)
            self._queue.count_hint()
            if outcome != "followed":
                await asyncio.sleep(_GARBAGE_PAUSE_S)
        return Settlement.DONE

    async def _follow(self, body: bytes) -> HintOutcome:
        try:
            hints = parse_notification(body)
        except MalformedRequestError as exc:
            _log.debug("malformed notification", detail=exc.detail)
            return "malformed"
        outcome: HintOutcome = "foreign"
        for hint in hints:
            for intake, s3_key in self._places(hint):
                await intake.begin(s3_key, is_hint=True)
                outcome = "followed"
        return outcome

    def _places(self, hint: Hint) -> Iterator[tuple[Intake, str]]:
        """Where to look: the same bucket name may be on several servers."""
        for intake in self._intakes:
            if intake.source.bucket == hint.bucket:
                for s3_key in hint.s3_keys():
                    if s3_key.startswith(intake.source.prefix):
                        yield intake, s3_key

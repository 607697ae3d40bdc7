"""The role `ingest` of a worker process: notifications and listings of all watched sources.

Nothing here can harm another tenant: notifications are bounded on the broker, useless ones are
slowed down, and a source's requests without an outcome are limited.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, Final

import structlog
from faststream.message import StreamMessage

from keyturn.errors import MalformedRequestError
from keyturn.publisher.client import Publisher
from keyturn.topology import NOTIFICATIONS
from keyturn_workers.pipeline.amqp.routes import Codec, Route
from keyturn_workers.pipeline.ingest.metrics import HintOutcome, IngestMetrics
from keyturn_workers.pipeline.ingest.notifications import Hint, parse_notification
from keyturn_workers.pipeline.ingest.poll import Poller
from keyturn_workers.pipeline.ingest.record import SourceRecords
from keyturn_workers.pipeline.ingest.source_ingest import SourceIngest
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.settings import WorkerSettings
from keyturn_workers.process.wall_clock import utc_now

NOTIFICATIONS_AT_ONCE: Final = 8
"""Each may have 16 MiB, the default limit of a broker."""
# The pause after a message that names no object of a source: a flood must not fill the process.
_GARBAGE_PAUSE_S: Final = 0.05

_log = structlog.get_logger()


class Ingest:
    """The role `ingest` of one process: a `SourceIngest` and a `Poller` for each watched source.

    `publisher` signs the requests; its owner closes it.
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
        self._ingests = [
            SourceIngest(bucket, publisher, settings.deployment, self._metrics, utc_now)
            for bucket in watched
        ]
        self._pollers = [
            Poller(ingest, records, self._metrics, interval_s=settings.source_poll_s, now=utc_now)
            for ingest in self._ingests
        ]

    async def run(self) -> None:
        """List all sources, forever."""
        try:
            async with asyncio.TaskGroup() as group:
                for poller in self._pollers:
                    group.create_task(poller.run())
        finally:
            await asyncio.gather(*(ingest.close() for ingest in self._ingests))

    def route(self) -> Route:
        """Return the route of the notifications."""
        return Route(NOTIFICATIONS, NOTIFICATIONS_AT_ONCE, _NotificationCodec(), self.handle)

    async def handle(self, body: bytes) -> None:
        """Follow one notification. It is always settled: a listing finds the objects anyway."""
        with self._queue.delivery():
            try:
                outcome = await self._follow(body)
            except Exception:  # noqa: BLE001  # a bug of ours must not stop the queue
                _log.exception("notification not followed")
                outcome = "malformed"
            self._metrics.count_hint(outcome)
            self._queue.count_hint()
            if outcome != "followed":
                await asyncio.sleep(_GARBAGE_PAUSE_S)

    async def _follow(self, body: bytes) -> HintOutcome:
        try:
            hints = parse_notification(body)
        except MalformedRequestError as exc:
            _log.debug("malformed notification", detail=exc.detail)
            return "malformed"
        outcome: HintOutcome = "foreign"
        for hint in hints:
            for ingest, s3_key in self._places(hint):
                await ingest.begin(s3_key, is_hint=True)
                outcome = "followed"
        return outcome

    def _places(self, hint: Hint) -> Iterator[tuple[SourceIngest, str]]:
        """The places to look at: the same bucket name may be on several servers."""
        for ingest in self._ingests:
            if ingest.source.bucket == hint.bucket:
                for s3_key in hint.s3_keys():
                    if s3_key.startswith(ingest.source.prefix):
                        yield ingest, s3_key


class _NotificationCodec(Codec):
    """Leaves the parsing to the handler, which counts what is malformed."""

    async def decode(self, msg: StreamMessage[Any]) -> bytes:
        body: bytes = msg.raw_message.body
        return body

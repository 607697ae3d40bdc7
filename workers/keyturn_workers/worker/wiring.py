"""Connects the parts of one worker process: its roles, and what they share (SPEC 6.2, 10)."""

from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from faststream.rabbit import RabbitBroker

from keyturn.identifiers import KEYRINGS_PREFIX
from keyturn.publisher.connection import BrokerAddress
from keyturn.topology import (
    CONTROL_QUEUE,
    NOTIFICATIONS,
    PLAN_QUEUE,
    SWEEP_QUEUE,
)
from keyturn_workers.amqp.consumer import ConsumerContext, Handle
from keyturn_workers.amqp.publisher import WorkerPublisher
from keyturn_workers.amqp.request_consumer import RequestConsumer, RequestHandler, TimeSource
from keyturn_workers.audit import AuditProcess, AuditTrail, RequestRecorder
from keyturn_workers.control import (
    ControlHandler,
    DeadLetterMover,
    Deleter,
    Enroller,
    Recoverer,
    Rotator,
)
from keyturn_workers.ingest.role import NOTIFICATIONS_AT_ONCE, Ingest
from keyturn_workers.keyring import KeyringReader, Witness
from keyturn_workers.keyring.marks import MarkWatch
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.settings import WorkerSettings
from keyturn_workers.sources.bucket import Sources
from keyturn_workers.status.feeds import BrokerFeeds
from keyturn_workers.status.reader import Identity, StatusReader
from keyturn_workers.storage import Storage
from keyturn_workers.storage.clock import keep_clock_known
from keyturn_workers.sweep import SweepContext, SweepDispatcher, SweepStarter, SweepStore
from keyturn_workers.sweep.all_projects import AllProjectsSweep
from keyturn_workers.sweep.evidence import EvidenceLog
from keyturn_workers.sweep.handler import HintConsumer, SweepHandler
from keyturn_workers.sweep.page import PageWorker
from keyturn_workers.sweep.paginator import Paginator
from keyturn_workers.sweep.periodic import PeriodicScan, scan_periodically
from keyturn_workers.sweep.reconciler import Reconciler
from keyturn_workers.upload import (
    Limits,
    OpenedSessions,
    UploadContext,
    Uploader,
    UploadHandler,
)
from keyturn_workers.upload.cleanup import clean_staging_periodically
from keyturn_workers.worker.authorization import Rules
from keyturn_workers.worker.grants import GrantsKeeper
from keyturn_workers.worker.metrics import WorkerMetrics
from keyturn_workers.worker.reporter import WorkerFacts, WorkerReporter

if TYPE_CHECKING:
    from keyturn_workers.tracing.spans import Tracing

UPLOAD: Final = "upload"
CONTROL: Final = "control"
SWEEP: Final = "sweep"
INGEST: Final = "ingest"
ALL_ROLES: Final = frozenset({UPLOAD, CONTROL, SWEEP, INGEST})
# Pages that a process handles at once, so that the end of one overlaps with the next. They share
# `SWEEP_CONCURRENCY`.
_PAGES_AT_ONCE: Final = 4
_STEPS_AT_ONCE: Final = 16


class Wiring:
    """Constructs the consumers and the background work of one process, and what they share."""

    def __init__(
        self,
        settings: WorkerSettings,
        storage: Storage,
        broker: RabbitBroker,
        keys: OperatorKeys,
        metrics: WorkerMetrics,
        grants: GrantsKeeper | None = None,
        audit: AuditTrail | None = None,
        tracing: "Tracing | None" = None,
        witness: Witness | None = None,
        sources: Sources | None = None,
        ingest: Ingest | None = None,
    ) -> None:
        self._sources = sources or Sources()
        self._tracing = tracing
        self._ingest = ingest
        self._grants = grants
        self._audit = audit
        self._settings = settings
        self._storage = storage
        self._metrics = metrics
        self._witness = witness
        self._keyrings = KeyringReader(
            storage,
            keys,
            lease_s=settings.lease_s,
            cache_s=settings.keyring_cache_s,
            witness=witness,
        )
        self._now = self._keyrings.clock.now
        publisher = WorkerPublisher if tracing is None else tracing.worker_publisher
        self._worker_publisher = publisher(
            broker, settings.deployment, settings.event_key, self._now
        )
        self._context = ConsumerContext(self._worker_publisher, metrics, self._now)
        self._keys = keys
        self._store = SweepStore(storage, keys)
        self._sweep_context = SweepContext(
            storage,
            self._keyrings,
            self._keys,
            self._store,
            SweepDispatcher(self._worker_publisher),
            EvidenceLog(storage, settings.deployment, settings.event_key),
            timedelta(seconds=settings.request_max_age_s + settings.staging_grace_s),
        )
        self._starter = SweepStarter(
            self._sweep_context, active_master_key=settings.active_master_key
        )

    def consumers(self, roles: frozenset[str]) -> Iterator[tuple[str, int, Handle]]:
        """The queues of the roles, with the prefetch and the handler of each.

        The prefetch bounds how many messages of a queue are handled at once.
        """
        for queue, prefetch, handle in self._consumers(roles):
            if self._tracing is not None:
                handle = self._tracing.handle(queue, handle)  # noqa: PLW2901  # the same, traced
            yield queue, prefetch, handle

    def _consumers(self, roles: frozenset[str]) -> Iterator[tuple[str, int, Handle]]:
        settings = self._settings
        if UPLOAD in roles:
            handler: RequestHandler = self._upload()
            yield handler.queue, settings.upload_concurrency, self._requests(handler)
        if CONTROL in roles:
            handler = self._control()
            recorder = None if self._audit is None else RequestRecorder(self._audit)
            consumer = self._requests(handler, recorder)
            yield handler.queue, settings.control_concurrency, consumer
        if SWEEP in roles:
            max_age = timedelta(seconds=settings.request_max_age_s)
            for queue, prefetch in ((PLAN_QUEUE, _STEPS_AT_ONCE), (SWEEP_QUEUE, _PAGES_AT_ONCE)):
                yield queue, prefetch, HintConsumer(self._sweep, queue, max_age, self._context)

        if INGEST in roles and self._ingest is not None:
            yield NOTIFICATIONS, NOTIFICATIONS_AT_ONCE, self._ingest.handle

    def background(self, roles: frozenset[str]) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs forever concurrently with the consumers of the roles."""
        # Every role needs the time: an upload's lease, the age of a request, a rotation's date.
        yield keep_clock_known(self.learn_time)
        yield self._keys.purge_periodically()
        if UPLOAD in roles:
            yield self._clean_up_staging()
        if SWEEP in roles:
            yield self._look_at_sweeps()
        if INGEST in roles and self._ingest is not None:
            yield self._ingest.run()

    def reporter(self, roles: frozenset[str], process: AuditProcess) -> WorkerReporter:
        """What publishes this process's own reports."""
        facts = WorkerFacts(
            process,
            roles,
            self._settings,
            self._metrics,
            lambda: self._keyrings.clock.is_known,
            datetime.now(UTC),
        )
        return WorkerReporter(facts, self._worker_publisher.publish_worker_report)

    async def learn_time(self) -> None:
        """Request the storage's time, by which ages and retries are measured.

        Raises:
            StorageUnavailableError, StorageAnswerError
        """
        clock = self._keyrings.clock
        sent_s = clock.local_s()
        # Beyond all keyrings: a response without rows.
        page = await self._storage.list_page(KEYRINGS_PREFIX, after=f"{KEYRINGS_PREFIX}~")
        clock.observe(page.date, sent_s, clock.local_s())

    def _requests(
        self, handler: RequestHandler, audit: RequestRecorder | None = None
    ) -> RequestConsumer:
        settings = self._settings
        rules = Rules(
            deployment=settings.deployment,
            publishers=settings.publishers,
            max_age=timedelta(seconds=settings.request_max_age_s),
        )
        time = TimeSource(self.learn_time, lambda: self._keyrings.clock.is_known)
        return RequestConsumer(
            handler, rules, self._context, time=time, grants=self._grants, audit=audit
        )

    def _upload(self) -> UploadHandler:
        settings = self._settings
        limits = Limits(
            encryption_enabled=settings.encryption_enabled,
            upload_max_bytes=settings.upload_max_bytes,
            part_size_bytes=settings.part_size_bytes,
            stream_concurrency=settings.stream_concurrency,
            copy_limit_bytes=settings.copy_limit_bytes,
        )
        return UploadHandler(
            Uploader(
                UploadContext(
                    self._storage,
                    self._keyrings,
                    self._keys,
                    OpenedSessions(settings.deployment, settings.intake_keys),
                    limits,
                    self._metrics,
                    self._sources,
                )
            )
        )

    def _control(self) -> ControlHandler:
        settings, storage, keyrings = self._settings, self._storage, self._keyrings
        enroller = Enroller(
            storage,
            keyrings,
            self._keys,
            settings.active_master_key,
            settings.intake_keys,
            self._starter,
        )
        rotator = Rotator(storage, keyrings, self._keys, settings.intake_keys, self._starter)
        deleter = Deleter(storage, keyrings, self._keys, settings.lease_s)
        recoverer = None
        if self._witness is not None:
            recoverer = Recoverer(storage, self._keys, self._witness, lease_s=settings.lease_s)
        address = BrokerAddress.of(settings)
        dead_letter_mover = None
        if self._audit is not None:
            dead_letter_mover = DeadLetterMover(address, self._audit, self._now)
        event_keys = [key.verify_key() for key in settings.event_key]
        return ControlHandler(
            enroller,
            rotator,
            self._starter,
            deleter,
            dead_letter_mover=dead_letter_mover,
            recoverer=recoverer,
            status_reader=StatusReader(
                storage,
                self._keys,
                Identity(settings.deployment, settings.active_master_key, event_keys),
                in_hand=lambda: self._metrics.queue(CONTROL_QUEUE).in_flight,
                witness=self._witness,
                feeds=BrokerFeeds(address, settings.deployment, event_keys),
            ),
        )

    @cached_property
    def _sweep(self) -> SweepHandler:
        settings, context = self._settings, self._sweep_context
        paginator = Paginator(context.storage, settings.sweep_page_keys)
        reconciler = Reconciler(context, paginator, lease_s=settings.lease_s)
        all_projects = AllProjectsSweep(context, self._starter)
        page_worker = PageWorker(
            context.storage,
            context.keyrings,
            context.keys,
            context.store,
            concurrency=settings.sweep_concurrency,
            copy_limit_bytes=settings.copy_limit_bytes,
        )
        return SweepHandler(context.store, reconciler, all_projects, page_worker, self._metrics)

    async def _clean_up_staging(self) -> None:
        """Remove staged bodies that no request may name any more (SPEC 6.4)."""
        settings = self._settings
        older_than = timedelta(seconds=settings.request_max_age_s + settings.staging_grace_s)
        await clean_staging_periodically(
            self._storage, older_than=older_than, interval_s=settings.staging_sweep_interval_s
        )

    async def _look_at_sweeps(self) -> None:
        """Resume sweeps whose messages were lost, and compare keyrings with their marks."""
        watch = None
        if self._witness is not None:
            watch = MarkWatch(self._witness, self._metrics.report_rolled_back)
        periodic = PeriodicScan(self._sweep_context, self._sweep, self._starter, watch)
        await scan_periodically(periodic, interval_s=self._settings.sweep_rescue_interval_s)

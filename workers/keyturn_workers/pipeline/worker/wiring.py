"""Connect the parts of one worker process: its roles and their shared parts (SPEC 6.2, 10)."""

import asyncio
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from faststream.rabbit import RabbitBroker

from keyturn.identifiers import KEYRINGS_PREFIX
from keyturn.publisher.connection import BrokerAddress
from keyturn.topology import (
    CONTROL_QUEUE,
    PLAN_QUEUE,
    SWEEP_QUEUE,
)
from keyturn_workers.core.authorization import Rules
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.audit.requests import RequestRecorder
from keyturn_workers.keys.audit.trail import AuditProcess, AuditTrail
from keyturn_workers.keys.keyring.marks import MarkWatch, Witness
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher
from keyturn_workers.pipeline.amqp.requests import (
    RequestHandler,
    RequestQueue,
    TimeSource,
    request_route,
)
from keyturn_workers.pipeline.amqp.routes import Route
from keyturn_workers.pipeline.amqp.settlement import DeliveryContext
from keyturn_workers.pipeline.control.dead_letters import DeadLetterMover
from keyturn_workers.pipeline.control.deletion import Deleter
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.control.recovery import Recoverer
from keyturn_workers.pipeline.control.request_handler import ControlHandler
from keyturn_workers.pipeline.control.rotation import Rotator
from keyturn_workers.pipeline.ingest.role import Ingest
from keyturn_workers.pipeline.sources.port import Sources
from keyturn_workers.pipeline.sweep.all_projects import AllProjectsSweep
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog
from keyturn_workers.pipeline.sweep.handler import HintQueue, SweepHandler, hint_route
from keyturn_workers.pipeline.sweep.messages import SweepDispatcher
from keyturn_workers.pipeline.sweep.page import PageWorker
from keyturn_workers.pipeline.sweep.paginator import Paginator
from keyturn_workers.pipeline.sweep.periodic import PeriodicScan, scan_periodically
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from keyturn_workers.pipeline.sweep.starter import SweepStarter
from keyturn_workers.pipeline.sweep.steps import SweepContext
from keyturn_workers.pipeline.upload.attempt import Limits, UploadContext
from keyturn_workers.pipeline.upload.cleanup import clean_staging_periodically
from keyturn_workers.pipeline.upload.request_handler import UploadHandler
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from keyturn_workers.pipeline.upload.uploader import Uploader
from keyturn_workers.pipeline.worker.reporter import WorkerFacts, WorkerReporter
from keyturn_workers.process.grants_file import GrantsKeeper
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.settings import WorkerSettings
from keyturn_workers.reports.status.feeds import BrokerFeeds
from keyturn_workers.reports.status.reader import Identity, StatusReader
from keyturn_workers.storage.clock import keep_clock_known

if TYPE_CHECKING:
    from keyturn_workers.pipeline.tracing.spans import Tracing

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
    """Builds the consumers and background work of one process, and their shared parts."""

    def __init__(
        self,
        settings: WorkerSettings,
        storage: Storage,
        broker: RabbitBroker,
        keys: OperatorKeys,
        customer_keys: CustomerKeys,
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
        self._context = DeliveryContext(self._worker_publisher, metrics, self._now)
        self._keys = keys
        self._customer_keys = customer_keys
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

    @property
    def ending(self) -> asyncio.Event:
        """To be set when the process is asked to end: deliveries are then no longer held."""
        return self._context.ending

    def routes(self, roles: frozenset[str]) -> Iterator[Route]:
        """Return the routes of the roles' queues."""
        for route in self._routes(roles):
            tracing = self._tracing
            yield route if tracing is None else route.within(tracing.middleware(route.queue))

    def _routes(self, roles: frozenset[str]) -> Iterator[Route]:
        settings = self._settings
        if UPLOAD in roles:
            yield request_route(self._requests(self._upload()), settings.upload_concurrency)
        if CONTROL in roles:
            recorder = None if self._audit is None else RequestRecorder(self._audit)
            queue = self._requests(self._control(), recorder)
            yield request_route(queue, settings.control_concurrency)
        if SWEEP in roles:
            max_age = timedelta(seconds=settings.request_max_age_s)
            for name, prefetch in ((PLAN_QUEUE, _STEPS_AT_ONCE), (SWEEP_QUEUE, _PAGES_AT_ONCE)):
                hints = HintQueue(self._sweep, name, max_age, self._context)
                yield hint_route(hints, prefetch)
        if INGEST in roles and self._ingest is not None:
            yield self._ingest.route()

    def background(self, roles: frozenset[str]) -> Iterator[Coroutine[Any, Any, None]]:
        """Return the work that runs forever beside the consumers of the roles."""
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
        """Return the publisher of this process's own reports."""
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
        """Request the storage's time, which measures ages and retries.

        Raises:
            StorageUnavailableError, StorageResponseError
        """
        clock = self._keyrings.clock
        sent_s = clock.local_s()
        # A listing beyond all keyrings: a response without rows.
        page = await self._storage.list_page(KEYRINGS_PREFIX, after=f"{KEYRINGS_PREFIX}~")
        clock.observe(page.date, sent_s, clock.local_s())

    def _requests(
        self, handler: RequestHandler, audit: RequestRecorder | None = None
    ) -> RequestQueue:
        settings = self._settings
        rules = Rules(
            deployment=settings.deployment,
            publishers=settings.publishers,
            max_age=timedelta(seconds=settings.request_max_age_s),
        )
        time = TimeSource(self.learn_time, lambda: self._keyrings.clock.is_known)
        return RequestQueue(handler, rules, self._context, time, self._grants, audit)

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
                    self._customer_keys,
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
            self._customer_keys,
        )
        rotator = Rotator(
            storage,
            keyrings,
            self._keys,
            settings.intake_keys,
            self._starter,
            self._customer_keys,
        )
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
                customer_keys=self._customer_keys,
            ),
        )

    @cached_property
    def _sweep(self) -> SweepHandler:
        settings, context = self._settings, self._sweep_context
        paginator = Paginator(context.storage, settings.sweep_page_keys)
        reconciler = Reconciler(
            context,
            paginator,
            self._customer_keys,
            lease_s=settings.lease_s,
            max_wait=timedelta(seconds=settings.request_max_age_s),
        )
        all_projects = AllProjectsSweep(context, self._starter)
        page_worker = PageWorker(
            context.storage,
            context.keyrings,
            context.keys,
            self._customer_keys,
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

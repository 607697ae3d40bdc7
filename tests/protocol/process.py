"""One worker process with all roles, of the workers' own classes, wired as `worker.wiring` does.

Everything that it does to the world goes through its `Wire`, its `WorkerPublisher` and its
channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from keyturn.crypto import IntakeKey, Secret, SigningKey, VerifyKey
from keyturn.identifiers import KEYRINGS_PREFIX
from keyturn.settings import NamedIntakeKey, PublisherSettings
from keyturn.topology import CONTROL_QUEUE, PLAN_QUEUE, SWEEP_QUEUE, UPLOAD_QUEUE
from keyturn_workers.core.authorization import Rules
from keyturn_workers.core.grants import Grant
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.keys.audit.trail import AuditProcess, AuditTrail
from keyturn_workers.keys.customer_keys.secrets import IN_WORKERS, CachedCustomerKeys
from keyturn_workers.keys.keyring.mark_stream import MarkStream
from keyturn_workers.keys.keyring.marks import MarkWatch
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.amqp.acks import Acks
from keyturn_workers.pipeline.amqp.event_batches import EventBatches
from keyturn_workers.pipeline.amqp.requests import (
    ExpiryCheck,
    RequestQueue,
    RequestSettlement,
    TimeSource,
    request_route,
)
from keyturn_workers.pipeline.amqp.settlement import DeliveryContext
from keyturn_workers.pipeline.control.deletion import Deleter
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.control.recovery import Recoverer
from keyturn_workers.pipeline.control.request_handler import ControlHandler
from keyturn_workers.pipeline.control.rotation import Rotator
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.pipeline.sources.port import Sources
from keyturn_workers.pipeline.sweep.all_projects import AllProjectsSweep
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog
from keyturn_workers.pipeline.sweep.handler import (
    HintQueue,
    HintSettlement,
    SweepHandler,
    hint_route,
)
from keyturn_workers.pipeline.sweep.messages import SweepDispatcher
from keyturn_workers.pipeline.sweep.page import PageWorker
from keyturn_workers.pipeline.sweep.paginator import Paginator
from keyturn_workers.pipeline.sweep.periodic import PeriodicScan
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from keyturn_workers.pipeline.sweep.starter import SweepStarter
from keyturn_workers.pipeline.sweep.steps import SweepContext
from keyturn_workers.pipeline.upload.attempt import Limits, UploadContext
from keyturn_workers.pipeline.upload.request_handler import UploadHandler
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from keyturn_workers.pipeline.upload.uploader import Uploader
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.reports.status.reader import Identity, StatusReader
from tests.protocol import source
from tests.protocol.broker import Delivery, WorkerPublisher
from tests.protocol.channels import Channel
from tests.protocol.customer_keys import CACHE_S as CUSTOMER_KEY_CACHE_S
from tests.protocol.letter_mover import LetterMover
from tests.protocol.marks import Link
from tests.protocol.waiters import EVENT_KEY
from tests.protocol.wire import Wire
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from keyturn_workers.pipeline.amqp.routes import Route
    from tests.protocol.world import World

LEASE_S: Final = 6
PREFETCH: Final = 8
CACHE_S: Final = 2
MASTER_KEYS: Final = {"m1": Secret(bytes([1]) * 32), "m2": Secret(bytes([2]) * 32)}
# Each with grants of its own: `api` may do anything, `other` acts only in `beta`, and `second` in
# `acme`, like `api`. `other` may name no object of the source.
PUBLISHERS: Final = {
    name: SigningKey.from_seed(bytes([seed]) * 32)
    for name, seed in (("api", 7), ("other", 8), ("second", 10))
}
_PROJECTS: Final = {"api": "*", "other": "beta", "second": "acme"}
GRANTS: Final = {
    name: Grant(
        (VerifyKey.from_bytes(key.public_bytes),),
        frozenset("*"),
        frozenset({_PROJECTS[name]}),
        frozenset() if name == "other" else frozenset({source.NAME}),
    )
    for name, key in PUBLISHERS.items()
}
_MAX_AGE: Final = timedelta(days=7)
_KEEP_FOR: Final = timedelta(days=8)


@cache
def intake() -> IntakeKey:
    return IntakeKey.from_seed(bytes(32))


@cache
def publisher_settings(name: str) -> PublisherSettings:
    """What this publisher seals with."""
    return PublisherSettings(
        deployment="test",
        amqp_url=SecretStr("amqp://localhost/"),
        publisher_name=name,
        publisher_key=PUBLISHERS[name],
        intake_public_key=NamedIntakeKey("main", intake().public_key),
        event_public_key=(EVENT_KEY.verify_key(),),
    )


@dataclass(frozen=True)
class Parts:
    """The classes that a process is made of: a broken variant names another one."""

    uploader: type[Uploader] = Uploader
    sessions: type[OpenedSessions] = OpenedSessions
    source_bucket: type[SourceBucket] = SourceBucket
    enroller: type[Enroller] = Enroller
    rotator: type[Rotator] = Rotator
    deleter: type[Deleter] = Deleter
    recoverer: type[Recoverer] = Recoverer
    starter: type[SweepStarter] = SweepStarter
    reconciler: type[Reconciler] = Reconciler
    all_projects: type[AllProjectsSweep] = AllProjectsSweep
    page_worker: type[PageWorker] = PageWorker
    paginator: type[Paginator] = Paginator
    store: type[SweepStore] = SweepStore
    evidence_log: type[EvidenceLog] = EvidenceLog
    periodic: type[PeriodicScan] = PeriodicScan
    trail: type[AuditTrail] = AuditTrail
    status_reader: type[StatusReader] = StatusReader
    settlement: type[RequestSettlement] = RequestSettlement
    expiry_check: type[ExpiryCheck] = ExpiryCheck
    hint_settlement: type[HintSettlement] = HintSettlement
    wire: type[Wire] = Wire
    keyrings: type[KeyringReader] = KeyringReader
    customer_keys: type[CachedCustomerKeys] = CachedCustomerKeys
    mark_stream: type[MarkStream] = MarkStream
    letter_mover: type[LetterMover] = LetterMover
    batches: type[EventBatches] = EventBatches
    acks: type[Acks] = Acks


@dataclass(frozen=True)
class Options:
    """How a world is set up."""

    processes: int = 3
    page_keys: int = 2
    versioned: bool = False
    # The source's bucket: whether it keeps versions, and honors the conditions of deletes.
    source_versioned: bool = False
    source_honors_conditions: bool = True
    capabilities: Capabilities = Capabilities()  # noqa: RUF009  # it is frozen
    copy_limit_bytes: int = 10**9
    # The leases of processes that have another one than the rest, by number.
    leases: Mapping[int, int] = field(default_factory=dict)
    # The processes that store plaintext where the project allows it.
    unencrypted: frozenset[int] = frozenset()
    # How long a publish may hold back events, and a channel's first unfinished delivery the
    # acknowledgments of others. A request on the network takes 10 ms at least.
    hold_s: float = 0.005
    acks_hold_s: float = 0.01


class Process:
    """One worker process with all roles, as `keyturn_workers.pipeline.worker.wiring` makes it."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.stalled = False
        # By how many seconds its own clock is off.
        self.clock_s = 0.0
        self._channels: dict[str, Channel[Delivery]] = {}
        self.acks: dict[str, Acks] = {}
        self.wire = world.parts.wire(self, world.network, world.server)
        storage: Any = self.wire
        self.source_wire = world.parts.wire(self, world.network, world.source)
        self.lease_s = world.leases.get(number, LEASE_S)
        self.link = Link(world.marks, self)
        link: Any = self.link
        self.marks = world.parts.mark_stream(
            link, "test", [EVENT_KEY.verify_key()], lease_s=self.lease_s, signing_key=EVENT_KEY
        )
        # Not `run`, which looks for the end of the stream by a timer: `keep_current` does so.
        self._following = world.loop.create_task(self.marks._follow())
        self._looking: asyncio.Task[None] | None = None
        self._looked_s = -inf
        self.keyrings = world.parts.keyrings(
            storage,
            operator_keys(MASTER_KEYS),
            lease_s=self.lease_s,
            cache_s=CACHE_S,
            witness=self.marks,
        )
        self._storage = storage
        self._keys = operator_keys(MASTER_KEYS)
        self.customer_keys = world.parts.customer_keys(
            world.stores.seen_by(self), "test", IN_WORKERS, cache_s=CUSTOMER_KEY_CACHE_S
        )
        self._store = world.parts.store(storage, self._keys)
        self.publisher = WorkerPublisher(self)
        worker_publisher: Any = self.publisher
        now = self.keyrings.clock.now
        self._trail = world.parts.trail(
            AuditProcess.start("worker control"), worker_publisher.publish_record, now=now
        )
        # Not `running`, which publishes what is left when it ends: a process that is killed cannot.
        self._recording = world.loop.create_task(self._trail._send())
        self._context = DeliveryContext(worker_publisher, WorkerMetrics(), now)
        self._sweep_context = SweepContext(
            storage,
            self.keyrings,
            self._keys,
            self._store,
            SweepDispatcher(worker_publisher),
            world.parts.evidence_log(storage, "test", [EVENT_KEY]),
            _KEEP_FOR,
        )
        self._starter = world.parts.starter(self._sweep_context, active_master_key="m1")
        self.sweep_handler = self._sweep()
        watch = MarkWatch(self.marks, lambda _: None)
        self.periodic = world.parts.periodic(
            self._sweep_context, self.sweep_handler, self._starter, watch
        )
        self.routes = {
            UPLOAD_QUEUE: self._requests(self._upload()),
            CONTROL_QUEUE: self._requests(self._control()),
            PLAN_QUEUE: self._hints(PLAN_QUEUE),
            SWEEP_QUEUE: self._hints(SWEEP_QUEUE),
        }
        hold_s = world.options.acks_hold_s
        self.acks = {queue: world.parts.acks(PREFETCH, hold_s=hold_s) for queue in self.routes}

    @property
    def deliveries(self) -> list[Delivery]:
        """What the broker delivered, and was not acknowledged."""
        return [each for channel in self._channels.values() for each in channel.unacked.values()]

    def channel(self, queue: str) -> Channel[Delivery]:
        """The channel on which it consumes a queue: one that was lost is opened again."""
        channel = self._channels.get(queue)
        if channel is None or not channel.is_usable:
            if channel is not None:
                channel.is_closed = True  # by now it is noticed
            channel = Channel[Delivery](
                Delivery.acknowledged, Delivery.returned, self.world.channel_closed
            )
            self._channels[queue] = channel
        return channel

    def disconnect(self, *, noticed: bool = True) -> list[Delivery]:
        """Lose all channels; returns what was delivered on them, and is in its queue again."""
        return [
            each for channel in self._channels.values() for each in channel.close(noticed=noticed)
        ]

    def end(self) -> None:
        """Kill it: it sends nothing any more."""
        self.wire.dead = self.source_wire.dead = True
        self._recording.cancel()
        self._following.cancel()

    def keep_current(self) -> None:
        """As the process does by itself: it reads marks, and looks whether it has read them all."""
        now_s = self.world.clock.seconds
        if self.stalled:
            return
        self.customer_keys.purge()
        self.link.wake()
        is_due = now_s - self._looked_s >= self.lease_s / 3
        if is_due and (self._looking is None or self._looking.done()):
            self._looked_s = now_s
            self._looking = self.world.loop.create_task(self.marks._look())
            # What it met, the next one meets or not.
            self._looking.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def scan_sweeps(self) -> None:
        """One periodic look."""
        await self.periodic.scan(self.world.clock.now + timedelta(seconds=self.clock_s))

    def _hints(self, queue: str) -> Route:
        hints = HintQueue(self.sweep_handler, queue, _MAX_AGE, self._context)
        return hint_route(hints, PREFETCH, settlement=self.world.parts.hint_settlement)

    def _requests(self, handler: Any) -> Route:
        rules = Rules("test", GRANTS, _MAX_AGE)
        clock = self.keyrings.clock
        time = TimeSource(self.learn_time, lambda: clock.is_known)
        return request_route(
            RequestQueue(handler, rules, self._context, time),
            PREFETCH,
            settlement=self.world.parts.settlement,
            expiry_check=self.world.parts.expiry_check,
        )

    async def learn_time(self) -> None:
        """As `Wiring` does: the first request of a process that starts."""
        clock = self.keyrings.clock
        sent_s = clock.local_s()
        page = await self._storage.list_page(KEYRINGS_PREFIX, after=f"{KEYRINGS_PREFIX}~")
        clock.observe(page.date, sent_s, clock.local_s())

    def _upload(self) -> UploadHandler:
        limits = Limits(
            encryption_enabled=self.number not in self.world.options.unencrypted,
            upload_max_bytes=10**9,
            part_size_bytes=100,
            stream_concurrency=2,
            copy_limit_bytes=self.world.options.copy_limit_bytes,
        )
        sessions = self.world.parts.sessions("test", {"main": intake()})
        drop: Any = self.source_wire
        bucket = self.world.parts.source_bucket(source.NAME, source.SOURCE, drop, self._storage)
        context = UploadContext(
            self._storage,
            self.keyrings,
            self._keys,
            self.customer_keys,
            sessions,
            limits,
            sources=Sources("test", {source.NAME: bucket}),
        )
        return UploadHandler(self.world.parts.uploader(context))

    def _control(self) -> ControlHandler:
        storage, keyrings, intake_keys = self._storage, self.keyrings, {"main": intake()}
        parts, starter, secrets = self.world.parts, self._starter, self.customer_keys
        return ControlHandler(
            parts.enroller(storage, keyrings, self._keys, "m1", intake_keys, starter, secrets),
            parts.rotator(storage, keyrings, self._keys, intake_keys, starter, secrets),
            starter,
            parts.deleter(storage, keyrings, self._keys, self.lease_s),
            recoverer=parts.recoverer(storage, self._keys, self.marks, lease_s=self.lease_s),
            dead_letter_mover=parts.letter_mover(self.world, self._trail, keyrings.clock.now),
            status_reader=parts.status_reader(
                storage, self._keys, Identity("test", "m1", ()), now=keyrings.clock.now
            ),
        )

    def _sweep(self) -> SweepHandler:
        storage, keyrings, keys = self._storage, self.keyrings, self._keys
        parts, store, context = self.world.parts, self._store, self._sweep_context
        options = self.world.options
        paginator = parts.paginator(storage, options.page_keys)
        reconciler = parts.reconciler(
            context, paginator, self.customer_keys, lease_s=self.lease_s, max_wait=_MAX_AGE
        )
        all_projects = parts.all_projects(context, self._starter)
        limit = options.copy_limit_bytes
        page_worker = parts.page_worker(
            storage,
            keyrings,
            keys,
            self.customer_keys,
            store,
            concurrency=4,
            copy_limit_bytes=limit,
        )
        return SweepHandler(store, reconciler, all_projects, page_worker)

"""One worker process: from its settings to its end (SPEC 6.2, 10).

On SIGTERM and SIGINT it asks for no further deliveries, finishes those under way within
`SHUTDOWN_GRACE_S`, and exits. Unfinished deliveries go back to their queues.

Everything that runs belongs to a block and ends with it: background work (`background`), and the
connection to the broker, which `_Run` closes even if the start failed.
"""

import asyncio
import itertools
import signal
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import stamina
import structlog
from aio_pika.exceptions import AMQPException
from faststream import FastStream
from faststream.rabbit import Channel, RabbitBroker
from faststream.security import BaseSecurity

from keyturn.errors import (
    BrokerTlsError,
    BrokerUnavailableError,
    EventsUnavailableError,
    SettingsError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import KEYRINGS_PREFIX
from keyturn.publisher.client import Publisher
from keyturn.publisher.connection import (
    AT_ALARM,
    BrokerAddress,
    describe_broker_failure,
    is_at_alarm,
)
from keyturn.topology import audit_queue
from keyturn_workers.core.errors import StorageTlsError, UnsafeStorageError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.keys.audit.trail import AuditProcess, AuditPublisher, AuditTrail
from keyturn_workers.keys.customer_keys.providers import CustomerKeyMetrics, open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_WORKERS
from keyturn_workers.keys.keyring.mark_stream import MarkStream, following
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.master_keys.providers import KmsMetrics, open_operator_keys
from keyturn_workers.pipeline.amqp.consumer import finish
from keyturn_workers.pipeline.amqp.declarations import declare, declare_streams
from keyturn_workers.pipeline.amqp.supervisor import (
    CONNECT_TIMEOUT_S,
    ConsumerSupervisor,
    close_connection,
)
from keyturn_workers.pipeline.ingest.record import SourceRecords
from keyturn_workers.pipeline.ingest.role import Ingest
from keyturn_workers.pipeline.sources.bucket import SourceBucket, open_sources
from keyturn_workers.pipeline.sources.port import Sources
from keyturn_workers.pipeline.worker.reporter import WorkerReporter
from keyturn_workers.pipeline.worker.wiring import INGEST, UPLOAD, Wiring
from keyturn_workers.process.background import background
from keyturn_workers.process.grants_file import GrantsFile, GrantsKeeper
from keyturn_workers.process.health import Check, health_server
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from keyturn_workers.process.runtime import reduce_garbage_collection
from keyturn_workers.process.service_manager import READY, STOPPING, notify_service_manager
from keyturn_workers.process.settings import WorkerSettings, redacted
from keyturn_workers.storage.probe.runner import ProbeReport, Row, probe
from keyturn_workers.storage.s3 import open_storage
from keyturn_workers.storage.s3_http import observe_nothing
from keyturn_workers.storage.vendor_errors import explaining_tls

if TYPE_CHECKING:
    from aio_pika import RobustConnection

    from keyturn_workers.pipeline.tracing.spans import Tracing

# Connections beyond one for each object: keyring reads, records, the control role, health.
_SPARE_CONNECTIONS: Final = 32
_RECONNECT_S: Final = 1.0
_BROKER_TIMEOUT_S: Final = 5
# The most runs of the bucket's checks for the sake of outcomes that are not essential.
_PROBES: Final = 4
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

_T = TypeVar("_T")
_Consumers = Mapping[str, ConsumerSupervisor]

_log = structlog.get_logger()


async def run_worker(
    settings: WorkerSettings,
    roles: frozenset[str],
    tracing: "Tracing | None" = None,
) -> None:
    """Serve the roles until a signal stops the process.

    If the broker is lost while the consumers start, the start is repeated, as if the broker were
    not up yet. No task is left behind.

    Raises:
        UnsafeStorageError: the bucket lacks a capability that SPEC 10 requires.
        TopologyError: a queue exists on the broker with other arguments.
        BrokerTlsError, StorageTlsError: TLS failed.
        StorageUnavailableError, StorageResponseError, OSError, AMQPException: storage or
            broker could not be reached within `START_TIMEOUT_S`.
    """
    tolerate_odd_properties()
    outage = _Outage(settings)
    try:
        async for attempt in stamina.retry_context(
            on=_StartFailedError, attempts=None, timeout=settings.start_timeout_s, wait_max=3
        ):
            with attempt, outage.logged(_StartFailedError):
                await _serve(settings, roles, tracing)
    except _StartFailedError as exc:
        raise exc.cause from None
    _log.info("worker stopped", roles=sorted(roles))


class _StartFailedError(Exception):
    """The consumers did not start. The client library has many errors for a lost broker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


_AWAY: Final = (StorageUnavailableError, EventsUnavailableError, OSError, AMQPException)


class _Outage:
    """Logs why a start is repeated: each reason once, until the reason changes."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._logged: tuple[str, str | None] | None = None

    @contextmanager
    def logged(self, *errors: type[Exception]) -> Iterator[None]:
        """Log one of these errors, after which the start is repeated, and raise it unchanged."""
        try:
            yield
        except (BrokerTlsError, StorageTlsError):
            raise  # the start is not repeated
        except errors as exc:
            problem = self._describe(exc.cause if isinstance(exc, _StartFailedError) else exc)
            if problem != self._logged:
                self._logged = problem
                _log.warning(problem[0], address=problem[1])
            raise

    def _describe(self, error: Exception) -> tuple[str, str | None]:
        if isinstance(error, StorageUnavailableError):
            url = self._settings.s3_endpoint_url
            return f"the storage cannot be used ({error.detail})", url and redacted(url)
        if isinstance(error, EventsUnavailableError):
            return str(error), None
        address = redacted(self._settings.amqp_url.get_secret_value())
        return f"the broker cannot be reached ({describe_broker_failure(error)})", address


@dataclass
class _Run:
    """One run of the FastStream application, with connections that are always closed.

    Its own broker publishes; the consumers have other connections. FastStream starts the broker in
    a task that it cancels, and can close only a connection that it received. A connection that it
    lost track of would reconnect forever (`close_connection`).
    """

    broker: RabbitBroker
    consumers: Collection[ConsumerSupervisor]
    reporter: WorkerReporter
    log_start: Callable[[], None]
    grace_s: float
    ending: asyncio.Event

    _has_started: bool = field(default=False, init=False)
    _exit_requested: bool = field(default=False, init=False)
    _connecting: "asyncio.Task[RobustConnection] | None" = field(default=None, init=False)

    async def __call__(self) -> None:
        """Run until a signal.

        Raises:
            _StartFailedError: it did not start, and no signal came meanwhile.
        """
        self._app = FastStream(
            self.broker,
            logger=None,
            lifespan=self._lifespan,
            on_startup=[self._connect],
            after_startup=[self._consume],
            on_shutdown=[self._shut_down],
        )
        self._limit = asyncio.timeout(None)
        try:
            async with self._limit:
                await self._app.run()
        except Exception as exc:
            if self._limit.expired():
                # A broker that is out of memory or disk reads nothing from a connection that has
                # published. Unfinished deliveries go back to their queues with the connection.
                _log.warning("the broker did not respond; stopping without it")
            elif self._exit_requested:
                # Consumers that were still starting meet a closed connection, and a lost connection
                # cannot be closed in order. Deliveries go back to their queues.
                how = (
                    "stopped without the broker" if self._has_started else "stopped while starting"
                )
                _log.info(how, problem=type(exc).__name__)
            elif self._has_started:
                raise
            else:
                _reset_signals()
                raise _StartFailedError(exc) from exc

    @asynccontextmanager
    async def _lifespan(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for signal_number in _SIGNALS:
            loop.add_signal_handler(signal_number, self._exit)
        try:
            yield
        finally:
            # Only after the attempts to connect have ended.
            await self._close_consumers()
            if self._connecting is not None:
                await close_connection(self._connecting)

    def _exit(self) -> None:
        self._exit_requested = True
        self._app.exit()

    async def _connect(self) -> None:
        # Only after the signal handlers are set: a reader of this line may signal.
        self.log_start()
        self._connecting = asyncio.create_task(self.broker.connect())
        await asyncio.shield(self._connecting)

    async def _consume(self) -> None:
        await asyncio.gather(*(consumer.start() for consumer in self.consumers))
        self._has_started = True
        self.reporter.begin()
        notify_service_manager(READY)

    async def _shut_down(self) -> None:
        limit_s = self.grace_s + 4 * _BROKER_TIMEOUT_S
        self._limit.reschedule(asyncio.get_running_loop().time() + limit_s)
        notify_service_manager(STOPPING)
        self.ending.set()
        await finish(self.consumers, self.grace_s)
        await self._close_consumers()
        await self.reporter.stop()

    async def _close_consumers(self) -> None:
        await asyncio.gather(*(consumer.close() for consumer in self.consumers))


def _new_broker(
    address: BrokerAddress, on_close: Sequence[Callable[..., None]] = ()
) -> RabbitBroker:
    return RabbitBroker(
        address.url,
        security=None if address.tls is None else BaseSecurity(ssl_context=address.tls),
        apply_types=False,
        default_channel=Channel(on_return_raises=True),
        graceful_timeout=None,  # `finish` waits, once for all consumers
        logger=None,
        on_close=on_close,
        reconnect_interval=_RECONNECT_S,
        timeout=CONNECT_TIMEOUT_S,
    )


async def _serve(
    settings: WorkerSettings, roles: frozenset[str], tracing: "Tracing | None"
) -> None:
    address = BrokerAddress.of(settings)
    capabilities = await _measure_storage(settings)
    audit_stream = audit_queue(settings.audit_max_age_s, settings.audit_max_bytes)
    await _retry_start(settings, lambda: declare(address, settings.publishers, audit_stream))
    metrics = WorkerMetrics() if tracing is None else tracing.metrics()
    process = AuditProcess.start(" ".join(("worker", *sorted(roles))))
    marks = MarkStream(
        address,
        settings.deployment,
        [key.verify_key() for key in settings.event_key],
        lease_s=settings.lease_s,
        signing_key=settings.event_key[0],
        on_skipped=metrics.count_skipped_mark,
    )
    async with (
        following(marks),
        # Outermost but one: it publishes the last records of the others.
        _open_audit_trail(settings, address, process, metrics) as audit,
        open_storage(
            settings,
            capabilities=capabilities,
            max_connections=_max_connections(settings),
            observe=tracing.request_observer(settings.s3_bucket) if tracing else observe_nothing,
        ) as storage,
        open_operator_keys(
            settings,
            storage,
            seals=True,
            on_derived=audit.kek_derived,
            metrics=KmsMetrics(metrics.registry),
        ) as keys,
        open_customer_keys(
            settings,
            settings.deployment,
            IN_WORKERS,
            metrics=CustomerKeyMetrics(metrics.registry, settings.customer_key_stores),
        ) as customer_keys,
        open_sources(
            settings.sources if roles & {UPLOAD, INGEST} else {},
            settings,
            storage,
        ) as sources,
        _open_ingest(settings, roles, storage, keys, sources, metrics) as ingest,
    ):
        await _check_master_keys(settings, keys)
        await _retry_start(settings, marks.load)
        broker = _new_broker(address)
        metrics.registry.add_process()
        grants = _grants_keeper(settings, address)
        wiring = Wiring(
            settings,
            storage,
            broker,
            keys,
            customer_keys,
            metrics,
            grants,
            audit,
            tracing,
            marks,
            Sources(settings.deployment, sources),
            ingest,
        )
        await _retry_start(settings, wiring.learn_time)
        consumers = {
            route.queue: ConsumerSupervisor(partial(_new_broker, address), route)
            for route in wiring.routes(roles)
        }
        _register_consumers(metrics, consumers)
        bucket = settings.s3_bucket
        log_start = partial(
            _log.info,
            "worker started",
            roles=sorted(roles),
            bucket=bucket,
            event_keys=[key.id for key in settings.event_key],  # the first one signs
        )
        reporter = wiring.reporter(roles, process)
        grace_s = settings.shutdown_grace_s
        run = _Run(broker, consumers.values(), reporter, log_start, grace_s, wiring.ending)
        checks = _checks(broker, consumers, storage, marks)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                health_server(settings.health_host, settings.health_port, checks, metrics.registry)
            )
            if grants is not None:
                stack.enter_context(_on_hangup(grants.reload))
                await stack.enter_async_context(background(grants.watch()))
            for work in (reporter.run(), *wiring.background(roles)):
                await stack.enter_async_context(background(work))
            reduce_garbage_collection()
            await run()


async def _check_master_keys(settings: WorkerSettings, keys: OperatorKeys) -> None:
    """Check each master key against its known text in the bucket (SPEC 2.2).

    The worker starts even if a provider is away: requests that need the provider wait.

    Raises:
        SettingsError: the active key is not the one that the bucket knows by its id.
    """
    for name, error in (await keys.check_all()).items():
        if error is None:
            continue
        if isinstance(error, UnknownMasterKeyError) and name == settings.active_master_key:
            raise SettingsError(f"KEYTURN_MASTER_KEYS: {error.detail}")
        detail = getattr(error, "detail", str(error))
        _log.warning("master key not available", master_key=name, detail=detail)


@asynccontextmanager
async def _open_ingest(
    settings: WorkerSettings,
    roles: frozenset[str],
    storage: Storage,
    keys: OperatorKeys,
    sources: Mapping[str, SourceBucket],
    metrics: WorkerMetrics,
) -> AsyncIterator[Ingest | None]:
    """The role `ingest`; None if the process does not have it, or no source is watched.

    Raises:
        SettingsError: no publisher is set that signs its requests.
    """
    watched = [bucket for bucket in sources.values() if bucket.source.watch]
    if INGEST not in roles or not watched:
        if roles == {INGEST}:
            _log.warning("nothing to ingest: no source in KEYTURN_SOURCES is watched")
        yield None
        return
    async with Publisher.open(settings.ingest_publisher(), connect=False) as publisher:
        records = SourceRecords(storage, keys, settings.active_master_key)
        yield Ingest(settings, watched, records, publisher, metrics)


@asynccontextmanager
async def _open_audit_trail(
    settings: WorkerSettings, address: BrokerAddress, process: AuditProcess, metrics: WorkerMetrics
) -> AsyncIterator[AuditTrail]:
    """The process's audit trail, such as that of a `worker control sweep` (SPEC 15.3)."""
    publisher = AuditPublisher(address, settings.deployment, settings.event_key[0])
    trail = AuditTrail(process, publisher.publish)
    metrics.track_audit(lambda: trail.pending)
    try:
        async with trail.running():
            yield trail
    finally:
        await publisher.close()


def _max_connections(settings: WorkerSettings) -> int:
    # Up to four for each streamed upload.
    streams = settings.stream_concurrency * 4
    roles = settings.upload_concurrency + streams + settings.sweep_concurrency
    return roles + _SPARE_CONNECTIONS


def _grants_keeper(settings: WorkerSettings, address: BrokerAddress) -> GrantsKeeper | None:
    """Return the keeper that follows the file of publishers, if the setting is a file."""
    grants = settings.publishers
    if not isinstance(grants, GrantsFile):
        return None
    return GrantsKeeper(grants, partial(declare_streams, address))


@contextmanager
def _on_hangup(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` on SIGHUP, which otherwise ends the process."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, act)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _reset_signals() -> None:
    """Let a signal end the process again: its last handler belongs to an app that failed."""
    for signal_number in _SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(signal_number)


async def _retry_start(settings: WorkerSettings, start: Callable[[], Awaitable[_T]]) -> _T:
    """Try for `START_TIMEOUT_S`: broker and storage may be starting along with this process.

    A TLS failure is not repeated: waiting does not change a certificate.
    """

    def may_pass(error: Exception) -> bool:
        return isinstance(error, _AWAY) and not (
            isinstance(error, (BrokerTlsError, StorageTlsError))
        )

    outage = _Outage(settings)
    async for attempt in stamina.retry_context(
        on=may_pass,
        attempts=None,
        timeout=settings.start_timeout_s,
        wait_max=3,
    ):
        with attempt, outage.logged(*_AWAY):
            return await start()
    raise AssertionError("unreachable")  # stamina raises or returns


class _UntestedError(StorageUnavailableError):
    """Requests of the bucket's checks failed. The next attempt may succeed."""

    def __init__(self, report: ProbeReport) -> None:
        super().__init__(f"the bucket could not be tested: {_failures(report)}")
        self.report = report


async def _measure_storage(settings: WorkerSettings) -> Capabilities:
    """Find out what the bucket supports. Checks whose requests failed are repeated.

    A server may respond to some requests with an error every time. So checks that a worker can do
    without are repeated only a few times, and the others for `START_TIMEOUT_S`. If unsafe buckets
    are allowed, the worker then starts anyway, and assumes that the bucket lacks the untested
    capabilities.

    Raises:
        UnsafeStorageError: the bucket lacks a required capability, and unsafe buckets are not
            allowed.
        StorageUnavailableError: the storage could not be reached, or an essential check could not
            be decided.
    """
    tries = itertools.count(1)
    try:
        report = await _retry_start(settings, lambda: _probe_storage(settings, tries))
    except _UntestedError as exc:
        report = exc.report
        if report.unknown and not settings.allow_unsafe_storage:
            raise
    if report.undecided:
        _log.warning("storage not fully tested", failures=_failures(report))
    if report.unsafe:
        _log.warning("unsafe storage allowed", missing=_names(report.unsafe))
    return report.capabilities


async def _probe_storage(settings: WorkerSettings, tries: Iterator[int]) -> ProbeReport:
    """Test the bucket once.

    `tries` counts the attempts that could run the checks. From `_PROBES` on, outcomes that a
    worker can do without may be missing.

    Raises:
        UnsafeStorageError: the bucket lacks a required capability, and unsafe buckets are not
            allowed.
        _UntestedError: requests of checks failed.
        StorageUnavailableError: the storage cannot be reached.
    """
    async with explaining_tls(settings), open_storage(settings) as storage:
        report = await probe(storage, quick=True)
    if not settings.allow_unsafe_storage and not all(row.undecided for row in report.unsafe):
        raise UnsafeStorageError(
            f"the bucket lacks: {_names(report.unsafe)}; see `keyturn doctor`, or set "
            "KEYTURN_ALLOW_UNSAFE_STORAGE=true to start anyway"
        )
    if report.unknown or (report.undecided and next(tries) < _PROBES):
        raise _UntestedError(report)
    return report


def _failures(report: ProbeReport) -> str:
    return "; ".join(f"{row.name} {row.detail}" for row in report.undecided)


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(row.name for row in rows)


def _register_consumers(metrics: WorkerMetrics, consumers: _Consumers) -> None:
    """Export the queues of this process from the first scrape on."""
    for queue, consumer in consumers.items():
        metrics.queue(queue).initialize()
        metrics.queue(queue).track_consumer(consumer.is_active)


def _checks(
    broker: RabbitBroker, consumers: _Consumers, storage: Storage, marks: MarkStream
) -> dict[str, Check]:
    async def broker_responds() -> bool:
        if not await broker.ping(_BROKER_TIMEOUT_S):
            return False
        # At an alarm the broker still delivers, but accepts no events, so no request is settled.
        if await is_at_alarm(await broker.connect()):
            raise BrokerUnavailableError(f"the broker accepts no messages: {AT_ALARM}")
        return True

    async def is_consuming() -> bool:
        return all(consumer.is_active() for consumer in consumers.values())

    async def storage_responds() -> bool:
        async for _ in storage.list(KEYRINGS_PREFIX, limit=1):
            break
        return True

    async def marks_are_current() -> bool:
        return marks.is_current

    return {
        "broker": broker_responds,
        "consumers": is_consuming,
        "storage": storage_responds,
        "marks": marks_are_current,
    }

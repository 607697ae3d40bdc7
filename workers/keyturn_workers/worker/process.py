"""One worker process: from its settings to its end (SPEC 6.2, 10).

On SIGTERM and SIGINT it asks for no further deliveries, finishes those under way within
`SHUTDOWN_GRACE_S`, and exits. What it could not finish goes back to its queue.

Everything that runs belongs to a block, and ends with it: background work (`background`), and the
connection to the broker, which `_App` closes whatever became of its start.
"""

import asyncio
import itertools
import signal
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
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
    EventsUnavailableError,
    SettingsError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import KEYRINGS_PREFIX
from keyturn.publisher import Publisher
from keyturn.publisher.connection import (
    BrokerAddress,
    close_quietly,
    describe_broker_failure,
)
from keyturn.topology import audit_queue
from keyturn_workers.amqp.consumer import QueueConsumer, finish
from keyturn_workers.amqp.declarations import declare, declare_streams
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.audit import AuditProcess, AuditPublisher, AuditTrail
from keyturn_workers.background import background
from keyturn_workers.errors import StorageTlsError, UnsafeStorageError
from keyturn_workers.ingest.record import SourceRecords
from keyturn_workers.ingest.role import Ingest
from keyturn_workers.keyring.mark_stream import MarkStream, following
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.master_keys.providers import KmsMetrics, open_operator_keys
from keyturn_workers.service_manager import READY, STOPPING, notify_service_manager
from keyturn_workers.settings import WorkerSettings, redacted
from keyturn_workers.sources.bucket import Sources, open_sources
from keyturn_workers.storage import Capabilities, Storage
from keyturn_workers.storage.probe.runner import Report, Row, probe
from keyturn_workers.storage.s3 import open_storage
from keyturn_workers.storage.s3_http import observe_nothing
from keyturn_workers.storage.vendor_errors import explaining_tls
from keyturn_workers.worker.grants import GrantsFile, GrantsKeeper
from keyturn_workers.worker.health import Check, health_server
from keyturn_workers.worker.metrics import WorkerMetrics
from keyturn_workers.worker.reporter import WorkerReporter
from keyturn_workers.worker.runtime import reduce_garbage_collection
from keyturn_workers.worker.wiring import INGEST, UPLOAD, Wiring

if TYPE_CHECKING:
    from aio_pika import RobustConnection

    from keyturn_workers.tracing.spans import Tracing

# Connections beyond one an object: keyring reads, records, the control role, health.
_SPARE_CONNECTIONS: Final = 32
_RECONNECT_S: Final = 1.0
_BROKER_TIMEOUT_S: Final = 5
# For one attempt to connect, TLS included.
_CONNECT_TIMEOUT_S: Final = 15
# How often the bucket's checks run at most for the sake of outcomes that are not essential.
_PROBES: Final = 4

_T = TypeVar("_T")
_Consumers = Mapping[str, QueueConsumer]

_log = structlog.get_logger()


async def run_worker(
    settings: WorkerSettings,
    roles: frozenset[str],
    tracing: "Tracing | None" = None,
) -> None:
    """Serve the roles until a signal stops the process.

    If the broker is lost while the consumers start, the start is repeated, as if the broker had
    not been there yet. No task is left behind.

    Raises:
        UnsafeStorageError: the bucket lacks something that SPEC 10 requires.
        TopologyError: a queue exists on the broker with other arguments.
        BrokerTlsError, StorageTlsError: TLS failed.
        StorageUnavailableError, StorageAnswerError, OSError, AMQPException: storage or
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
    """The consumers could not be started: the client library has many errors for a lost broker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


_AWAY: Final = (StorageUnavailableError, EventsUnavailableError, OSError, AMQPException)


class _Outage:
    """Logs why a start is repeated: each reason once, until another one follows it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._logged: tuple[str, str | None] | None = None

    @contextmanager
    def logged(self, *errors: type[Exception]) -> Iterator[None]:
        """Log one of these errors, after which the start is repeated; it is raised as it is."""
        try:
            yield
        except (BrokerTlsError, StorageTlsError):
            raise  # nothing is repeated
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


class _App(FastStream):
    """FastStream, with a connection that is always closed.

    aio-pika takes a cancellation in the midst of an attempt to connect for an attempt that failed,
    and goes on, unless the connection is being closed (`RobustConnection`). FastStream starts the
    broker in a task that it cancels, and can close only a connection that it got: what it loses
    would reconnect forever. So the first attempt is a task of its own, which ends by its timeout,
    and later ones end with the connection.
    """

    def __init__(
        self,
        broker: RabbitBroker,
        consumers: _Consumers,
        reporter: WorkerReporter,
        log_start: Callable[[], None],
        grace_s: float,
    ) -> None:
        self._connecting: asyncio.Task[RobustConnection] | None = None

        async def connect() -> None:
            # Only after `run` has set its signal handlers: a reader of this line may signal.
            log_start()
            self._connecting = asyncio.create_task(broker.connect())
            await asyncio.shield(self._connecting)

        async def attach() -> None:
            for consumer in consumers.values():
                await consumer.attach()
            self.has_started = True
            reporter.begin()
            notify_service_manager(READY)

        super().__init__(
            broker,
            logger=None,
            on_startup=[connect],
            after_startup=[attach],
            on_shutdown=[
                partial(notify_service_manager, STOPPING),
                partial(finish, consumers.values(), grace_s),
                reporter.stop,
            ],
        )
        self.has_started = False
        self.exit_requested = False
        self._stop_timeout_s = grace_s + 4 * _BROKER_TIMEOUT_S

    async def stop(self) -> None:
        """Stop gracefully, or without the broker if it does not answer in time.

        One that is out of memory or disk reads nothing from a connection that has published.
        What this process still holds goes back to its queue with the connection.
        """
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                await super().stop()
        except TimeoutError:
            _log.warning("the broker did not answer; stopping without it")

    def exit(self) -> None:
        self.exit_requested = True
        super().exit()

    async def close_connection(self) -> None:
        """Close the connection, once the attempt to connect has ended. Nothing if it is closed."""
        connecting = self._connecting
        if connecting is None:
            return
        await asyncio.wait({connecting}, timeout=_CONNECT_TIMEOUT_S + _BROKER_TIMEOUT_S)
        if not connecting.done():
            connecting.cancel()  # it has connected, and waits for a channel
        elif not connecting.cancelled() and connecting.exception() is None:
            await close_quietly(connecting.result().close())


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
    )
    async with (
        following(marks),
        # Outermost but one: it publishes what the others recorded last.
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
            v0_master_key=settings.v0_master_key,
            on_derived=audit.kek_derived,
            metrics=KmsMetrics(metrics.registry),
        ) as keys,
        open_sources(
            settings.sources if roles & {UPLOAD, INGEST} else {},
            settings.deployment,
            settings,
            storage,
        ) as sources,
        _open_ingest(settings, roles, storage, keys, sources, metrics) as ingest,
    ):
        await _check_master_keys(settings, keys)
        await _retry_start(settings, marks.load)
        broker = RabbitBroker(
            address.url,
            security=None if address.tls is None else BaseSecurity(ssl_context=address.tls),
            apply_types=False,
            default_channel=Channel(on_return_raises=True),
            graceful_timeout=None,  # `finish` waits, once for all consumers
            logger=None,
            reconnect_interval=_RECONNECT_S,
            timeout=_CONNECT_TIMEOUT_S,
        )
        metrics.registry.add_process()
        grants = _grants_keeper(settings, address)
        wiring = Wiring(
            settings, storage, broker, keys, metrics, grants, audit, tracing, marks, sources, ingest
        )
        await _retry_start(settings, wiring.learn_time)
        consumers = {
            queue: QueueConsumer(broker, queue, prefetch, handle)
            for queue, prefetch, handle in wiring.consumers(roles)
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
        app = _App(broker, consumers, reporter, log_start, settings.shutdown_grace_s)
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
            await _run(app)


async def _check_master_keys(settings: WorkerSettings, keys: OperatorKeys) -> None:
    """Check each master key against the text that the bucket knows it by (SPEC 2.2).

    A provider that is away is no reason not to start: what needs it waits.

    Raises:
        SettingsError: the active one is another key than the bucket knows by its id.
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
    sources: Sources,
    metrics: WorkerMetrics,
) -> AsyncIterator[Ingest | None]:
    """The role `ingest`; None if the process does not have it, or no source is watched.

    Raises:
        SettingsError: no publisher is named that signs its requests.
    """
    watched = [bucket for bucket in sources.buckets.values() if bucket.source.watch]
    if INGEST not in roles or not watched:
        if roles == {INGEST}:
            _log.warning("nothing to take in: KEYTURN_SOURCES has no source that is watched")
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


async def _run(app: _App) -> None:
    """Run until a signal.

    Raises:
        _StartFailedError: it did not start, and no signal came meanwhile.
    """
    try:
        await app.run()
    except Exception as exc:
        if app.exit_requested:
            # Consumers that were still starting meet a closed connection, and one that is lost
            # cannot be closed in order. What was delivered goes back to its queue.
            how = "stopped without the broker" if app.has_started else "stopped while starting"
            _log.info(how, problem=type(exc).__name__)
        elif app.has_started:
            raise
        else:
            _reset_signals()
            raise _StartFailedError(exc) from exc
    finally:
        await app.close_connection()


def _max_connections(settings: WorkerSettings) -> int:
    # Up to four for each streamed upload.
    streams = settings.stream_concurrency * 4
    roles = settings.upload_concurrency + streams + settings.sweep_concurrency
    return roles + _SPARE_CONNECTIONS


def _grants_keeper(settings: WorkerSettings, address: BrokerAddress) -> GrantsKeeper | None:
    """Follows the file of publishers, if it is a file."""
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
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(signal_number)


async def _retry_start(settings: WorkerSettings, start: Callable[[], Awaitable[_T]]) -> _T:
    """Try for `START_TIMEOUT_S`: broker and storage may be starting along with this process.

    Not where TLS failed: waiting does not change a certificate.
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

    def __init__(self, report: Report) -> None:
        super().__init__(f"the bucket could not be tested: {_failures(report)}")
        self.report = report


async def _measure_storage(settings: WorkerSettings) -> Capabilities:
    """Find out what the bucket supports. Checks whose requests failed are repeated.

    A server may answer some requests with an error every time. So checks that a worker can do
    without are repeated only a few times. The others are repeated for `START_TIMEOUT_S`. If unsafe
    buckets are allowed, the worker then starts anyway, and assumes that the bucket lacks what
    could not be tested.

    Raises:
        UnsafeStorageError: the bucket lacks something required, and unsafe buckets are not allowed.
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


async def _probe_storage(settings: WorkerSettings, tries: Iterator[int]) -> Report:
    """Test the bucket once.

    Args:
        settings: The bucket, and whether it may be unsafe.
        tries: Counts the attempts that could make the checks. From `_PROBES` on, outcomes may be
            missing which a worker can do without.

    Raises:
        UnsafeStorageError: the bucket lacks something required, and unsafe buckets are not allowed.
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


def _failures(report: Report) -> str:
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
        return await broker.ping(_BROKER_TIMEOUT_S)

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

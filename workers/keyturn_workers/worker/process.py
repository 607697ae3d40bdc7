"""One worker process: its settings in, roles served until it is told to stop (SPEC 6.2, 10).

On SIGTERM and SIGINT it takes no new message, finishes what it holds within
`SHUTDOWN_GRACE_S`, and ends; what it could not finish goes back to its queue.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import stamina
import structlog
from aio_pika.exceptions import AMQPException
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from faststream.rabbit.message import RabbitMessage
from faststream.rabbit.subscriber import RabbitSubscriber

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import KEYRINGS_PREFIX
from keyturn_workers.amqp import (
    consume_directly,
    is_registered,
    take_no_more,
)
from keyturn_workers.amqp.declarations import declare, declare_streams
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.errors import UnsafeStorageError
from keyturn_workers.settings import WorkerSettings
from keyturn_workers.storage import Capabilities, Storage
from keyturn_workers.storage.probe.runner import probe
from keyturn_workers.storage.s3 import open_storage
from keyturn_workers.worker.gc import tame_garbage_collection
from keyturn_workers.worker.grants import GrantsFile, GrantsKeeper
from keyturn_workers.worker.health import Check, health_server
from keyturn_workers.worker.metrics import WorkerMetrics
from keyturn_workers.worker.wiring import SWEEP, UPLOAD, Consume, Roles

# Connections beyond one an object: keyring reads, records, the control role, health.
_SPARE_CONNECTIONS: Final = 32
_RECONNECT_S: Final = 1.0
_BROKER_TIMEOUT_S: Final = 5
_CANCELLATIONS: Final = 50
_CANCELLATION_S: Final = 0.1

_T = TypeVar("_T")

_log = structlog.get_logger()


async def run_worker(settings: WorkerSettings, roles: frozenset[str]) -> None:
    """Serve the roles until the process is told to stop.

    A broker that is lost while the consumers are started is waited for as one that is not there
    yet. None of this leaves a task behind.

    Raises:
        UnsafeStorageError: the bucket misses something that SPEC 10 requires.
        TopologyError: a queue stands on the broker with other arguments.
        StorageUnavailableError, StorageAnswerError, OSError, AMQPException: storage or
            broker could not be reached within `START_TIMEOUT_S`.
    """
    tolerate_odd_properties()
    try:
        async for attempt in stamina.retry_context(
            on=_LostAtStartError, attempts=None, timeout=settings.start_timeout_s, wait_max=3
        ):
            with attempt:
                async with _leaving_nothing_behind():
                    await _serve(settings, roles)
    except _LostAtStartError as exc:
        raise exc.cause from None
    _log.info("worker stopped", roles=sorted(roles))


class _LostAtStartError(Exception):
    """The consumers could not be started: the client library has many errors for a lost broker."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(type(cause).__name__)
        self.cause = cause


class _App(FastStream):
    """FastStream, which also tells whether it was told to end before it had started."""

    told_to_end = False

    def exit(self) -> None:
        self.told_to_end = True
        super().exit()


@asynccontextmanager
async def _leaving_nothing_behind() -> AsyncIterator[None]:
    """End whatever tasks the block has left, once it is over.

    A start that fails can leave a connection that nobody closes any more. It connects again for
    ever, consumers and all, and takes a cancellation in the midst of that for one more failed
    attempt: the process would never end. Cancelled once more, as it waits, it ends.
    """
    before = asyncio.all_tasks()
    try:
        yield
    finally:
        for _ in range(_CANCELLATIONS):
            left = asyncio.all_tasks() - before - {asyncio.current_task()}
            if not left:
                break
            for task in left:
                task.cancel()
            await asyncio.wait(left, timeout=_CANCELLATION_S)


async def _serve(settings: WorkerSettings, roles: frozenset[str]) -> None:
    amqp_url = settings.amqp_url.get_secret_value()
    capabilities = await _patiently(settings, lambda: _check_storage(settings))
    await _patiently(settings, lambda: declare(amqp_url, settings.publishers))
    grants = _keeper(settings)
    connections = (
        settings.upload_concurrency + settings.stream_concurrency * 4 + settings.sweep_concurrency
    )
    async with open_storage(
        settings, capabilities=capabilities, max_connections=connections + _SPARE_CONNECTIONS
    ) as storage:
        broker = RabbitBroker(
            amqp_url,
            apply_types=False,
            default_channel=Channel(on_return_raises=True),
            graceful_timeout=settings.shutdown_grace_s,
            logger=None,
            reconnect_interval=_RECONNECT_S,
        )
        metrics = WorkerMetrics()
        metrics.add_process()
        process = Roles(settings, storage, broker, metrics, grants)
        await _patiently(settings, process.learn_time)
        subscribers = {
            queue: _subscribe(broker, queue, prefetch, consume)
            for queue, prefetch, consume in process.consumers(roles)
        }
        _expect(metrics, subscribers)

        async def tell() -> None:
            # Not before `run` has taken the signals: whoever reads it may send one at once.
            _log.info("worker started", roles=sorted(roles), bucket=settings.s3_bucket)

        started = asyncio.Event()

        async def note() -> None:
            started.set()

        async def leave() -> None:
            await asyncio.gather(*map(take_no_more, subscribers.values()))

        app = _App(
            broker,
            logger=None,
            on_startup=[tell],
            after_startup=[note],
            on_shutdown=[leave],
        )
        checks = _checks(broker, subscribers, storage)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                health_server(settings.health_host, settings.health_port, checks, metrics)
            )
            if grants is not None:
                stack.enter_context(_on_hangup(grants.read_again))
                await stack.enter_async_context(_meanwhile(grants.keep_current()))
            await stack.enter_async_context(_meanwhile(process.bound_dead_letters()))
            # Each role needs it: an upload's lease, the ages of requests, the date of a turn.
            await stack.enter_async_context(_meanwhile(process.keep_clock_known()))
            if UPLOAD in roles:
                await stack.enter_async_context(_meanwhile(process.sweep_staging()))
            if SWEEP in roles:
                await stack.enter_async_context(_meanwhile(process.rescue_sweeps()))
            tame_garbage_collection()
            try:
                await app.run()
            except Exception as exc:
                if app.told_to_end:
                    # While its consumers were still starting: they then find the connection
                    # closed. What they had taken goes back to its queue.
                    _log.info("stopped while it started", problem=type(exc).__name__)
                elif started.is_set():
                    raise
                else:
                    _forget_signals()
                    raise _LostAtStartError(exc) from exc


def _keeper(settings: WorkerSettings) -> GrantsKeeper | None:
    """What follows the file of publishers, where it is a file."""
    grants, amqp_url = settings.publishers, settings.amqp_url.get_secret_value()
    if not isinstance(grants, GrantsFile):
        return None
    return GrantsKeeper(grants, partial(declare_streams, amqp_url))


@contextmanager
def _on_hangup(act: Callable[[], None]) -> Iterator[None]:
    """Call it on SIGHUP, which otherwise ends the process."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, act)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def _forget_signals() -> None:
    """Let a signal end the process again: who took it last serves no more."""
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().remove_signal_handler(signal_number)


async def _patiently(settings: WorkerSettings, start: Callable[[], Awaitable[_T]]) -> _T:
    """Try for `START_TIMEOUT_S`: broker and storage may be starting beside this process."""
    async for attempt in stamina.retry_context(
        on=(StorageUnavailableError, OSError, AMQPException),
        attempts=None,
        timeout=settings.start_timeout_s,
        wait_max=3,
    ):
        with attempt:
            return await start()
    raise AssertionError("unreachable")  # stamina raises or returns


async def _check_storage(settings: WorkerSettings) -> Capabilities:
    async with open_storage(settings) as storage:
        report = await probe(storage, quick=True)
    if report.unsafe:
        missing = ", ".join(row.name for row in report.unsafe)
        if not settings.allow_unsafe_storage:
            if all(row.undecided for row in report.unsafe):
                # A request that failed says nothing of the bucket; asked again, it may not.
                said = "; ".join(f"{row.name} {row.said}" for row in report.unsafe)
                raise StorageUnavailableError(f"the bucket could not be tried out: {said}")
            raise UnsafeStorageError(
                f"the bucket lacks: {missing}; `keyturn doctor` tells more, and "
                "KEYTURN_ALLOW_UNSAFE_STORAGE=true starts all the same"
            )
        _log.warning("unsafe storage allowed", missing=missing)
    return report.capabilities


def _subscribe(
    broker: RabbitBroker, queue: str, prefetch: int, consume: Consume
) -> RabbitSubscriber:
    async def take(message: RabbitMessage) -> None:
        await consume(message.raw_message)

    # The queue is declared by `declare`, with all its arguments.
    subscriber = broker.subscriber(
        RabbitQueue(queue, queue_type=QueueType.QUORUM, durable=True, declare=False),
        channel=Channel(prefetch_count=prefetch),
        ack_policy=AckPolicy.MANUAL,
        decoder=_undecoded,
        no_reply=True,
    )
    subscriber(take)
    consume_directly(subscriber, consume)
    return subscriber


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    # A signature is over bytes: nothing may read a body before it is checked.
    return message


def _expect(metrics: WorkerMetrics, subscribers: Mapping[str, RabbitSubscriber]) -> None:
    """Show the queues of this process from the first scrape on."""
    for queue, subscriber in subscribers.items():
        metrics.queue(queue).begin_at_zero()
        metrics.queue(queue).consuming(partial(is_registered, subscriber))


def _checks(
    broker: RabbitBroker, subscribers: Mapping[str, RabbitSubscriber], storage: Storage
) -> dict[str, Check]:
    async def broker_answers() -> bool:
        return await broker.ping(_BROKER_TIMEOUT_S)

    async def consuming() -> bool:
        return all(map(is_registered, subscribers.values()))

    async def storage_answers() -> bool:
        async for _ in storage.list(KEYRINGS_PREFIX, limit=1):
            break
        return True

    return {"broker": broker_answers, "consumers": consuming, "storage": storage_answers}


@asynccontextmanager
async def _meanwhile(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Something that goes on beside the consumers, and ends with them."""
    task = asyncio.create_task(work, name=getattr(work, "__qualname__", None))
    task.add_done_callback(_report_failure)
    try:
        yield
    finally:
        # Cancelled within a request to the broker, the client library may raise an error of a
        # lost connection in place of the cancellation; work that tries again then goes on.
        for _ in range(_CANCELLATIONS):
            task.cancel()
            done, _pending = await asyncio.wait({task}, timeout=_CANCELLATION_S)
            if done:
                break


def _report_failure(task: asyncio.Task[None]) -> None:
    """Log what ended background work: the consumers go on without it."""
    if task.cancelled():
        return
    if (problem := task.exception()) is not None:
        _log.error("background work failed", work=task.get_name(), exc_info=problem)

"""One worker process: its settings in, roles served until it is told to stop (SPEC 6.2, 10).

On SIGTERM and SIGINT it takes no new message, finishes what it holds within
`SHUTDOWN_GRACE_S`, and ends; what it could not finish goes back to its queue.
"""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final, TypeVar

import stamina
import structlog
from aio_pika.exceptions import AMQPException
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, QueueType, RabbitBroker, RabbitQueue
from faststream.rabbit.message import RabbitMessage
from faststream.rabbit.subscriber import RabbitSubscriber

from contracts.amqp import tolerate_odd_properties
from contracts.errors import StorageUnavailableError
from contracts.names import KEYRINGS_PREFIX
from workers.admission import Rules
from workers.broker import Consumer, Role, Teller
from workers.broker.declare import declare
from workers.control import ControlRole, Enroller
from workers.errors import UnsafeStorageError
from workers.health import Check, health_server
from workers.keyring import KeyringReader
from workers.settings import WorkerSettings
from workers.storage import Differences, Storage
from workers.storage.probe import probe
from workers.storage.s3 import open_storage
from workers.upload import Limits, Uploader, UploadRole
from workers.upload.staging import keep_sweeping

UPLOAD: Final = "upload"
CONTROL: Final = "control"
ALL_ROLES: Final = frozenset({UPLOAD, CONTROL})
# Connections beyond one an upload: keyring reads, the control role, health, sweeping.
_SPARE_CONNECTIONS: Final = 32
_RECONNECT_S: Final = 1.0
_GC_THRESHOLD: Final = 50_000
_BROKER_TIMEOUT_S: Final = 5

_T = TypeVar("_T")

_log = structlog.get_logger()


async def run_worker(settings: WorkerSettings, roles: frozenset[str]) -> None:
    """Serve the roles until the process is told to stop.

    Raises:
        UnsafeStorageError: the bucket misses something that SPEC 10 requires.
        TopologyError: a queue stands on the broker with other arguments.
        StorageUnavailableError, StorageAnswerError, OSError, AMQPException: storage or
            broker could not be reached within `START_TIMEOUT_S`.
    """
    tolerate_odd_properties()
    amqp_url = settings.amqp_url.get_secret_value()
    differences = await _patiently(settings, lambda: _check_storage(settings))
    await _patiently(settings, lambda: declare(amqp_url))
    connections = settings.upload_concurrency + settings.stream_concurrency * 4
    async with open_storage(
        settings, differences=differences, max_connections=connections + _SPARE_CONNECTIONS
    ) as storage:
        broker = RabbitBroker(
            amqp_url,
            apply_types=False,
            default_channel=Channel(on_return_raises=True),
            graceful_timeout=settings.shutdown_grace_s,
            logger=None,
            reconnect_interval=_RECONNECT_S,
        )
        subscribers = [
            _subscribe(broker, role, prefetch, settings)
            for role, prefetch in _roles(settings, storage, roles)
        ]
        app = FastStream(broker, logger=None)
        checks = _checks(broker, subscribers, storage)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(
                health_server(settings.health_host, settings.health_port, checks)
            )
            if UPLOAD in roles:
                await stack.enter_async_context(_sweeping(storage, settings))
            _tame_garbage_collection()
            _log.info("worker started", roles=sorted(roles), bucket=settings.s3_bucket)
            await app.run()
    _log.info("worker stopped", roles=sorted(roles))


def _tame_garbage_collection() -> None:
    """Leave what was loaded at start out of collections, and collect less often.

    What an upload makes is freed by reference counts; the cycles left over are few. With
    Python's own threshold of 700 objects a busy worker collects hundreds of times a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


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


async def _check_storage(settings: WorkerSettings) -> Differences:
    async with open_storage(settings) as storage:
        report = await probe(storage, quick=True)
    if report.unsafe:
        missing = ", ".join(row.name for row in report.unsafe)
        if not settings.allow_unsafe_storage:
            raise UnsafeStorageError(
                f"the bucket lacks: {missing}; `keyturn doctor` tells more, and "
                "KEYTURN_ALLOW_UNSAFE_STORAGE=true starts all the same"
            )
        _log.warning("unsafe storage allowed", missing=missing)
    return report.differences


def _roles(
    settings: WorkerSettings, storage: Storage, names: frozenset[str]
) -> list[tuple[Role, int]]:
    """The roles asked for, each with how many messages it holds at once."""
    keyrings = KeyringReader(
        storage,
        settings.master_keys,
        lease_s=settings.lease_s,
        cache_s=settings.keyring_cache_s,
    )
    roles: list[tuple[Role, int]] = []
    if UPLOAD in names:
        limits = Limits(
            encryption_enabled=settings.encryption_enabled,
            # What could not be copied could not be brought to a new key either.
            upload_max_bytes=min(settings.upload_max_bytes, settings.copy_limit_bytes),
            part_size_bytes=settings.part_size_bytes,
            stream_concurrency=settings.stream_concurrency,
        )
        uploader = Uploader(storage, keyrings, settings.master_keys, settings.intake_keys, limits)
        roles.append((UploadRole(uploader), settings.upload_concurrency))
    if CONTROL in names:
        enroller = Enroller(
            storage,
            keyrings,
            settings.master_keys,
            settings.active_master_key,
            settings.intake_keys,
        )
        roles.append((ControlRole(enroller), settings.control_concurrency))
    return roles


def _subscribe(
    broker: RabbitBroker, role: Role, prefetch: int, settings: WorkerSettings
) -> RabbitSubscriber:
    rules = Rules(
        deployment=settings.deployment,
        publishers=settings.publishers,
        max_age=timedelta(seconds=settings.request_max_age_s),
    )
    teller = Teller(broker, settings.deployment, settings.event_key)
    consumer = Consumer(role, rules, teller)

    async def consume(message: RabbitMessage) -> None:
        await consumer(message.raw_message)

    # The queue is declared by `declare`, with all its arguments; prefetch is what bounds
    # how many messages are worked on at once.
    subscriber = broker.subscriber(
        RabbitQueue(role.queue, queue_type=QueueType.QUORUM, durable=True, declare=False),
        channel=Channel(prefetch_count=prefetch),
        ack_policy=AckPolicy.MANUAL,
        decoder=_undecoded,
        no_reply=True,
    )
    subscriber(consume)
    return subscriber


async def _undecoded(message: RabbitMessage) -> RabbitMessage:
    # A signature is over bytes: nothing may read a body before it is checked.
    return message


def _checks(
    broker: RabbitBroker, subscribers: list[RabbitSubscriber], storage: Storage
) -> dict[str, Check]:
    async def broker_answers() -> bool:
        return await broker.ping(_BROKER_TIMEOUT_S)

    async def consuming() -> bool:
        return all(subscriber.running for subscriber in subscribers)

    async def storage_answers() -> bool:
        async for _ in storage.list(KEYRINGS_PREFIX, limit=1):
            break
        return True

    return {"broker": broker_answers, "consumers": consuming, "storage": storage_answers}


@asynccontextmanager
async def _sweeping(storage: Storage, settings: WorkerSettings) -> AsyncIterator[None]:
    older_than = timedelta(seconds=settings.request_max_age_s + settings.staging_grace_s)
    sweeping = asyncio.create_task(
        keep_sweeping(storage, older_than=older_than, interval_s=settings.staging_sweep_interval_s)
    )
    try:
        yield
    finally:
        sweeping.cancel()
        await asyncio.gather(sweeping, return_exceptions=True)

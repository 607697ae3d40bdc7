"""One gateway process (SPEC 9).

It starts without a broker and serves reads while the broker is unavailable: only uploads, deletes
and rotations need it. On SIGTERM and SIGINT it accepts no new connection, completes responses
within `SHUTDOWN_GRACE_S`, and exits with status 0.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog
from starlette.types import ASGIApp

from keyturn.crypto import Secret
from keyturn.errors import EventsUnavailableError, StorageUnavailableError
from keyturn.identifiers import KEYRINGS_PREFIX, STAGING_PREFIX, path_order
from keyturn.publisher import Publisher
from keyturn.publisher.connection import BrokerAddress
from keyturn.tls import PairSettings
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.audit import log_kek_derived
from keyturn_workers.background import background, raise_if_canceled
from keyturn_workers.errors import PreconditionError, StorageAnswerError, StorageTlsError
from keyturn_workers.gateway.app import Gateway
from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.gateway.listing import HEADS_AT_ONCE
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.objects import LegacyLimits, ObjectOpener
from keyturn_workers.gateway.shares import ProjectSlots
from keyturn_workers.http_server import server as http_server
from keyturn_workers.http_server.server import check_broker_tls, open_listeners
from keyturn_workers.http_server.tls import ServerCertificate, open_certificate
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.keyring.mark_stream import MarkStream, following
from keyturn_workers.master_keys.providers import KmsMetrics, open_operator_keys
from keyturn_workers.settings import GatewaySettings
from keyturn_workers.storage import Capabilities, Headers, IfAbsent, Storage
from keyturn_workers.storage.probe.key_checks import find_order
from keyturn_workers.storage.probe.request_checks import overwritten_in_listing
from keyturn_workers.storage.s3 import open_storage
from keyturn_workers.storage.s3_http import observe_nothing
from keyturn_workers.storage.vendor_errors import explaining_tls
from keyturn_workers.sweep import SweepStore
from keyturn_workers.worker.health import Check
from keyturn_workers.worker.runtime import reduce_garbage_collection

if TYPE_CHECKING:
    from keyturn_workers.tracing.spans import Tracing

# Connections to the storage besides one per request: keyrings, records, health.
_SPARE_CONNECTIONS: Final = 16
# The gateway writes nothing that relies on a keyring: this limits only how far response dates may
# differ.
_LEASE_S: Final = 15
_CONNECTIONS_PER_REQUEST: Final = 4
_V0_SLOT_WAIT_S: Final = 5.0
# How long a request waits for a broker at its alarm, so that its 503 comes within a second.
_ALARM_TIMEOUT_S: Final = 0.5
# How long a start waits for the marks of keyrings, if the broker is there.
_MARKS_WAIT_S: Final = 10.0
# A read is tried again for 5 seconds.
_TLS_CHECK_S: Final = 10.0
_DETECTION_RETRY_S: Final = 30.0

_log = structlog.get_logger()


async def run_gateway(settings: GatewaySettings, tracing: "Tracing | None" = None) -> None:
    """Serve until a signal stops the process.

    Args:
        settings: Of the gateway.
        tracing: Records traces.

    Raises:
        SettingsError: no S3 credentials are configured, or a file of certificates cannot be used.
        BrokerTlsError, StorageTlsError: TLS with the broker or the storage failed.
        AddressError: the address is in use or does not exist.
    """
    certificate = open_certificate(
        settings.gateway_tls_cert,
        settings.gateway_tls_key,
        PairSettings("KEYTURN_GATEWAY_TLS_CERT", "KEYTURN_GATEWAY_TLS_KEY"),
    )
    tolerate_odd_properties()
    metrics = GatewayMetrics()
    metrics.registry.add_process()
    async with open_app(settings, metrics, tracing) as app:
        await serve(settings, app, certificate)
    _log.info("gateway stopped")


@asynccontextmanager
async def open_app(
    settings: GatewaySettings,
    metrics: GatewayMetrics,
    tracing: "Tracing | None" = None,
) -> AsyncIterator[ASGIApp]:
    """Yield the application, with its storage and its publisher open."""
    connections = settings.gateway_concurrency + HEADS_AT_ONCE + _SPARE_CONNECTIONS
    # Without a broker, or without permission to read the stream, it only knows fewer marks.
    marks = MarkStream(
        BrokerAddress.of(settings),
        settings.deployment,
        settings.event_public_key,
        lease_s=_LEASE_S,
        signing_key=None,
    )
    async with (
        open_storage(
            settings,
            max_connections=connections,
            observe=tracing.request_observer(settings.s3_bucket) if tracing else observe_nothing,
        ) as storage,
        Publisher.open(
            settings,
            s3=settings,
            connect=False,
            publish_timeout_s=settings.gateway_publish_timeout_s,
            alarm_timeout_s=_ALARM_TIMEOUT_S,
        ) as publisher,
        background(detect_capabilities(storage, settings.publisher_name)),
        open_operator_keys(
            settings,
            storage,
            seals=False,
            v0_master_key=settings.v0_master_key,
            on_derived=log_kek_derived,  # it has no event key to sign an audit record with
            metrics=KmsMetrics(metrics.registry),
        ) as keys,
        AsyncExitStack() as stack,
    ):
        await asyncio.gather(check_broker_tls(publisher), _check_storage_tls(settings, storage))
        # The reader of marks says once what is wrong; this would be a line for each attempt.
        logging.getLogger("aiormq.connection").setLevel(logging.CRITICAL)
        await stack.enter_async_context(following(marks))
        with suppress(TimeoutError, EventsUnavailableError):
            async with asyncio.timeout(_MARKS_WAIT_S):
                await marks.load()
        keyrings = KeyringReader(
            storage, keys, lease_s=_LEASE_S, cache_s=settings.keyring_cache_s, witness=marks
        )
        auth = Authenticator(
            keyrings,
            KeyringLookups(keyrings, storage),
            Secret(settings.pepper.get_secret_value().encode()),
            deployment=settings.deployment,
            cache_s=settings.keyring_cache_s,
        )
        v0_slots = ProjectSlots(
            settings.gateway_v0_concurrency,
            settings.gateway_project_share,
            "reads of v0 objects",
            wait_s=_V0_SLOT_WAIT_S,
        )
        legacy = LegacyLimits(v0_slots, settings.gateway_v0_max_bytes)
        opener = ObjectOpener(storage, auth, keys, legacy)
        sweeps = SweepStore(storage, keys)
        gateway = Gateway(settings, auth, opener, storage, sweeps, publisher, metrics)
        purging = asyncio.create_task(keys.purge_periodically())
        try:
            app = gateway.application(_checks(storage, publisher))
            yield tracing.application(app) if tracing else app
        finally:
            purging.cancel()
            await gateway.close()


async def _check_storage_tls(settings: GatewaySettings, storage: Storage) -> None:
    """Do not start on a storage whose certificate will not do; one that is away may come back.

    Raises:
        StorageTlsError: TLS with the storage failed.
    """
    try:
        async with asyncio.timeout(_TLS_CHECK_S), explaining_tls(settings):
            async for _ in storage.list(KEYRINGS_PREFIX, limit=1):
                break
    except StorageTlsError:
        raise
    except (TimeoutError, StorageAnswerError, StorageUnavailableError):
        return


def _checks(storage: Storage, publisher: Publisher) -> dict[str, Check]:
    async def broker_answers() -> bool:
        await publisher.connect()
        return True

    async def storage_answers() -> bool:
        async for _ in storage.list(KEYRINGS_PREFIX, limit=1):
            break
        return True

    return {"broker": broker_answers, "storage": storage_answers}


async def serve(
    settings: GatewaySettings, app: ASGIApp, certificate: ServerCertificate | None = None
) -> None:
    """Serve an application with the gateway's limits until a signal stops the process.

    Raises:
        AddressError: the address is in use or does not exist.
    """
    reduce_garbage_collection()
    listeners = await open_listeners(
        settings.gateway_host,
        settings.gateway_port,
        settings="KEYTURN_GATEWAY",
        idle_timeout_s=settings.gateway_idle_timeout_s,
    )
    await http_server.serve(
        app,
        listeners,
        name="gateway",
        head_timeout_s=settings.gateway_head_timeout_s,
        max_connections=settings.gateway_concurrency * _CONNECTIONS_PER_REQUEST,
        grace_s=settings.shutdown_grace_s,
        certificate=certificate,
    )


async def detect_capabilities(
    storage: Storage, publisher: str, *, retry_s: float = _DETECTION_RETRY_S
) -> None:
    """Test until the storage responds, and set the result in its `capabilities` (SPEC 8.4, 10).

    Whether listings show overwrites, so that they can be used to renew keyrings; whether keys are
    paths, so that a key with a backslash would be read as another one; and the order of listings.

    Workers know it from their probe. The gateway's credentials may write only to its own staging
    folder, so it tests that folder, in the background. Until the result is known, keyrings are
    read one by one.
    """
    while True:
        try:
            found = await _test(storage, f"{STAGING_PREFIX}{publisher}/doctor-")
        except StorageUnavailableError:
            raise_if_canceled()
            await asyncio.sleep(retry_s)
            continue
        except StorageAnswerError as exc:
            _log.warning("keyrings are read one by one", problem=type(exc).__name__)
            return
        storage.capabilities = found
        return


async def _test(storage: Storage, prefix: str) -> Capabilities:
    """The storage's capabilities with those that a gateway needs."""
    folder = f"{prefix}{secrets.token_hex(8)}"
    try:
        shown = await overwritten_in_listing(storage, f"{folder}/overwrites")
        paths = await _takes_backslash_for_slash(storage, f"{folder}/paths")
        order = await find_order(storage, f"{folder}/order")
        return replace(
            storage.capabilities,
            listings_show_overwrites=shown.ok,
            keys_are_paths=paths,
            lists_by_path=order is path_order,
        )
    finally:
        # What cannot be deleted is swept with old staged bodies.
        with suppress(StorageUnavailableError, StorageAnswerError):
            async for left in storage.list(f"{folder}/"):
                await storage.delete(left.key)


async def _takes_backslash_for_slash(storage: Storage, folder: str) -> bool:
    """Whether an object is in the way of one with a backslash for a slash in its key."""
    await storage.put(f"{folder}/a/b", b"", Headers({}))
    try:
        await storage.put(f"{folder}/a\\b", b"", Headers({}), condition=IfAbsent())
    except PreconditionError:
        return True
    return False

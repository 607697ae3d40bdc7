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
from typing import Final, Protocol

import structlog
from starlette.types import ASGIApp

from keyturn.crypto.keys import Secret
from keyturn.errors import EventsUnavailableError, StorageUnavailableError
from keyturn.identifiers import KEYRINGS_PREFIX, STAGING_PREFIX, path_order
from keyturn.publisher.client import Publisher
from keyturn.publisher.connection import BrokerAddress
from keyturn.tls import PairSettings
from keyturn_workers.core.customer_key_port import CustomerKeys
from keyturn_workers.core.errors import PreconditionError, StorageResponseError, StorageTlsError
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Capabilities, Headers, IfAbsent
from keyturn_workers.gateway.app import Gateway
from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.gateway.listing import HEADS_AT_ONCE
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.objects import ObjectOpener
from keyturn_workers.keys.audit.trail import log_kek_derived
from keyturn_workers.keys.customer_keys.providers import CustomerKeyMetrics, open_customer_keys
from keyturn_workers.keys.customer_keys.secrets import IN_GATEWAYS
from keyturn_workers.keys.keyring.mark_stream import MarkStream, following
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.master_keys.providers import KmsMetrics, open_operator_keys
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.process.background import background, raise_if_canceled
from keyturn_workers.process.health import Check
from keyturn_workers.process.http_server import server as http_server
from keyturn_workers.process.http_server.server import check_broker_tls, open_listeners
from keyturn_workers.process.http_server.tls import ServerCertificate, open_certificate
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from keyturn_workers.process.runtime import reduce_garbage_collection
from keyturn_workers.process.settings import GatewaySettings
from keyturn_workers.storage.probe.key_checks import find_order
from keyturn_workers.storage.probe.request_checks import overwritten_in_listing
from keyturn_workers.storage.s3 import open_storage
from keyturn_workers.storage.s3_http import RequestObserver, observe_nothing
from keyturn_workers.storage.vendor_errors import explaining_tls

# Connections to the storage besides one per request: keyrings, records, health.
_SPARE_CONNECTIONS: Final = 16
# The gateway writes nothing that relies on a keyring: this limits only how far response dates may
# differ.
_LEASE_S: Final = 15
_CONNECTIONS_PER_REQUEST: Final = 4
# How long a request waits for a broker with an active alarm: its 503 comes within a second.
_ALARM_TIMEOUT_S: Final = 0.5
# How long a start waits for the marks of keyrings, if the broker is available.
_MARKS_WAIT_S: Final = 10.0
# A read is retried for 5 seconds.
_TLS_CHECK_S: Final = 10.0
_DETECTION_RETRY_S: Final = 30.0

_log = structlog.get_logger()


class GatewayTracing(Protocol):
    """Records the traces of a gateway."""

    def request_observer(self, bucket: str) -> RequestObserver:
        """Return the observer of each request to the storage."""
        ...

    def application(self, app: ASGIApp) -> ASGIApp:
        """Return the application with a trace of each request."""
        ...


async def run_gateway(settings: GatewaySettings, tracing: GatewayTracing | None = None) -> None:
    """Serve until a signal stops the process.

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
    async with (
        open_customer_keys(
            settings,
            settings.deployment,
            IN_GATEWAYS,
            metrics=CustomerKeyMetrics(metrics.registry, settings.customer_key_stores),
        ) as customer_keys,
        open_app(settings, metrics, customer_keys, tracing) as app,
    ):
        await serve(settings, app, certificate)
    _log.info("gateway stopped")


@asynccontextmanager
async def open_app(
    settings: GatewaySettings,
    metrics: GatewayMetrics,
    customer_keys: CustomerKeys,
    tracing: GatewayTracing | None = None,
) -> AsyncIterator[ASGIApp]:
    """Yield the application, with its storage and its publisher open."""
    connections = settings.gateway_concurrency + HEADS_AT_ONCE + _SPARE_CONNECTIONS
    # Without a broker, or without permission to read the stream, fewer marks are known.
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
        open_operator_keys(
            settings,
            storage,
            seals=False,
            on_derived=log_kek_derived,  # it has no event key to sign an audit record with
            metrics=KmsMetrics(metrics.registry),
        ) as keys,
        AsyncExitStack() as stack,
    ):
        await asyncio.gather(check_broker_tls(publisher), _check_storage_tls(settings, storage))
        # Not before: uvloop reports a handshake that fails while its connection is being canceled.
        detection = detect_capabilities(storage, settings.publisher_name)
        await stack.enter_async_context(background(detection))
        # The reader of marks logs a problem once; this logger would repeat it for each attempt.
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
        opener = ObjectOpener(storage, auth, keys, customer_keys)
        sweeps = SweepStore(storage, keys)
        gateway = Gateway(settings, auth, opener, storage, sweeps, publisher, metrics)
        purging = asyncio.create_task(keys.purge_periodically())
        try:
            app = gateway.application(_checks(storage, publisher), lambda: marks.permits_writes)
            yield tracing.application(app) if tracing else app
        finally:
            purging.cancel()
            await gateway.close()


async def _check_storage_tls(settings: GatewaySettings, storage: Storage) -> None:
    """Raise StorageTlsError if TLS with the storage fails; an unavailable storage may come back."""
    try:
        async with asyncio.timeout(_TLS_CHECK_S), explaining_tls(settings):
            async for _ in storage.list(KEYRINGS_PREFIX, limit=1):
                break
    except StorageTlsError:
        raise
    except (TimeoutError, StorageResponseError, StorageUnavailableError):
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
    """Serve an application with the gateway's limits until a signal stops the process."""
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

    It tests if listings show overwrites, so that they can be used to renew keyrings; if keys are
    paths, so that a key with a backslash would be read as another one; and the order of listings.

    Workers know these from their probe. The gateway's credentials may write only to its own
    staging folder, so it tests there, in the background. Until the result is known, keyrings are
    read one by one.
    """
    while True:
        try:
            found = await _test(storage, f"{STAGING_PREFIX}{publisher}/doctor-")
        except StorageUnavailableError:
            raise_if_canceled()
            await asyncio.sleep(retry_s)
            continue
        except StorageResponseError as exc:
            _log.warning("keyrings are read one by one", problem=type(exc).__name__)
            return
        storage.capabilities = found
        return


async def _test(storage: Storage, prefix: str) -> Capabilities:
    """Return the storage's capabilities, with those that a gateway needs."""
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
        # Objects that cannot be deleted are swept with old staged bodies.
        with suppress(StorageUnavailableError, StorageResponseError):
            async for left in storage.list(f"{folder}/"):
                await storage.delete(left.key)


async def _takes_backslash_for_slash(storage: Storage, folder: str) -> bool:
    """Check if an object blocks another one that has a backslash for a slash in its key."""
    await storage.put(f"{folder}/a/b", b"", Headers({}))
    try:
        await storage.put(f"{folder}/a\\b", b"", Headers({}), condition=IfAbsent())
    except PreconditionError:
        return True
    return False

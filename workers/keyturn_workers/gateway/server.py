"""One gateway process (SPEC 9).

It starts without a broker and serves reads while the broker is unavailable: only uploads, deletes
and rotations need it. On SIGTERM and SIGINT it accepts no new connection, completes responses
within `SHUTDOWN_GRACE_S`, and exits with status 0.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.types import ASGIApp

from keyturn.crypto import Secret
from keyturn.errors import EventsUnavailableError, StorageUnavailableError
from keyturn.identifiers import KEYRINGS_PREFIX
from keyturn.publisher import Publisher
from keyturn.publisher.broker_address import BrokerAddress
from keyturn.tls import PairSettings
from keyturn_workers.amqp.mark_stream import MarkStream, following
from keyturn_workers.amqp.property_tolerance import tolerate_odd_properties
from keyturn_workers.audit import log_kek_derived
from keyturn_workers.broker_tls import check_broker_tls
from keyturn_workers.errors import StorageAnswerError, StorageTlsError
from keyturn_workers.gateway.app import application
from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.delete_routes import DeleteRoutes
from keyturn_workers.gateway.fair_shares import ConcurrencyLimit, ProjectSlots, StagingLedger
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.gateway.legacy_reader import LegacyDecrypter
from keyturn_workers.gateway.link_routes import LinkRoutes
from keyturn_workers.gateway.listing_check import listing_detection
from keyturn_workers.gateway.listing_routes import ListingRoutes
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.object_lister import HEADS_AT_ONCE, ObjectLister
from keyturn_workers.gateway.object_opener import ObjectOpener
from keyturn_workers.gateway.object_routes import ObjectRoutes
from keyturn_workers.gateway.rotation_routes import RotationRoutes
from keyturn_workers.gateway.staging_quota import StagingQuota
from keyturn_workers.gateway.upload_limits import UploadLimits
from keyturn_workers.gateway.upload_routes import UploadRoutes
from keyturn_workers.http_server import server as http_server
from keyturn_workers.http_server.certificate import ServerCertificate, open_certificate
from keyturn_workers.http_server.listener import open_listeners
from keyturn_workers.keyring import KeyringReader, Witness
from keyturn_workers.master_keys.metrics import KmsMetrics
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.master_keys.providers import open_operator_keys
from keyturn_workers.settings import GatewaySettings
from keyturn_workers.storage import Storage
from keyturn_workers.storage.vendor_errors import explaining_tls
from keyturn_workers.sweep import SweepStore
from keyturn_workers.tracing import Instrumentation
from keyturn_workers.worker.gc import reduce_garbage_collection
from keyturn_workers.worker.health import Check

# Connections to the storage besides one per request: keyrings, records, health.
_SPARE_CONNECTIONS: Final = 16
# The gateway writes nothing that relies on a keyring: this limits only how far response dates may
# differ.
_LEASE_S: Final = 15
_CONNECTIONS_PER_REQUEST: Final = 4
_UPLOAD_SLOT_WAIT_S: Final = 30.0
_V0_SLOT_WAIT_S: Final = 5.0
# How long a request waits for a broker at its alarm, so that its 503 comes within a second.
_ALARM_TIMEOUT_S: Final = 0.5
# How long a start waits for the marks of keyrings, if the broker is there.
_MARKS_WAIT_S: Final = 10.0
# A read is tried again for 5 seconds.
_TLS_CHECK_S: Final = 10.0

_log = structlog.get_logger()


async def run_gateway(
    settings: GatewaySettings, instrumentation: Instrumentation | None = None
) -> None:
    """Serve until a signal stops the process.

    Args:
        settings: Of the gateway.
        instrumentation: Makes the parts that traces concern; by default, without traces.

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
    async with open_app(settings, metrics, instrumentation) as app:
        await serve(settings, app, certificate)
    _log.info("gateway stopped")


@dataclass(frozen=True, slots=True)
class _Routes:
    objects: ObjectRoutes
    listing: ListingRoutes
    links: LinkRoutes
    rotations: RotationRoutes
    uploads: UploadRoutes
    deletes: DeleteRoutes


@asynccontextmanager
async def open_app(
    settings: GatewaySettings,
    metrics: GatewayMetrics,
    instrumentation: Instrumentation | None = None,
) -> AsyncIterator[ASGIApp]:
    """Yield the application, with its storage and its publisher open."""
    parts = instrumentation or Instrumentation()
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
        parts.open_storage(settings, max_connections=connections) as storage,
        Publisher.open(
            settings,
            s3=settings,
            connect=False,
            publish_timeout_s=settings.gateway_publish_timeout_s,
            alarm_timeout_s=_ALARM_TIMEOUT_S,
        ) as publisher,
        listing_detection(storage, settings.publisher_name),
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
        routes = _routes(settings, storage, publisher, keys, metrics, marks)
        purging = asyncio.create_task(keys.purge_periodically())
        try:
            app = application(
                routes.objects,
                routes.listing,
                routes.links,
                routes.rotations,
                metrics,
                _checks(storage, publisher),
                idle_timeout_s=settings.gateway_idle_timeout_s,
                cors_origins=settings.gateway_cors_origins,
            )
            yield parts.application(app)
        finally:
            purging.cancel()
            for publishing in (routes.rotations, routes.uploads, routes.deletes):
                await publishing.close()


def _routes(
    settings: GatewaySettings,
    storage: Storage,
    publisher: Publisher,
    keys: OperatorKeys,
    metrics: GatewayMetrics,
    witness: Witness,
) -> _Routes:
    keyrings = KeyringReader(
        storage, keys, lease_s=_LEASE_S, cache_s=settings.keyring_cache_s, witness=witness
    )
    auth = Authenticator(
        keyrings,
        KeyringLookups(keyrings, storage),
        Secret(settings.pepper.get_secret_value().encode()),
        deployment=settings.deployment,
        cache_s=settings.keyring_cache_s,
    )
    share = settings.gateway_project_share
    v0_slots = ProjectSlots(
        settings.gateway_v0_concurrency, share, "reads of v0 objects", wait_s=_V0_SLOT_WAIT_S
    )
    legacy = LegacyDecrypter(storage, v0_slots, max_bytes=settings.gateway_v0_max_bytes)
    opener = ObjectOpener(storage, auth, keys, legacy)
    limit = ConcurrencyLimit(settings.gateway_concurrency, share, "requests")
    ledger = StagingLedger(settings.gateway_staging_max_bytes, share)
    limits = UploadLimits(
        ProjectSlots(
            settings.gateway_upload_concurrency, share, "uploads", wait_s=_UPLOAD_SLOT_WAIT_S
        ),
        StagingQuota(storage, settings.publisher_name, ledger),
    )
    uploads = UploadRoutes(
        publisher,
        opener,
        limits,
        metrics,
        max_bytes=settings.upload_max_bytes,
        max_pending=settings.gateway_pending,
        max_pending_bytes=settings.gateway_pending_bytes,
        idle_timeout_s=settings.gateway_idle_timeout_s,
        wait_max_s=settings.gateway_wait_max_s,
    )
    deletes = DeleteRoutes(
        publisher,
        opener,
        allowed=settings.gateway_delete == "allowed",
        max_pending=settings.gateway_project_deletes,
        wait_max_s=settings.gateway_wait_max_s,
    )
    objects = ObjectRoutes(
        auth,
        limit,
        opener,
        {"PUT": uploads.put, "DELETE": deletes.delete},
        metrics,
        presign_plaintext=settings.presign_plaintext,
    )
    links = LinkRoutes(
        auth,
        limit,
        opener,
        deployment=settings.deployment,
        public_url=settings.gateway_public_url,
        idle_timeout_s=settings.gateway_idle_timeout_s,
    )
    rotations = RotationRoutes(
        auth,
        limit,
        publisher,
        SweepStore(storage, keys),
        allowed=settings.gateway_rotation == "allowed",
        max_in_progress=settings.gateway_project_rotations,
        idle_timeout_s=settings.gateway_idle_timeout_s,
        wait_max_s=settings.gateway_wait_max_s,
    )
    listing = ListingRoutes(auth, limit, ObjectLister(storage))
    return _Routes(objects, listing, links, rotations, uploads, deletes)


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

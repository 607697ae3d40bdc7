"""Opens the stores of customer keys of a process, and maps each kind to its class."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from keyturn_workers.core.customer_key_stores import AwsKmsStore, CustomerKeyStore, VaultStore
from keyturn_workers.keys.customer_keys.port import Store
from keyturn_workers.keys.customer_keys.secrets import (
    CachedCustomerKeys,
    WaitPolicy,
)
from keyturn_workers.keys.customer_keys.store_calls import Outcome
from keyturn_workers.process.background import background
from keyturn_workers.process.settings import CustomerKeySettings

_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class CustomerKeyMetrics:
    """Metrics of a process's calls to stores (SPEC 2.6). No label names a project or a key."""

    def __init__(self, registry: CollectorRegistry, stores: Mapping[str, CustomerKeyStore]) -> None:
        self._calls = Counter(
            "keyturn_customer_key_calls_total",
            "Calls to stores of customer keys, by store and outcome",
            ("store", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "keyturn_customer_key_seconds",
            "Duration of one call to a store of customer keys that gave what was asked for",
            ("store",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._held = Gauge(
            "keyturn_customer_secrets", "Customer secrets in memory", registry=registry
        )
        for store in stores:  # from the first scrape on
            self._seconds.labels(store)
            for outcome in get_args(Outcome):
                self._calls.labels(store, outcome)

    def track(self, keys: CachedCustomerKeys) -> None:
        """Export the number of secrets in memory at each scrape."""
        self._held.set_function(lambda: keys.held)

    def observe(self, store: str, outcome: Outcome, took_s: float) -> None:
        """Count a call."""
        self._calls.labels(store, outcome).inc()
        if outcome == "ok":
            self._seconds.labels(store).observe(took_s)


@asynccontextmanager
async def open_customer_keys(
    settings: CustomerKeySettings,
    deployment: str,
    policy: WaitPolicy,
    *,
    metrics: CustomerKeyMetrics | None = None,
) -> AsyncIterator[CachedCustomerKeys]:
    """Open the customer keys of one process, until the block ends. Contacts no store.

    Raises:
        SettingsError: the credentials or the CA file of a store are malformed, or a credential is
            one of the master keys or the pod.
    """
    keys = CachedCustomerKeys(
        _open_stores(settings),
        deployment,
        policy,
        cache_s=settings.customer_key_cache_s,
        observe=None if metrics is None else metrics.observe,
    )
    if metrics is not None:
        metrics.track(keys)
    try:
        async with background(keys.purge_periodically()):
            yield keys
    finally:
        await keys.aclose()


def _open_stores(settings: CustomerKeySettings) -> dict[str, Store]:
    """Return each store by its name. A provider's libraries are imported only if it is used."""
    named = settings.customer_key_stores.items()
    stores: dict[str, Store] = {}
    own = settings.master_key_credentials
    if in_vault := {name: store for name, store in named if isinstance(store, VaultStore)}:
        from keyturn_workers.keys.customer_keys.vault import VaultKeys  # noqa: PLC0415

        stores.update((name, VaultKeys(name, store, own)) for name, store in in_vault.items())
    if in_aws := {name: store for name, store in named if isinstance(store, AwsKmsStore)}:
        from keyturn_workers.keys.customer_keys import awskms  # noqa: PLC0415

        regions = awskms.AwsKmsRegions(settings.aws_kms_endpoint_url)
        stores.update((name, awskms.AwsKmsKeys(store, regions)) for name, store in in_aws.items())
    return stores

"""Map each kind of master key to its class.

Another provider needs a module, and lines here, in `key_uris`, `settings` and `cli/keys`. A
provider's libraries are optional: they are imported only if one of its keys is used.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from keyturn.crypto.keys import Secret
from keyturn.errors import SettingsError
from keyturn_workers.core.key_uris import AwsKmsUri, Pkcs11Uri, VaultUri
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits, Observe
from keyturn_workers.keys.master_keys.derived_keks import KekLimits, OnDerived
from keyturn_workers.keys.master_keys.known_text import check_known_text
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.master_keys.port import MasterKey
from keyturn_workers.process.settings import KmsSettings, MasterKeySource, OperatorSettings

_BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


def open_master_key(source: MasterKeySource, settings: KmsSettings) -> MasterKey:
    """Return the master key that a setting names. Contacts nothing.

    Raises:
        SettingsError: an optional dependency is not installed, or a setting that this kind of
            key needs is missing.
    """
    match source:
        case Secret():
            return LocalMasterKey(source)
        case AwsKmsUri():
            from keyturn_workers.keys.master_keys.awskms import AwsKmsMasterKey  # noqa: PLC0415

            return AwsKmsMasterKey(source, settings)
        case Pkcs11Uri():
            with _extra("pkcs11"):
                from keyturn_workers.keys.master_keys.pkcs11 import Pkcs11MasterKey  # noqa: PLC0415

            return Pkcs11MasterKey(source, settings)
        case VaultUri():
            from keyturn_workers.keys.master_keys.vault import VaultMasterKey  # noqa: PLC0415

            return VaultMasterKey(source, settings)
        case _:
            raise SettingsError("this kind of master key is not supported")


class KmsMetrics:
    """Metrics of a process's calls to providers (SPEC 11, 13).

    No label names a project, a key or an id.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._derivations = Counter(
            "keyturn_kms_derivations_total",
            "Calls to providers of master keys, by provider and outcome",
            ("provider", "outcome"),
            registry=registry,
        )
        self._seconds = Histogram(
            "keyturn_kms_derivation_seconds",
            "Duration of one derivation by a provider",
            ("provider",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._cached = Gauge(
            "keyturn_kms_cached_keks",
            "Derived KEKs in memory, including those of local master keys",
            registry=registry,
        )

    def track(self, keys: OperatorKeys) -> None:
        """Export the number of KEKs in memory at each scrape."""
        self._cached.set_function(lambda: keys.cached_keks)

    def observer(self, provider: str) -> Observe:
        """Export a provider's series from the first scrape on; return a function to count calls."""
        derived, unavailable = (
            self._derivations.labels(provider, outcome) for outcome in ("derived", "unavailable")
        )
        seconds = self._seconds.labels(provider)

        def observe(succeeded: bool, took_s: float) -> None:  # noqa: FBT001  # as `Observe`
            (derived if succeeded else unavailable).inc()
            if succeeded:
                seconds.observe(took_s)

        return observe


@asynccontextmanager
async def open_operator_keys(
    settings: OperatorSettings,
    storage: Storage,
    *,
    seals: bool,
    on_derived: OnDerived | None = None,
    metrics: KmsMetrics | None = None,
) -> AsyncIterator[OperatorKeys]:
    """Open the operator's keys of one process, until the block ends.

    Args:
        settings: The master keys, and the settings of providers.
        storage: The bucket with the known texts.
        seals: True if the process seals under them. A reader derives each KEK once, and creates no
            known text.
        on_derived: Called for each KEK that a provider derived.
        metrics: Count the calls to providers.

    Raises:
        SettingsError: as `open_master_key`.
    """
    keys = OperatorKeys(
        {name: open_master_key(source, settings) for name, source in settings.master_keys.items()},
        limits=KekLimits(settings.kms_cache_s, settings.kms_cache_max_s, settings.kms_timeout_s),
        calls=CallLimits(
            settings.kms_concurrency, settings.kms_requests_per_s, settings.kms_timeout_s
        ),
        seals=seals,
        check=partial(check_known_text, storage, create=seals),
        on_derived=on_derived,
        observe=None if metrics is None else metrics.observer,
    )
    if metrics is not None:
        metrics.track(keys)
    try:
        yield keys
    finally:
        await keys.aclose()


async def import_master_key(source: MasterKeySource, settings: KmsSettings, prk: Secret) -> None:
    """Import a PRK into the provider that a setting names, as the key that it names.

    Raises:
        ValueError: the provider cannot import, or not under this name.
        KmsUnavailableError: the provider did not respond, or refused.
        SettingsError: as `open_master_key`.
    """
    match source:
        case AwsKmsUri():
            from keyturn_workers.keys.master_keys.awskms import import_prk  # noqa: PLC0415

            await import_prk(source, settings, prk)
        case Pkcs11Uri():
            with _extra("pkcs11"):
                from keyturn_workers.keys.master_keys import pkcs11  # noqa: PLC0415

            await pkcs11.import_prk(source, settings, prk)
        case VaultUri():
            from keyturn_workers.keys.master_keys import vault  # noqa: PLC0415

            await vault.import_prk(source, settings, prk)
        case _:
            raise ValueError("a key of this kind cannot be imported")


async def generate_master_key(source: MasterKeySource, settings: KmsSettings) -> None:
    """Generate a key inside the provider, under the name of the setting.

    Raises:
        ValueError: the provider cannot generate keys, or the name is taken.
        KmsUnavailableError: the provider did not respond, or refused.
        SettingsError: as `open_master_key`.
    """
    match source:
        case AwsKmsUri():
            raise ValueError(
                "AWS KMS chooses a key's ARN: create the key with `aws kms create-key --key-spec "
                "HMAC_256 --key-usage GENERATE_VERIFY_MAC`, and name it by its ARN"
            )
        case Pkcs11Uri():
            with _extra("pkcs11"):
                from keyturn_workers.keys.master_keys.pkcs11 import generate_key  # noqa: PLC0415

            await generate_key(source, settings)
        case VaultUri():
            from keyturn_workers.keys.master_keys import vault  # noqa: PLC0415

            await vault.generate_key(source, settings)
        case _:
            raise ValueError("a key of this kind cannot be generated")


@contextmanager
def _extra(name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as exc:
        raise SettingsError(
            f"a master key needs a library that is not installed: install keyturn-workers[{name}]"
        ) from exc

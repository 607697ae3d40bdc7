"""Which class serves which kind of master key. A further provider is one module and its lines here.

The libraries of a provider are imported only where one of its keys is used: they are optional.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from pydantic import SecretStr

from keyturn.crypto import Secret, v0_admin_kek
from keyturn.errors import SettingsError
from keyturn_workers.key_uris import AwsKmsUri, Pkcs11Uri, VaultUri
from keyturn_workers.master_keys import vault_new_key
from keyturn_workers.master_keys.known_text import RESERVED_PROJECT, check_known_text
from keyturn_workers.master_keys.limits import LimitedMasterKey
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.metrics import KmsMetrics
from keyturn_workers.master_keys.operator_keys import KekLimits, OnDerived, OperatorKeys
from keyturn_workers.master_keys.port import MasterKey
from keyturn_workers.master_keys.vault import VaultMasterKey
from keyturn_workers.settings import KmsSettings, MasterKeySource, OperatorSettings
from keyturn_workers.storage import Storage


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
            from keyturn_workers.master_keys.awskms import AwsKmsMasterKey  # noqa: PLC0415

            return AwsKmsMasterKey(source, settings)
        case Pkcs11Uri():
            with _extra("pkcs11"):
                from keyturn_workers.master_keys.pkcs11 import Pkcs11MasterKey  # noqa: PLC0415

            return Pkcs11MasterKey(source, settings)
        case VaultUri():
            return VaultMasterKey(source, settings)
        case _:
            raise SettingsError("this kind of master key is not supported")


def open_master_keys(
    sources: Mapping[str, MasterKeySource],
    settings: KmsSettings,
    metrics: KmsMetrics | None = None,
) -> dict[str, MasterKey]:
    """Return the master keys of the settings by id, bounded; errors as `open_master_key`."""
    keys: dict[str, MasterKey] = {}
    for name, source in sources.items():
        key = open_master_key(source, settings)
        if not isinstance(source, Secret):
            key = LimitedMasterKey(
                key,
                concurrency=settings.kms_concurrency,
                requests_per_s=settings.kms_requests_per_s,
                timeout_s=settings.kms_timeout_s,
                observe=_observer(key.provider, metrics),
            )
        keys[name] = key
    return keys


def _observer(provider: str, metrics: KmsMetrics | None) -> Callable[[bool, float], None]:
    if metrics is None:
        return lambda _derived, _seconds: None
    metrics.initialize(provider)
    return lambda derived, seconds: metrics.observe(provider, derived=derived, seconds=seconds)


@asynccontextmanager
async def open_operator_keys(
    settings: OperatorSettings,
    storage: Storage,
    *,
    seals: bool,
    v0_master_key: SecretStr | None = None,
    on_derived: OnDerived | None = None,
    metrics: KmsMetrics | None = None,
) -> AsyncIterator[OperatorKeys]:
    """The operator's keys of one process, until the block ends.

    Args:
        settings: The master keys, and how providers are used.
        storage: The bucket with the known texts.
        seals: Whether the process seals under them. A reader derives each KEK once, and creates no
            known text.
        v0_master_key: The earlier system's.
        on_derived: Called for each KEK that a provider derived.
        metrics: Count the calls to providers.

    Raises:
        SettingsError: as `open_master_key`.
    """
    keys = OperatorKeys(
        open_master_keys(settings.master_keys, settings, metrics),
        v0_admin_kek=(
            None if v0_master_key is None else v0_admin_kek(v0_master_key.get_secret_value())
        ),
        limits=KekLimits(settings.kms_cache_s, settings.kms_cache_max_s, settings.kms_timeout_s),
        seals=seals,
        reserved_project=RESERVED_PROJECT,
        check=partial(check_known_text, storage, create=seals),
        on_derived=on_derived,
    )
    if metrics is not None:
        metrics.track(keys)
    try:
        yield keys
    finally:
        await keys.aclose()


async def import_master_key(source: MasterKeySource, settings: KmsSettings, prk: Secret) -> None:
    """Put a PRK into the provider that a setting names, as the key that it names.

    Raises:
        ValueError: the provider cannot import, or not under this name.
        KmsUnavailableError: it did not answer, or refused.
        SettingsError: as `open_master_key`.
    """
    match source:
        case AwsKmsUri():
            from keyturn_workers.master_keys.awskms import import_prk  # noqa: PLC0415

            await import_prk(source, settings, prk)
        case Pkcs11Uri():
            with _extra("pkcs11"):
                from keyturn_workers.master_keys import pkcs11  # noqa: PLC0415

            await pkcs11.import_prk(source, settings, prk)
        case VaultUri():
            await vault_new_key.import_prk(source, settings, prk)
        case _:
            raise ValueError("a key of this kind cannot be imported")


async def generate_master_key(source: MasterKeySource, settings: KmsSettings) -> None:
    """Generate a key inside the provider, under the name of the setting.

    Raises:
        ValueError: the provider cannot, or the name is taken.
        KmsUnavailableError: it did not answer, or refused.
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
                from keyturn_workers.master_keys.pkcs11 import generate_key  # noqa: PLC0415

            await generate_key(source, settings)
        case VaultUri():
            await vault_new_key.generate_key(source, settings)
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

"""Where broker and storage are, for the line that tells that they do not answer.

An address is shown without what may be secret in it: user, password, query.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from yarl import URL

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn_workers.cli.settings import BrokerSettings


def broker_address() -> str | None:
    """The broker that this command's settings name, or None where they name none."""
    try:
        url = BrokerSettings.read().amqp_url
    except SettingsError:
        return None
    return None if url is None else bare(url.get_secret_value())


def storage_address(settings: S3Settings) -> str:
    """The storage and the bucket."""
    if settings.s3_endpoint_url is None:
        return f"AWS, region {settings.s3_region}, bucket {settings.s3_bucket}"
    return f"{bare(settings.s3_endpoint_url)}, bucket {settings.s3_bucket}"


def bare(url: str) -> str | None:
    """Scheme, host and port of an address alone; None where it is none."""
    try:
        parsed = URL(url)
        return str(parsed.origin()) if parsed.host else None
    except ValueError:
        return None


@contextmanager
def naming_storage(settings: S3Settings) -> Iterator[None]:
    """Say which storage it is that does not answer.

    Raises:
        StorageUnavailableError: as within, its detail followed by the address.
    """
    try:
        yield
    except (StorageUnavailableError, BaseExceptionGroup) as exc:
        first = first_of(exc)
        if not isinstance(first, StorageUnavailableError):
            raise
        where = f"(the storage at {storage_address(settings)})"
        raise StorageUnavailableError(f"{first.detail} {where}".strip()) from exc


def first_of(exc: BaseException) -> BaseException:
    """The error itself, or the first of a group of them."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc

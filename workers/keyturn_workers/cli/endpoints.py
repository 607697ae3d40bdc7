"""The endpoints of broker and storage, for errors that say which one does not answer.

An endpoint is shown without what may be secret in it: user, password, query.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from yarl import URL

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn_workers.cli.settings import BrokerSettings


def broker_endpoint() -> str | None:
    """The broker of this command's settings; None if they have none."""
    try:
        url = BrokerSettings.read().amqp_url
    except SettingsError:
        return None
    return None if url is None else redacted(url.get_secret_value())


def storage_endpoint(settings: S3Settings) -> str:
    """The storage and the bucket."""
    if settings.s3_endpoint_url is None:
        return f"AWS, region {settings.s3_region}, bucket {settings.s3_bucket}"
    return f"{redacted(settings.s3_endpoint_url)}, bucket {settings.s3_bucket}"


def redacted(url: str) -> str | None:
    """Only scheme, host and port of a URL; None if it is malformed."""
    try:
        parsed = URL(url)
        return str(parsed.origin()) if parsed.host else None
    except ValueError:
        return None


@contextmanager
def naming_storage(settings: S3Settings) -> Iterator[None]:
    """Add the endpoint to an error of a storage that does not answer.

    Raises:
        StorageUnavailableError: as within, its detail followed by the endpoint.
    """
    try:
        yield
    except (StorageUnavailableError, BaseExceptionGroup) as exc:
        first = first_error(exc)
        if not isinstance(first, StorageUnavailableError):
            raise
        where = f"(the storage at {storage_endpoint(settings)})"
        raise StorageUnavailableError(f"{first.detail} {where}".strip()) from exc


def first_error(exc: BaseException) -> BaseException:
    """The error itself, or the first one of a group."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc

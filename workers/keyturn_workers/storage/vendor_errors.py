"""Translates exceptions of connections into errors of the port (SPEC 12).

S3's own error codes are in `s3_wire`.

The text of the new error is only the operation and the kind of failure: some of the vendors'
messages repeat the URL, which may contain a signature.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from keyturn.errors import StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn.tls import STORAGE, describe_connection_failure, needs_tls, speaks_tls
from keyturn_workers.core.errors import StorageTlsError
from keyturn_workers.storage.s3_connections import ConnectionLostError, TlsFailedError


@contextmanager
def translate_errors(operation: str) -> Iterator[None]:
    """Translate errors of connections within the block into the port's errors.

    Raises:
        StorageTlsError: TLS failed; nothing was sent.
        StorageUnavailableError: everything else; the outcome of a write is unknown.
    """
    try:
        yield
    except TlsFailedError as exc:
        raise StorageTlsError(f"{operation}: {exc}") from exc
    except ConnectionLostError as exc:
        raise StorageUnavailableError(f"{operation}: {exc}") from exc
    except OSError as exc:  # TimeoutError, too
        problem = describe_connection_failure(exc, STORAGE) or "the connection was lost"
        raise StorageUnavailableError(f"{operation}: {problem}") from exc


@asynccontextmanager
async def explaining_tls(settings: S3Settings) -> AsyncIterator[None]:
    """If the storage does not respond to `http://`, check if its port is for TLS.

    Raises:
        StorageTlsError: the port is for TLS.
        StorageUnavailableError: as within the block.
    """
    url = settings.s3_endpoint_url or ""
    try:
        yield
    except StorageUnavailableError as exc:
        is_plain = url.startswith("http://") and not isinstance(exc, StorageTlsError)
        if is_plain and await asyncio.to_thread(speaks_tls, url):
            raise StorageTlsError(needs_tls(STORAGE)) from exc
        raise


def may_pass(error: Exception) -> bool:
    """Check if a failed read is worth another attempt: a certificate does not change."""
    return isinstance(error, StorageUnavailableError) and not isinstance(error, StorageTlsError)

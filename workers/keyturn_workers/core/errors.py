"""Errors of `keyturn_workers` alone, mostly responses of the storage.

The others are in `keyturn.errors`. These never leave a worker: the caller of the storage maps
each to a code of SPEC 12. A missing object, for example, is `staged_body_missing` in staging,
but no error at an upload's target.
"""

import errno
from typing import Self

from keyturn.errors import SettingsError, StorageUnavailableError


class StorageTlsError(StorageUnavailableError):
    """TLS with the storage failed. Retries will not help until a person changes something.

    Requesters see `storage_unavailable`, as for its parent.
    """


class RequestFailedError(StorageUnavailableError):
    """A 4xx that the storage's callers do not handle: other requests may well succeed."""


class StorageResponseError(Exception):
    """A definite refusal by the storage. Nothing was written."""


class MissingError(StorageResponseError):
    """404: no such object, or no such multipart upload."""


class PreconditionError(StorageResponseError):
    """412 (or 409 between two conditional writers): the condition did not hold.

    If an HTTP client resent the request, this can be a false alarm: check who wrote the object.
    """


class UnstorableKeyError(StorageResponseError):
    """400 or 409: the storage cannot hold an object at this key, now or at all.

    The key is too long, or the storage keeps objects as files, and another one is in the way.
    The text says which.
    """


class RefusedError(StorageResponseError):
    """403: not allowed, or a leased request was sent after its lease (SPEC 8.4)."""


class ClockSkewError(RefusedError):
    """403 RequestTimeTooSkewed: the request's time is too far from the storage's clock.

    This machine's clock is wrong, unless the request was leased and sent late.
    """

    def __str__(self) -> str:
        return f"{super().__str__()}: check this machine's clock"


class ArchivedError(StorageResponseError):
    """403 InvalidObjectState: the object's bytes are archived; its head can be read."""


class MissingExtraError(Exception):
    """A setting needs an extra that is not installed; the text names both."""


class AddressError(SettingsError):
    """The process cannot listen on its address. The text is one line for a person."""

    @classmethod
    def of(cls, exc: OSError, host: str, port: int, settings: str) -> Self:
        """Name the setting to change; `settings` is the prefix of its name."""
        if exc.errno == errno.EADDRINUSE:
            problem = (
                f"the port is in use: stop the program that uses it, or change {settings}_PORT"
            )
        elif exc.errno == errno.EACCES:
            problem = f"this user may not use the port: change {settings}_PORT"
        else:
            problem = f"not an address of this machine: change {settings}_HOST"
        return cls(f"cannot listen on {host} port {port}: {problem}")


class UnsafeStorageError(Exception):
    """The bucket lacks a property that SPEC 10 requires; the worker does not start."""


class ExportError(Exception):
    """An export cannot start or continue; the text says why, and what to do."""


def first_error(exc: BaseException) -> BaseException:
    """The error itself, or the first one of a group."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc

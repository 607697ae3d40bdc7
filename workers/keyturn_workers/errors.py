"""Errors that only `keyturn_workers` raises: most say how the storage answered.

Those of `keyturn` are in `keyturn.errors`. These never leave a worker: the caller of the storage
decides which code of SPEC 12 an answer means there. A missing object, for example, is
`staged_body_missing` in staging, and no error at an upload's target.
"""

import errno
from typing import Self

from keyturn.errors import SettingsError, StorageUnavailableError


class StorageTlsError(StorageUnavailableError):
    """TLS with the storage failed. Trying again will not help, until a person changes something.

    To a requester it is `storage_unavailable`, like its parent.
    """


class RequestFailedError(StorageUnavailableError):
    """4xx that is no refusal which the storage's callers know: other requests may well succeed."""


class StorageAnswerError(Exception):
    """A definite refusal by the storage. Nothing was written."""


class MissingError(StorageAnswerError):
    """404: no such object, or no such multipart upload."""


class PreconditionError(StorageAnswerError):
    """412 (or 409 between two conditional writers): the condition did not hold.

    An HTTP client that resends can make this a false alarm: check whose object it is.
    """


class UnstorableKeyError(StorageAnswerError):
    """400 or 409: the storage cannot hold an object at this key, now or at all.

    The key is too long for it, or it keeps objects as files, and one is in another's way. The
    text says which of these.
    """


class RefusedError(StorageAnswerError):
    """403: not allowed, or, of a leased request, sent after its lease (SPEC 8.4)."""


class ArchivedError(StorageAnswerError):
    """403 InvalidObjectState: the object's bytes are archived; its head can be read."""


class MissingExtraError(Exception):
    """A setting needs an extra that is not installed; the text names both."""


class AddressError(SettingsError):
    """The process cannot listen on its address. The text is one line for a person."""

    @classmethod
    def of(cls, exc: OSError, host: str, port: int, settings: str) -> Self:
        """The error, with the setting that helps; its name begins with `settings`."""
        if exc.errno == errno.EADDRINUSE:
            problem = f"the port is in use: stop what uses it, or change {settings}_PORT"
        elif exc.errno == errno.EACCES:
            problem = f"this user may not use the port: change {settings}_PORT"
        else:
            problem = f"not an address of this machine: change {settings}_HOST"
        return cls(f"cannot listen on {host} port {port}: {problem}")


class UnsafeStorageError(Exception):
    """The bucket lacks something that SPEC 10 requires; the worker does not start."""


class ExportError(Exception):
    """An export cannot begin or go on; the text says why, and what to do."""


def first_error(exc: BaseException) -> BaseException:
    """The error itself, or the first one of a group."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc

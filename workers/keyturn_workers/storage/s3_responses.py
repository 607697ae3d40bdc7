"""What the storage's answers mean: errors and heads (SPEC 8.2, 12).

    403, any 4xx AccessDenied            RefusedError
    403 InvalidObjectState               ArchivedError
    404 NoSuchKey, NoSuchVersion,
        NoSuchUpload                     MissingError
    404 to a HEAD, which has no body     UnconfirmedError, for the storage's own use
    412, 409 ConditionalRequestConflict  PreconditionError
    416                                  RangeBeyondError, for the storage's own use
    everything else, NoSuchBucket and
        a proxy's own 404 too            StorageUnavailableError

Pure functions of status, code and headers. An error's text is the operation and the
code alone: never a URL (it may hold a signature), a header or a body.
"""

import html
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    StorageAnswerError,
)
from keyturn_workers.storage.port import Headers, ObjectHead


class RangeBeyondError(StorageAnswerError):
    """416: the range begins behind the object's end. It never leaves the storage."""


class UnconfirmedError(StorageAnswerError):
    """404 to a HEAD: it carries no code, so a GET must decide. It never leaves the storage."""


META_PREFIX: Final = "x-amz-meta-"
LOCK_PREFIX: Final = "x-amz-object-lock-"
LEGAL_HOLD: Final = LOCK_PREFIX + "legal-hold"
# What a self-copy with REPLACE would reset unless it is said again (SPEC 8.2).
RESTATED: Final = frozenset(
    {
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "expires",
        LEGAL_HOLD,
        "x-amz-object-lock-mode",
        "x-amz-object-lock-retain-until-date",
        "x-amz-server-side-encryption",
        "x-amz-server-side-encryption-aws-kms-key-id",
        "x-amz-server-side-encryption-bucket-key-enabled",
        "x-amz-storage-class",
        "x-amz-website-redirect-location",
    }
)
_RETENTION: Final = frozenset({"x-amz-object-lock-mode", "x-amz-object-lock-retain-until-date"})
_ARCHIVES: Final = frozenset({"GLACIER", "DEEP_ARCHIVE"})
# Taken for a missing object, a missing bucket or the 404 of a proxy that was set up wrongly
# would read as "there is nothing", and a sweep would pass over an object that an old key opens.
_ABSENT: Final = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload"})
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9_.-]{1,64})</Code>")
_ETAG: Final = re.compile(rb"<ETag>([^<]{1,200})</ETag>")
# S3 answers a long copy or completion with 200 before it knows the outcome.
_STATUS_OF_LATE_CODE: Final = {
    "AccessDenied": 403,
    "ConditionalRequestConflict": 409,
    "InvalidObjectState": 403,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "PreconditionFailed": 412,
}


def code_of(body: bytes) -> str:
    """The `<Code>` of an error's body, or an empty text."""
    found = _CODE.search(body)
    return found.group(1).decode() if found else ""


def error_of(
    operation: str, status: int, code: str
) -> StorageAnswerError | StorageUnavailableError:
    """The error that an answer means; see the table above."""
    detail = f"{operation}: {code or status}"
    if status == 404 and code in _ABSENT:  # noqa: PLR2004  # HTTP's own numbers
        return MissingError(detail)
    if status == 412 or (status == 409 and code == "ConditionalRequestConflict"):  # noqa: PLR2004
        return PreconditionError(detail)
    # `rclone serve s3` tells AccessDenied with status 400.
    if status == 403 or (400 <= status < 500 and code == "AccessDenied"):  # noqa: PLR2004
        return ArchivedError(detail) if code == "InvalidObjectState" else RefusedError(detail)
    if status == 416:  # noqa: PLR2004
        return RangeBeyondError(detail)
    return StorageUnavailableError(detail)


def check_late_error(operation: str, body: bytes, wanted: bytes) -> None:
    """Look into the 200 answer to a copy or a completion.

    Args:
        operation: For the error's text.
        body: The answer's.
        wanted: The element that a success holds.

    Raises:
        StorageAnswerError: a definite refusal.
        StorageUnavailableError: a failure, or an answer that says neither.
    """
    if wanted in body and b"<Error>" not in body:
        return
    code = code_of(body)
    raise error_of(operation, _STATUS_OF_LATE_CODE.get(code, 500), code or "answer without outcome")


def etag_in(operation: str, body: bytes) -> str:
    """The `<ETag>` of an answer's body, without quotes.

    Raises:
        StorageUnavailableError: there is none.
    """
    found = _ETAG.search(body)
    if found is None:
        raise StorageUnavailableError(f"{operation}: answer without ETag")
    return html.unescape(found.group(1).decode()).strip('"')


def text_in(operation: str, body: bytes, element: str) -> str:
    """The text of an element of an answer's body.

    Raises:
        StorageUnavailableError: there is none.
    """
    found = re.search(rf"<{element}>([^<]+)</{element}>", body.decode())
    if found is None:
        raise StorageUnavailableError(f"{operation}: answer without {element}")
    return html.unescape(found.group(1))


def etag_of(operation: str, headers: Mapping[str, str]) -> str:
    """The ETag header without quotes.

    Raises:
        StorageUnavailableError: there is none, so it was not S3 that answered.
    """
    etag = headers.get("ETag")
    if etag is None:
        raise StorageUnavailableError(f"{operation}: answer without ETag")
    return etag.strip('"')


def head_of(operation: str, headers: Mapping[str, str]) -> ObjectHead:
    """The head that an answer to a read tells.

    Args:
        operation: For the error's text.
        headers: The answer's, with names in any case.

    Raises:
        StorageUnavailableError: no ETag, Date, Last-Modified or length.
    """
    try:
        last_modified = _moment(headers["Last-Modified"])
        date = _moment(headers["Date"])
        content_range = headers.get("Content-Range")
        size_bytes = int(
            headers["Content-Length"] if content_range is None else content_range.rpartition("/")[2]
        )
    except (KeyError, ValueError) as exc:
        raise StorageUnavailableError(f"{operation}: answer without its times or length") from exc
    told, locked = lock_of(_said(headers.items()), date)
    return ObjectHead(
        size_bytes=size_bytes,
        etag=etag_of(operation, headers),
        date=date,
        last_modified=last_modified,
        headers=told,
        tag_count=int(headers.get("x-amz-tagging-count", 0)),
        version_id=headers.get("x-amz-version-id"),
        archived=is_archived(
            told.restated,
            restore=headers.get("x-amz-restore"),
            status=headers.get("x-amz-archive-status"),
        ),
        locked=locked,
    )


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """The answer's `Date`; None where there is none that can be read."""
    try:
        return _moment(headers["Date"])
    except (KeyError, ValueError):
        return None


@lru_cache(maxsize=512)  # a second has many answers, and its objects too
def _moment(text: str) -> datetime:
    moment = parsedate_to_datetime(text)
    # `-0000` is UTC as well, of a server that does not know where it is (RFC 5322).
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _text(value: str) -> str:
    """A header's value; bytes of a foreign writer's that are no UTF-8 are Latin-1.

    aiohttp gives such bytes as lone surrogates, and could not send them again.
    """
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="surrogateescape").decode("latin-1")
    return value


def lock_of(told: Headers, date: datetime) -> tuple[Headers, bool]:
    """Whether a lock holds at `date`, and the headers without a retention that is over."""
    retained = _retained(told.restated, date)
    if not retained and _RETENTION & told.restated.keys():
        # Said again, S3 would refuse it as lying in the past.
        kept = {name: value for name, value in told.restated.items() if name not in _RETENTION}
        told = Headers(told.metadata, told.content_type, kept)
    return told, retained or told.restated.get(LEGAL_HOLD) == "ON"


def is_archived(
    restated: Mapping[str, str], *, restore: str | None = None, status: str | None = None
) -> bool:
    """Whether the object's bytes cannot be read now.

    Args:
        restated: With the storage class.
        restore: `x-amz-restore`: a copy of an archived object that is or was asked for.
        status: `x-amz-archive-status`: an archive tier within another storage class.
    """
    if status is None and restated.get("x-amz-storage-class") not in _ARCHIVES:
        return False
    return restore is None or 'ongoing-request="true"' in restore


def _said(items: Iterable[tuple[str, str]]) -> Headers:
    """Metadata, content type and what must be restated, in one pass."""
    metadata: dict[str, str] = {}
    restated: dict[str, str] = {}
    content_type = None
    for name, value in items:
        lowered = name.lower()
        if lowered.startswith(META_PREFIX):
            metadata[lowered[len(META_PREFIX) :]] = _text(value)
        elif lowered in RESTATED:
            restated[lowered] = _text(value)
        elif lowered == "content-type":
            content_type = _text(value)
    return Headers(metadata, content_type, restated)


def _retained(restated: Mapping[str, str], date: datetime) -> bool:
    until = restated.get("x-amz-object-lock-retain-until-date")
    if until is None:
        return False
    try:
        return datetime.fromisoformat(until) > date
    except (ValueError, TypeError):  # unreadable, or without a zone: the careful answer
        return True

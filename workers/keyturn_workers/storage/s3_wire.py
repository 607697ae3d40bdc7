"""The contents of S3 requests, and the meaning of responses (SPEC 8.2, 8.4, 8.5, 10, 12). Pure.

    403, any 4xx AccessDenied            RefusedError
    403 RequestTimeTooSkewed             ClockSkewError, a RefusedError
    403 InvalidObjectState               ArchivedError
    404 NoSuchKey, NoSuchVersion,
        NoSuchUpload                     MissingError
    404 to a HEAD, which has no body     UnconfirmedNotFoundError, internal to the storage
    412, 409 ConditionalRequestConflict  PreconditionError
    400 KeyTooLongError,
        409 ExistingObjectIsFile,
        ExistingObjectIsDirectory        UnstorableKeyError; to a read, MissingError
    416                                  RangeNotSatisfiableError, internal to the storage
    any other 4xx but 408 and 429, also
        NoSuchBucket, a proxy's 404      RequestFailedError, a StorageUnavailableError
    everything else                      StorageUnavailableError

Pure functions of status, code and headers. The text of an error is only the operation and the code:
never a URL (which may contain a signature), a header or a body.

XML documents are rows of elements that hold text, without attributes. Any writer of the bucket can
put any character into a key, and servers repeat some keys as they are. A parser for XML 1.0 refuses
a document with such a character. So elements are found by their tags.
"""

import hashlib
import re
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote_plus
from xml.sax.saxutils import escape

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import (
    ArchivedError,
    ClockSkewError,
    MissingError,
    PreconditionError,
    RefusedError,
    RequestFailedError,
    StorageResponseError,
    UnstorableKeyError,
)
from keyturn_workers.core.storage_values import (
    Condition,
    Headers,
    IfAbsent,
    IfMatch,
    ObjectHead,
    Part,
    Versioning,
)

_NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
# S3 requires a digest of the body, even of an empty one, if the request sets a lock or the bucket
# locks by default.
EMPTY_MD5: Final = b64encode(hashlib.md5(b"", usedforsecurity=False).digest()).decode()
# S3's own default. It is always sent: for a put without a content type, SeaweedFS guesses one from
# the body, and takes a connection that closes before the first byte for the end of an empty body,
# whatever condition the put has. (A signed hash of the body does not help: it is not compared.)
DEFAULT_CONTENT_TYPE: Final = "binary/octet-stream"
META_PREFIX: Final = "x-amz-meta-"
LOCK_PREFIX: Final = "x-amz-object-lock-"
LEGAL_HOLD: Final = LOCK_PREFIX + "legal-hold"
# Headers that a self-copy with REPLACE resets unless the request repeats them (SPEC 8.2).
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
# Only these mean that an object is missing. If a missing bucket or the 404 of a misconfigured
# proxy counted too, a sweep would skip an object that an old key opens.
_NOT_FOUND_CODES: Final = frozenset({"NoSuchKey", "NoSuchVersion", "NoSuchUpload"})
# Keys that a storage cannot hold. The first code is S3's own; SeaweedFS keeps objects as files.
_UNSTORABLE: Final = {
    "KeyTooLongError": "the key, or a part of it between slashes, is too long for this storage",
    "ExistingObjectIsFile": (
        "the storage keeps objects as files, and an object has the name of a folder in this key"
    ),
    "ExistingObjectIsDirectory": (
        "the storage keeps objects as files, and this key is the folder of other objects"
    ),
}
_REFUSALS: Final[dict[str, type[StorageResponseError]]] = {
    "InvalidObjectState": ArchivedError,
    "RequestTimeTooSkewed": ClockSkewError,
}
# Request Timeout, and Too Many Requests.
_TRY_LATER: Final = frozenset({408, 429})
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_CODE: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
# S3 starts its 200 response to a long copy or completion before it knows the outcome.
_STATUS_OF_EMBEDDED_CODE: Final = {
    "AccessDenied": 403,
    "ConditionalRequestConflict": 409,
    "ExistingObjectIsDirectory": 409,
    "ExistingObjectIsFile": 409,
    "InvalidObjectState": 403,
    "KeyTooLongError": 400,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "PreconditionFailed": 412,
}

_REFERENCE: Final = re.compile(r"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(lt|gt|quot|apos|amp));")
_ENTITIES: Final = {"lt": "<", "gt": ">", "quot": '"', "apos": "'", "amp": "&"}


def find_text(name: str, body: bytes) -> str | None:
    """Return the text of the first element with this name; None if there is none.

    Raises:
        ValueError: the text is not valid.
    """
    match = _element(name).search(body)
    return None if match is None else _unescape((match[1] or b"").decode())


def find_rows(name: str, body: bytes) -> Sequence[bytes]:
    """Return the contents of each element with this name.

    Raises:
        ValueError: an element has no end.
    """
    _, *rows = body.split(f"<{name}>".encode())
    end = f"</{name}>".encode()
    if not all(end in row for row in rows):
        raise ValueError("an element without an end")
    return [row.partition(end)[0] for row in rows]


def find_columns(rows: Sequence[bytes], *names: str) -> Sequence[Sequence[str]]:
    """Return, for each name, the texts of the elements with this name, one in each row.

    Raises:
        ValueError: a row lacks an element, or its text is not valid.
    """
    # All rows at once: a page has a thousand, and some are read several times a second.
    joined = b"\n".join(rows)
    columns = [_element(name).findall(joined) for name in names]
    if any(len(column) != len(rows) for column in columns):
        raise ValueError("a row lacks an element")
    return [_change_all(b"\n".join(column).decode(), column, _unescape) for column in columns]


def decode_names(names: Sequence[str]) -> Sequence[str]:
    """Undo the percent-encoding of names.

    Raises:
        ValueError: a name is not UTF-8. With replacements it would be another name, which sorts
            elsewhere: a listing that continues after it could skip other keys.
    """
    return _change_all("\n".join(names), [name.encode() for name in names], _decode)


def _change_all(joined: str, texts: Sequence[bytes], change: Callable[[str], str]) -> Sequence[str]:
    """Change all texts at once, unless one of them then has a line break."""
    changed = change(joined).split("\n") if texts else []
    return changed if len(changed) == len(texts) else [change(text.decode()) for text in texts]


def _decode(text: str) -> str:
    text = text.replace("%2F", "/")  # in most names, nothing else is encoded
    return unquote_plus(text, errors="strict") if "%" in text or "+" in text else text


def _unescape(text: str) -> str:
    """Replace references by their characters.

    Raises:
        ValueError: a reference is to no character.
    """
    if "&" not in text:
        return text
    text = text.replace("&quot;", '"').replace("&#34;", '"')  # around each ETag
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(reference: re.Match[str]) -> str:
    decimal, hexadecimal, entity = reference.groups()
    if entity is not None:
        return _ENTITIES[entity]
    character = chr(int(hexadecimal, 16) if decimal is None else int(decimal))
    character.encode()  # a surrogate is none
    return character


@lru_cache(maxsize=64)
def _element(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"<%b(?:\s*/>|>([^<]*)</%b>)" % (name.encode(), name.encode()))


def object_headers(headers: Headers, condition: Condition | None) -> dict[str, str]:
    """Return the headers of a request that writes an object or its metadata."""
    request_headers = dict(headers.restated)
    request_headers["content-type"] = headers.content_type or DEFAULT_CONTENT_TYPE
    for name, value in headers.metadata.items():
        request_headers[META_PREFIX + name] = value
    request_headers.update(condition_headers(condition))
    return request_headers


def condition_headers(condition: Condition | None) -> Mapping[str, str]:
    """Return the condition of a write. ETags have no quotes: Ceph's gateway accepts no others."""
    match condition:
        case None:
            return {}
        case IfAbsent():
            return {"if-none-match": "*"}
        case IfMatch(etag):
            return {"if-match": etag}


def part_query(upload_id: str, number: int) -> str:
    """The query of a request for one part, percent-encoded."""
    return f"partNumber={number}&uploadId={quote(upload_id, safe='')}"


def completion_body(parts: Sequence[Part]) -> bytes:
    """The XML that lists the parts of a multipart upload."""
    rows = "".join(
        f'<Part><PartNumber>{part.number}</PartNumber><ETag>"{part.etag}"</ETag></Part>'
        for part in parts
    )
    name = "CompleteMultipartUpload"
    return f'<{name} xmlns="{_NAMESPACE}">{rows}</{name}>'.encode()


def tagging_body(tags: Mapping[str, str]) -> bytes:
    """The XML that lists an object's tags."""
    rows = "".join(
        f"<Tag><Key>{escape(name)}</Key><Value>{escape(value)}</Value></Tag>"
        for name, value in tags.items()
    )
    return f'<Tagging xmlns="{_NAMESPACE}"><TagSet>{rows}</TagSet></Tagging>'.encode()


def upload_query(upload_id: str) -> str:
    """The query of a request for a whole multipart upload, percent-encoded."""
    return f"uploadId={quote(upload_id, safe='')}"


def version_query(version_id: str | None) -> str:
    """The query of a read of one version, percent-encoded; empty for the latest."""
    return "" if version_id is None else f"versionId={quote(version_id, safe='')}"


def delete_marker_version(headers: Mapping[str, str]) -> str | None:
    """Return the version id of the delete marker that a delete created; None without one."""
    if headers.get("x-amz-delete-marker", "").lower() != "true":
        return None
    return headers.get("x-amz-version-id")


class RangeNotSatisfiableError(StorageResponseError):
    """416: the range starts past the object's end. It never leaves the storage."""


class UnconfirmedNotFoundError(StorageResponseError):
    """404 to a HEAD: it has no code, so a GET must decide. It never leaves the storage."""


def error_code(body: bytes) -> str:
    """Return the `<Code>` of an error's body, or an empty string."""
    try:
        code = find_text("Code", body) or ""
    except ValueError:
        return ""
    return code if _CODE.fullmatch(code) else ""


def error_for(
    operation: str, status: int, code: str
) -> StorageResponseError | StorageUnavailableError:
    """Return the error for an unsuccessful response; see the table above."""
    detail = f"{operation}: {code or status}"
    if status == 404 and code in _NOT_FOUND_CODES:  # noqa: PLR2004  # HTTP's own numbers
        return MissingError(detail)
    if status == 412 or (status == 409 and code == "ConditionalRequestConflict"):  # noqa: PLR2004
        return PreconditionError(detail)
    if status in {400, 409} and code in _UNSTORABLE:
        return UnstorableKeyError(_UNSTORABLE[code])
    # `rclone serve s3` sends AccessDenied with status 400.
    if status == 403 or (400 <= status < 500 and code == "AccessDenied"):  # noqa: PLR2004
        return _REFUSALS.get(code, RefusedError)(detail)
    if status == 416:  # noqa: PLR2004
        return RangeNotSatisfiableError(detail)
    is_of_request = 400 <= status < 500 and status not in _TRY_LATER  # noqa: PLR2004
    return (RequestFailedError if is_of_request else StorageUnavailableError)(detail)


def read_error_for(
    operation: str, status: int, code: str
) -> StorageResponseError | StorageUnavailableError:
    """As `error_for`, for a read: nothing exists at a key that the storage cannot hold."""
    error = error_for(operation, status, code)
    if isinstance(error, UnstorableKeyError):
        return MissingError(f"{operation}: {code}")
    return error


def check_embedded_error(operation: str, body: bytes, success: bytes) -> None:
    """Check the 200 response to a copy or a completion, which may contain an error.

    `success` is the element that only a success contains.

    Raises:
        StorageResponseError: a definite refusal.
        StorageUnavailableError: a failure, or a response that is neither.
    """
    if success in body and b"<Error>" not in body:
        return
    code = error_code(body)
    status = _STATUS_OF_EMBEDDED_CODE.get(code, 500)
    raise error_for(operation, status, code or "response without outcome")


def text_element(operation: str, body: bytes, name: str) -> str:
    """Return the text of an element in a response's body.

    Raises:
        StorageUnavailableError: the element is missing.
    """
    try:
        if text := find_text(name, body):
            return text
    except ValueError as exc:
        raise StorageUnavailableError(f"{operation}: unreadable response") from exc
    raise StorageUnavailableError(f"{operation}: response without {name}")


def parse_tags(body: bytes) -> Mapping[str, str]:
    """Return the tags in a response.

    Raises:
        StorageUnavailableError: the response does not list tags.
    """
    if b"</Tagging>" not in body:
        raise StorageUnavailableError("read tags: response without outcome")
    try:
        names, values = find_columns(find_rows("Tag", body), "Key", "Value")
    except ValueError as exc:
        raise StorageUnavailableError("read tags: unreadable response") from exc
    return dict(zip(names, values, strict=True))


def parse_versioning(body: bytes) -> Versioning:
    """Return the bucket's versioning status in a response.

    Raises:
        StorageUnavailableError: the response has no status. Taken for a bucket without
            versions, it would hide old ones.
    """
    if b"Versioning" not in body:  # in the name of its root, which differs among servers
        raise StorageUnavailableError("versioning: response without outcome")
    match find_text("Status", body):
        case None | "":
            return ""
        case "Enabled":
            return "Enabled"
        case "Suspended":
            return "Suspended"
    raise StorageUnavailableError("versioning: unknown status")


def etag_header(operation: str, headers: Mapping[str, str]) -> str:
    """Return the ETag header without quotes.

    Raises:
        StorageUnavailableError: it is missing, so the response is not from S3.
    """
    etag = headers.get("etag")
    if etag is None:
        raise StorageUnavailableError(f"{operation}: response without ETag")
    return etag.strip('"')


def parse_head(operation: str, headers: Mapping[str, str]) -> ObjectHead:
    """Return the object's head in the response to a read.

    Names in `headers` are in lower case.

    Raises:
        StorageUnavailableError: no ETag, Date, Last-Modified or length, or one that is malformed.
    """
    try:
        last_modified = _http_date(headers["last-modified"])
        date = _http_date(headers["date"])
        content_range = headers.get("content-range")
        size_bytes = parse_number(
            headers["content-length"] if content_range is None else content_range.rpartition("/")[2]
        )
        tag_count = parse_number(headers.get("x-amz-tagging-count", "0"))
    except (KeyError, ValueError) as exc:
        raise StorageUnavailableError(f"{operation}: response without times or length") from exc
    object_headers, locked = lock_state(_object_headers(headers.items()), date)
    return ObjectHead(
        size_bytes=size_bytes,
        etag=etag_header(operation, headers),
        date=date,
        last_modified=last_modified,
        headers=object_headers,
        tag_count=tag_count,
        version_id=headers.get("x-amz-version-id"),
        archived=is_archived(
            object_headers.restated,
            restore=headers.get("x-amz-restore"),
            status=headers.get("x-amz-archive-status"),
        ),
        locked=locked,
    )


def parse_date(headers: Mapping[str, str]) -> datetime | None:
    """Return the response's `Date`; None if it is missing or unreadable."""
    try:
        return _http_date(headers["date"])
    except (KeyError, ValueError):
        return None


def parse_number(text: str) -> int:
    """Parse a count, or a length in bytes.

    Raises:
        ValueError: it is malformed, negative, or longer than any that S3 sends.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError("not a number")
    return int(text)


@lru_cache(maxsize=512)  # many responses, and many objects, share a second
def _http_date(text: str) -> datetime:
    try:
        date = parsedate_to_datetime(text)
    except OverflowError as exc:
        raise ValueError("not a time") from exc
    # `-0000` is UTC too, from a server that does not know its zone (RFC 5322).
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _header_value(value: str) -> str:
    """Return a header's value. Another writer's bytes that are not UTF-8 are read as Latin-1.

    An exchange returns such bytes as lone surrogates, which it cannot send again.
    """
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="surrogateescape").decode("latin-1")
    return value


def lock_state(headers: Headers, date: datetime) -> tuple[Headers, bool]:
    """Return the headers without an expired retention, and whether a lock holds at `date`."""
    retained = _is_retained(headers.restated, date)
    if not retained and _RETENTION & headers.restated.keys():
        # S3 refuses a request that repeats a retention in the past.
        kept = {name: value for name, value in headers.restated.items() if name not in _RETENTION}
        headers = Headers(headers.metadata, headers.content_type, kept)
    return headers, retained or headers.restated.get(LEGAL_HOLD) == "ON"


def is_archived(
    restated: Mapping[str, str], *, restore: str | None = None, status: str | None = None
) -> bool:
    """Check if the object is archived, so that its bytes cannot be read now.

    `restated` has the storage class. `restore` is `x-amz-restore`: a temporary copy, pending or
    ready. `status` is `x-amz-archive-status`: an archive tier within another storage class.
    """
    if status is None and restated.get("x-amz-storage-class") not in _ARCHIVES:
        return False
    return restore is None or 'ongoing-request="true"' in restore


def _object_headers(items: Iterable[tuple[str, str]]) -> Headers:
    """Return metadata, content type and the headers to restate, in one pass."""
    metadata: dict[str, str] = {}
    restated: dict[str, str] = {}
    content_type = None
    for name, value in items:
        if name.startswith(META_PREFIX):
            metadata[name[len(META_PREFIX) :]] = _header_value(value)
        elif name in RESTATED:
            restated[name] = _header_value(value)
        elif name == "content-type":
            content_type = _header_value(value)
    return Headers(metadata, content_type, restated)


def _is_retained(restated: Mapping[str, str], date: datetime) -> bool:
    until = restated.get("x-amz-object-lock-retain-until-date")
    if until is None:
        return False
    try:
        return datetime.fromisoformat(until) > date
    except (ValueError, TypeError):  # unreadable, or without a zone: assume a lock
        return True

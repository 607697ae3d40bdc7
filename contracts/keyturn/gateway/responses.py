"""The meaning of a response's status, headers and problem document (SPEC 9, 12). Pure.

A response is accepted only if it fits the request: it states a length, it is exactly the requested
range, its code is one of SPEC 12. Anything else may be a proxy's. It must never put a part of a
body, or a header that can contain a secret, into an error.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from keyturn.errors import (
    CodedError,
    GatewayError,
    StorageUnavailableError,
    UnexpectedResponseError,
    all_errors,
)
from keyturn.metadata import decode_caller_metadata

META_PREFIX: Final = "x-keyturn-meta-"
PROBLEM_TYPE: Final = "application/problem+json"
_STORAGE_META_PREFIX: Final = "x-amz-meta-"
_OK: Final = 200
_PARTIAL: Final = 206
_SERVER_ERROR: Final = 500
_NUMBER: Final = r"([0-9]{1,19})"
_CONTENT_LENGTH: Final = re.compile(_NUMBER)
_CONTENT_RANGE: Final = re.compile(rf"bytes {_NUMBER}-{_NUMBER}/{_NUMBER}")
_DETAIL_MAX_CHARACTERS: Final = 1000
_BY_STATUS: Final = {
    401: "unauthorized",
    404: "not_found",
    416: "range_not_satisfiable",
    429: "too_many_requests",
}
"""The statuses with only one possible code: to a reader no project is unknown (SPEC 9.1)."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The requested part of an object.

    Args:
        start: Its first byte; a negative one counts from the object's end.
        length: The maximum of bytes, or None for all up to the end.

    Raises:
        ValueError: HTTP cannot express this range.
    """

    start: int
    length: int | None

    def __post_init__(self) -> None:
        if self.length is not None and self.length < 1:
            raise ValueError("a range has 1 byte or more")
        if self.start < 0 and self.length is not None:
            raise ValueError("a range that counts from the end must reach the end")

    @property
    def is_whole(self) -> bool:
        """True for the whole object, which is requested without a range."""
        return self.start == 0 and self.length is None

    @property
    def header(self) -> str:
        """The value of `Range`."""
        if self.start < 0:
            return f"bytes={self.start}"
        last = "" if self.length is None else self.start + self.length - 1
        return f"bytes={self.start}-{last}"

    def bounds(self, size_bytes: int) -> tuple[int, int]:
        """Return the range's first and last byte in an object of this size."""
        if self.start < 0:
            return max(0, size_bytes + self.start), size_bytes - 1
        if self.length is None:
            return self.start, size_bytes - 1
        return self.start, min(self.start + self.length, size_bytes) - 1


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """The gateway's statement about an object. Only an encrypted object's size is authenticated.

    Attributes:
        size_bytes: Length of the whole object's plaintext.
        content_type: As stored.
        metadata: The caller's own, decoded.
        etag: As sent, with its quotes; no rotation changes it.
        last_modified: The time at which its content was stored; no rotation changes it.
    """

    size_bytes: int
    content_type: str | None
    metadata: Mapping[str, str]
    etag: str | None
    last_modified: datetime | None


class ObjectBody(ABC):
    """An object, or a range of one, whose plaintext is not read yet.

    Attributes:
        info: Its size and metadata.
        length: Bytes of plaintext to come, of the whole object or the range.
    """

    def __init__(self, info: ObjectInfo, length: int) -> None:
        self.info = info
        self.length = length

    @property
    def size_bytes(self) -> int:
        """Length of the whole object's plaintext."""
        return self.info.size_bytes

    @property
    def content_type(self) -> str | None:
        """The content type as stored; not authenticated."""
        return self.info.content_type

    @property
    def metadata(self) -> Mapping[str, str]:
        """The caller's own metadata, decoded; not authenticated."""
        return self.info.metadata

    @property
    def etag(self) -> str | None:
        """The ETag as the gateway sends it, with its quotes; no rotation changes it."""
        return self.info.etag

    @property
    def last_modified(self) -> datetime | None:
        """The time at which the content was stored; no rotation changes it. Not authenticated."""
        return self.info.last_modified

    @abstractmethod
    def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the plaintext in pieces of any size, once; a second call continues."""

    async def read(self) -> bytes:
        """Return the rest of the plaintext, all of it in memory.

        Raises:
            CodedError, GatewayError: as `chunks`; nothing is returned.
        """
        return b"".join([piece async for piece in self.chunks()])


def content_lengths(
    status: int, headers: Mapping[str, str], span: ByteRange, *, by_storage: bool
) -> tuple[int, int]:
    """Return the sizes of the whole object and of the response's part of it, in bytes.

    Raises:
        UnexpectedResponseError: not the response to this request, or it states no length.
    """
    if headers.get("Content-Encoding", "identity") != "identity" and not by_storage:
        # No longer the object's bytes, nor their length. The storage returns the encoding that a
        # plaintext object was stored with, and encodes nothing.
        raise UnexpectedResponseError("the response was encoded in transit", status=status)
    length = _CONTENT_LENGTH.fullmatch(headers.get("Content-Length", ""))
    if length is None:
        raise UnexpectedResponseError("the response states no length", status=status)
    length_bytes = int(length[1])
    if span.is_whole:
        if status != _OK:
            raise UnexpectedResponseError(
                f"the whole object was requested, and the status is {status}", status=status
            )
        return length_bytes, length_bytes
    if status != _PARTIAL:
        raise UnexpectedResponseError("the range was ignored", status=status)
    stated = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
    if stated is None:
        raise UnexpectedResponseError("the response states no range", status=status)
    first, last, size_bytes = (int(number) for number in stated.groups())
    if (first, last) != span.bounds(size_bytes) or length_bytes != last - first + 1:
        raise UnexpectedResponseError("the response holds another range", status=status)
    return size_bytes, length_bytes


def object_info(size_bytes: int, headers: Mapping[str, str], *, by_storage: bool) -> ObjectInfo:
    """Return the statements of an object response's headers; for plaintext, the storage's own."""
    prefix = _STORAGE_META_PREFIX if by_storage else META_PREFIX
    lowered = {name.lower(): value for name, value in headers.items()}
    wire = {n.removeprefix(prefix): v for n, v in lowered.items() if n.startswith(prefix)}
    return ObjectInfo(
        size_bytes=size_bytes,
        content_type=lowered.get("content-type"),
        metadata=decode_caller_metadata(wire),
        etag=lowered.get("etag"),
        last_modified=_http_date(lowered.get("last-modified", "")),
    )


def _http_date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def redirect_target(headers: Mapping[str, str]) -> str:
    """Return the address of a plaintext object: a whole http or https URL (SPEC 9.3).

    Raises:
        UnexpectedResponseError: anything else.
    """
    target = headers.get("Location", "")
    if not is_web_address(target):
        raise UnexpectedResponseError(
            "redirected to an address that is not http or https", status=307
        )
    return target


def is_web_address(url: str) -> bool:
    """Return whether this is a whole http or https URL, encoded, without a user."""
    try:
        parts = urlsplit(url)
        has_host = parts.hostname is not None and "@" not in parts.netloc
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url
    return plain and has_host and parts.scheme in ("http", "https")


def response_error(
    status: int, headers: Mapping[str, str], body: bytes | None, *, secrets: tuple[str, ...]
) -> CodedError | GatewayError:
    """Return the error that the gateway's response means.

    Args:
        status: Its HTTP status; not one of success.
        headers: Its headers.
        body: Its body, or as much as was read; None for HEAD, whose responses have none.
        secrets: Secrets that the error must not repeat, should the response do so.
    """
    content_type = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    code: object
    detail: object = ""
    if body is None and content_type in ("", PROBLEM_TYPE):
        code = _BY_STATUS.get(status)
    elif body is not None and content_type == PROBLEM_TYPE:
        problem = json_object(body)
        code, detail = problem.get("code"), problem.get("detail")
    else:
        return _foreign(status)
    error = all_errors().get(code) if isinstance(code, str) else None
    return _foreign(status) if error is None else error(_redacted(detail, secrets))


def storage_response_error(status: int) -> CodedError | GatewayError:
    """Return the error that the storage's response to a presigned request means."""
    if status >= _SERVER_ERROR:
        return StorageUnavailableError(f"the storage responded with {status}")
    code = _BY_STATUS.get(status)
    # Not 401: that would be the presigned address's fault, not the API key's.
    if code in ("not_found", "range_not_satisfiable"):
        return all_errors()[code]()
    return UnexpectedResponseError(f"the storage responded with {status}", status=status)


def _foreign(status: int) -> UnexpectedResponseError:
    return UnexpectedResponseError(f"status {status} without a code of Keyturn", status=status)


def _redacted(detail: object, secrets: tuple[str, ...]) -> str:
    if not isinstance(detail, str):
        return ""
    for secret in secrets:
        detail = detail.replace(secret, "…")
    return detail[:_DETAIL_MAX_CHARACTERS]


def json_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object; an empty one if the body is something else."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}

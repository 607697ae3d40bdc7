"""What an answer says of an object in its headers (SPEC 9.2). Pure.

Content type, disposition and the caller's metadata are as somebody stored them: not
authenticated, and sent only in a form that HTTP can carry.
"""

from collections.abc import Mapping
from typing import Final

from keyturn.errors import MalformedRequestError
from keyturn.metadata import OWN_PREFIX, encode_caller_metadata
from keyturn_workers.gateway.conditions import format_http_date
from keyturn_workers.gateway.object_reader import ObjectReader, Plaintext, content_modified_at
from keyturn_workers.gateway.ranges import Span

META_PREFIX: Final = "x-keyturn-meta-"
_DEFAULT_TYPE: Final = "application/octet-stream"
# Never a stored `cache-control`: a shared cache would keep what one key opens for all who ask.
_CONTENT_HEADERS: Final = ("content-disposition", "content-language")
# Of plaintext, which nothing authenticates, also how it is encoded.
_PLAIN_HEADERS: Final = (*_CONTENT_HEADERS, "content-encoding")


def validator_headers(reader: ObjectReader) -> dict[str, str]:
    """What every answer about an object says, be it only that it did not change."""
    return {
        "etag": reader.etag,
        "last-modified": format_http_date(content_modified_at(reader.head)),
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        # A bucket writer chooses content types: a page that it puts there may run nothing and
        # sees nothing of the gateway's own origin.
        "content-security-policy": "sandbox",
    }


def object_headers(reader: ObjectReader, span: Span | None) -> dict[str, str]:
    """The headers of an answer with the whole object, or with a span of it."""
    said = validator_headers(reader)
    restated = reader.head.headers.restated
    content_type = reader.head.headers.content_type or ""
    said["content-type"] = content_type if _is_plain(content_type) else _DEFAULT_TYPE
    for name in _PLAIN_HEADERS if isinstance(reader, Plaintext) else _CONTENT_HEADERS:
        if name in restated and (value := _sendable(restated[name])) is not None:
            said[name] = value
    said |= _caller(reader.head.metadata)
    said["content-length"] = str(reader.size_bytes if span is None else span.length)
    if span is not None:
        said["content-range"] = f"bytes {span.first}-{span.end - 1}/{reader.size_bytes}"
    return said


def _caller(metadata: Mapping[str, str]) -> dict[str, str]:
    told = {}
    for name, value in metadata.items():
        if name.startswith(OWN_PREFIX) or not name.replace("-", "").isalnum() or not name.isascii():
            continue
        sendable = _sendable(value)
        if sendable is not None:
            told[META_PREFIX + name] = sendable
    return told


def _sendable(value: str) -> str | None:
    """A value as HTTP can carry it on one line, or None where it has no such form."""
    if not value or _is_plain(value):
        return value
    try:
        return encode_caller_metadata({"v": value})["v"]  # as the storage would have it: RFC 2047
    except MalformedRequestError:
        return None


def _is_plain(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()

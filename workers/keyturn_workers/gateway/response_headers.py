"""The response headers that describe an object (SPEC 9.2). Pure.

Content type, disposition and the caller's metadata are as they were stored: not authenticated,
and sent only in a form that HTTP can carry. A link, or the caller, may ask for another disposition
than the stored one (`Delivery`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from keyturn.errors import MalformedRequestError
from keyturn.metadata import OWN_PREFIX, encode_caller_metadata
from keyturn_workers.gateway.conditions import format_http_date
from keyturn_workers.gateway.content_disposition import content_disposition, filename_of
from keyturn_workers.gateway.object_reader import ObjectReader, content_modified_at
from keyturn_workers.gateway.plaintext_reader import PlaintextReader
from keyturn_workers.gateway.ranges import Span

META_PREFIX: Final = "x-keyturn-meta-"
_DEFAULT_TYPE: Final = "application/octet-stream"
# Never the stored `cache-control`: a shared cache would serve one key's response to everyone.
_CONTENT_HEADERS: Final = ("content-disposition", "content-language")
# Plaintext may be stored with an encoding.
_PLAINTEXT_HEADERS: Final = (*_CONTENT_HEADERS, "content-encoding")


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the request, and not the stored object, decides about a response.

    Attributes:
        disposition: In place of the stored `Content-Disposition`; None for the stored one.
        headers: Further headers of every response about the object, a 304 included.
    """

    disposition: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def redirectable(self) -> bool:
        """Whether a client may be sent to the storage, which sends its own headers."""
        return self.disposition is None and not self.headers


AS_STORED: Final = Delivery()


def delivery_as_download(filename: str) -> Delivery:
    """Return the delivery of a download that the caller gave a name."""
    return Delivery(content_disposition("attachment", filename))


def delivery_by_link(object_key: str, *, inline: bool) -> Delivery:
    """Return the delivery to the holder of a link.

    A link is a secret in a URL. So no cache keeps what it opened, and a page that was opened by
    one does not send it to others.
    """
    disposition = content_disposition("inline" if inline else "attachment", filename_of(object_key))
    headers = {"cache-control": "private, no-store", "referrer-policy": "no-referrer"}
    return Delivery(disposition, headers)


def validator_headers(reader: ObjectReader, delivery: Delivery = AS_STORED) -> dict[str, str]:
    """Return the headers of every response about an object, a 304 included."""
    return {
        "etag": reader.etag,
        "last-modified": format_http_date(content_modified_at(reader.head)),
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        # A bucket writer chooses content types. A page planted in the bucket must not run
        # scripts, nor see anything of the gateway's origin.
        "content-security-policy": "sandbox",
        **delivery.headers,
    }


def object_headers(
    reader: ObjectReader, span: Span | None, delivery: Delivery = AS_STORED
) -> dict[str, str]:
    """Return the headers of a response with the whole object, or with a range of it."""
    headers = validator_headers(reader, delivery)
    stored = reader.head.headers
    content_type = stored.content_type or ""
    headers["content-type"] = content_type if _is_printable(content_type) else _DEFAULT_TYPE
    names = _PLAINTEXT_HEADERS if isinstance(reader, PlaintextReader) else _CONTENT_HEADERS
    for name in names:
        value = _header_value(stored.restated[name]) if name in stored.restated else None
        if value is not None:
            headers[name] = value
    if delivery.disposition is not None:
        headers["content-disposition"] = delivery.disposition
    headers |= _metadata_headers(reader.head.metadata)
    headers["content-length"] = str(reader.size_bytes if span is None else span.length)
    if span is not None:
        headers["content-range"] = f"bytes {span.first}-{span.end - 1}/{reader.size_bytes}"
    return headers


def _metadata_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    headers = {}
    for name, value in metadata.items():
        if name.startswith(OWN_PREFIX) or not name.replace("-", "").isalnum() or not name.isascii():
            continue
        header_value = _header_value(value)
        if header_value is not None:
            headers[META_PREFIX + name] = header_value
    return headers


def _header_value(value: str) -> str | None:
    """Return a value in a form that HTTP can carry, or None if it has none."""
    if not value or _is_printable(value):
        return value
    try:
        return encode_caller_metadata({"v": value})["v"]  # RFC 2047, as on the way to the storage
    except MalformedRequestError:
        return None


def _is_printable(value: str) -> bool:
    return bool(value) and value.isascii() and value.isprintable()

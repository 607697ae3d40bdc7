"""Parse listings into what the port promises (SPEC 8.5, 10).

Any writer of the bucket can put any character into a key. Servers encode the keys in a listing,
but not what they repeat of the request, nor the marker of the next page (on Ceph's gateway that
is a key). A character that XML does not allow breaks the whole response there. So such
characters are replaced, and the next page is requested by the last key that was listed.
"""

import binascii
import html
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, unquote_plus

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.port import PAGE_KEYS, ListingPage, ObjectSummary, ObjectVersion

if TYPE_CHECKING:
    from botocore.model import OperationModel
    from types_aiobotocore_s3.type_defs import ListObjectVersionsOutputTypeDef

# What an XML 1.0 document must not contain, literally or as a reference.
_INVALID_XML: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]"
    rb"|&#(?:x0*(?:[0-8bce-f]|1[0-9a-f]|fff[ef])|0*(?:[0-8]|1[124-9]|2[0-9]|3[01]|6553[45]));",
    re.IGNORECASE,
)
# Runs before botocore's own check of the response, which is registered at `before-parse.s3.*`.
BEFORE_PARSING: Final = "before-parse.*.*"
_ENCODED: Final = b"<EncodingType>url</EncodingType>"
# `&amp;` is not among these: it comes last.
_ENTITIES: Final = {
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": '"',
    "&#34;": '"',
    "&apos;": "'",
    "&#39;": "'",
}

_Row = TypeVar("_Row", ObjectSummary, ObjectVersion)


def sanitize_listing(
    operation_model: "OperationModel", response_dict: dict[str, Any], **_event: object
) -> None:
    """Make the response to a listing valid XML, before botocore parses it.

    If keys are encoded, this can only change what the server repeats of the request, and its
    markers; neither is used. If they are not, the response is left as it is, and fails. Open
    uploads are the exception, since some servers never encode their keys: a key with such a
    character is then listed wrongly, and no upload is found under it.
    """
    body: bytes = response_dict["body"]
    match operation_model.name:
        case "ListMultipartUploads":
            pass
        case "ListObjectsV2" | "ListObjectVersions" if _ENCODED in body:
            pass
        case _:
            return
    response_dict["body"] = _INVALID_XML.sub(b"\t", body)


def page_query(prefix: str, after: str) -> str:
    """The query of one request for a listing, percent-encoded."""
    query = (
        f"encoding-type=url&list-type=2&max-keys={PAGE_KEYS}&prefix={quote(prefix, safe='-_.~')}"
    )
    return f"{query}&start-after={quote(after, safe='-_.~')}" if after else query


def parse_page(body: bytes, date: datetime | None) -> ListingPage:
    """Parse the response to `page_query`.

    Raises:
        StorageUnavailableError: the response is not a whole listing.
    """
    if not body.rstrip().endswith(b"</ListBucketResult>"):
        raise StorageUnavailableError("list: response without outcome")
    keys, etags = [], []
    try:
        is_last = not is_truncated(body)
        # A thousand rows several times a second: this must be fast.
        _, *rows = body.split(b"<Key>")
        for row in rows:
            key_end = row.index(b"</Key>")
            etag_at = row.index(b"<ETag>", key_end) + len(b"<ETag>")
            if row.find(b"</Contents>", key_end, etag_at) >= 0:
                raise ValueError("an ETag of the next row")  # noqa: TRY301  # as `index` does
            keys.append(row[:key_end])
            etags.append(row[etag_at : row.index(b"</ETag>", etag_at)])
        object_keys = decode_keys(b"\n".join(keys).decode(), encoded=is_encoded(body)).split("\n")
        page_etags = _unescape(b"\n".join(etags).decode().replace("&quot;", "")).split("\n")
        etag_of_key = dict(zip(object_keys, (e.strip('"') for e in page_etags), strict=True))
    except ValueError as exc:
        raise StorageUnavailableError("list: unreadable response") from exc
    return ListingPage(etag_of_key if rows else {}, is_last, date)


def is_encoded(body: bytes) -> bool:
    """Whether the keys in a listing are percent-encoded."""
    return _ENCODED in body


def decode_keys(keys: str, *, encoded: bool) -> str:
    """Decode keys; in most of them only the slashes are encoded.

    Ceph's gateway does not percent-encode an apostrophe, but escapes it for XML.
    """
    keys = _unescape(keys)
    if not encoded:
        return keys
    keys = keys.replace("%2F", "/")
    return _unquote(keys) if "%" in keys or "+" in keys else keys


def _unquote(text: str) -> str:
    """As `unquote_plus`, which takes half a second for a thousand long keys that need it.

    A worker or a gateway would do nothing else in that time. Quoted-printable, which the standard
    library decodes fast, is the same but for the character, where every `%` has two digits.
    """
    encoded = text.replace("+", " ").encode().replace(b"=", b"%3D")
    decoded = binascii.a2b_qp(encoded.replace(b"%", b"="))
    has_digits = len(encoded) - len(decoded) == 2 * encoded.count(b"%")
    if not has_digits or b"%\n" in encoded or b"%\r" in encoded:
        return unquote_plus(text)
    return decoded.decode(errors="replace")


def _unescape(text: str) -> str:
    """As `html.unescape`, which is as slow, if there are only XML's own entities."""
    if "&" not in text:
        return text
    plain = text
    for entity, character in _ENTITIES.items():
        plain = plain.replace(entity, character)
    if plain.count("&") == plain.count("&amp;"):
        return plain.replace("&amp;", "&")
    return html.unescape(text)


def is_truncated(body: bytes) -> bool:
    """Whether more pages follow.

    Raises:
        ValueError: the response does not say so in the one form that S3 defines. Taken for the
            last page, it would make objects look absent.
    """
    stated = element(b"IsTruncated", body)
    if stated not in ("true", "false"):
        raise ValueError("neither true nor false")
    return stated == "true"


def element(name: bytes, within: bytes) -> str:
    """The first element's text, as it is in the XML.

    Raises:
        ValueError: there is none, or it is not UTF-8.
    """
    _, opened, rest = within.partition(b"<%b>" % name)
    text, closed, _ = rest.partition(b"</%b>" % name)
    if not opened or not closed:
        raise ValueError("an element is missing")
    return text.decode()


async def rows_after(
    rows: AsyncGenerator[_Row, None], after: str, limit: int | None
) -> AsyncIterator[_Row]:
    """Yield the rows whose keys sort after `after`, at most `limit` of them.

    Some servers start a listing of versions in the middle of the key that was to be skipped.
    """
    if limit is not None and limit <= 0:
        return
    count = 0
    async with aclosing(rows):
        async for row in rows:
            if row.key.encode() <= after.encode():
                continue
            yield row
            count += 1
            if count == limit:
                return


def parse_versions(page: "ListObjectVersionsOutputTypeDef") -> Sequence[ObjectVersion]:
    """The rows of a page in the order of the listing; botocore splits them into two lists."""
    rows = [
        ObjectVersion(
            key=row["Key"],
            version_id=row["VersionId"],
            is_latest=row["IsLatest"],
            is_delete_marker=False,
            size_bytes=row["Size"],
            etag=row["ETag"].strip('"'),
            last_modified=row["LastModified"],
        )
        for row in page.get("Versions", ())
    ] + [
        ObjectVersion(
            key=row["Key"],
            version_id=row["VersionId"],
            is_latest=row["IsLatest"],
            is_delete_marker=True,
            size_bytes=0,
            etag="",
            last_modified=row["LastModified"],
        )
        for row in page.get("DeleteMarkers", ())
    ]
    return sorted(rows, key=order_of_version)


def order_of_version(version: ObjectVersion) -> tuple[bytes, bool, float]:
    """A sort key: by object key, with the latest version first, then the newest."""
    return version.key.encode(), not version.is_latest, -version.last_modified.timestamp()

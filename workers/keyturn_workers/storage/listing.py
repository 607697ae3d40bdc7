"""Listings as the port promises them, from what servers give (SPEC 8.5, 10).

A foreign writer can put any character into a key. Servers encode the keys that they
list, but not what they repeat of the request, nor the marker of the next page (which on
Ceph's gateway is a key): a character that XML has not breaks the whole answer there. So
these are made harmless, and a next page is asked for by the last key that was listed.
"""

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

# What no XML 1.0 document may hold, as it is or as a reference.
_INVALID_XML: Final = re.compile(
    rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|\xef\xbf[\xbe\xbf]"
    rb"|&#(?:x0*(?:[0-8bce-f]|1[0-9a-f]|fff[ef])|0*(?:[0-8]|1[124-9]|2[0-9]|3[01]|6553[45]));",
    re.IGNORECASE,
)
# Runs before botocore's own look into the answer, which hangs at `before-parse.s3.*`.
BEFORE_PARSING: Final = "before-parse.*.*"
_ENCODED: Final = b"<EncodingType>url</EncodingType>"

_Row = TypeVar("_Row", ObjectSummary, ObjectVersion)


def sanitize_listing(
    operation_model: "OperationModel", response_dict: dict[str, Any], **_event: object
) -> None:
    """Before botocore parses the answer to a listing: make it XML.

    Where keys are encoded, only what the server repeats of the request and its markers
    can then be wrong, and neither is used. Elsewhere the answer stays, and fails; but for
    open uploads, whose keys not every server encodes: one that cannot be told is told
    wrongly then, and found by nobody.
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
    said = f"encoding-type=url&list-type=2&max-keys={PAGE_KEYS}&prefix={quote(prefix, safe='-_.~')}"
    return f"{said}&start-after={quote(after, safe='-_.~')}" if after else said


def parse_page(body: bytes, date: datetime | None) -> ListingPage:
    """What one answer to `page_query` shows.

    Raises:
        StorageUnavailableError: the answer is no whole listing.
    """
    if not body.rstrip().endswith(b"</ListBucketResult>"):
        raise StorageUnavailableError("list: answer without outcome")
    keys, etags = [], []
    try:
        is_last = _element(b"IsTruncated", body) != "true"
        # A thousand rows several times a second: what follows is meant to be quick.
        _, *rows = body.split(b"<Key>")
        for row in rows:
            key_end = row.index(b"</Key>")
            etag_at = row.index(b"<ETag>", key_end) + len(b"<ETag>")
            if row.find(b"</Contents>", key_end, etag_at) >= 0:
                raise ValueError("an ETag of the next row")  # noqa: TRY301  # as `index` does
            keys.append(row[:key_end])
            etags.append(row[etag_at : row.index(b"</ETag>", etag_at)])
        names = _decoded(b"\n".join(keys).decode(), encoded=_ENCODED in body).split("\n")
        bodies = _unescaped(b"\n".join(etags).decode().replace("&quot;", "")).split("\n")
        named = dict(zip(names, (etag.strip('"') for etag in bodies), strict=True))
    except ValueError as exc:
        raise StorageUnavailableError("list: answer that cannot be read") from exc
    return ListingPage(named if rows else {}, is_last, date)


def _decoded(keys: str, *, encoded: bool) -> str:
    """Keys as they are; most encoded ones have nothing but slashes that differ."""
    if not encoded:
        return _unescaped(keys)
    keys = keys.replace("%2F", "/")
    return unquote_plus(keys) if "%" in keys or "+" in keys else keys


def _unescaped(text: str) -> str:
    return html.unescape(text) if "&" in text else text


def _element(name: bytes, within: bytes) -> str:
    _, opened, rest = within.partition(b"<%b>" % name)
    text, closed, _ = rest.partition(b"</%b>" % name)
    if not opened or not closed:
        raise ValueError("an element is missing")
    return text.decode()


async def rows_after(
    rows: AsyncGenerator[_Row, None], after: str, limit: int | None
) -> AsyncIterator[_Row]:
    """The rows whose keys come behind `after`, as many as asked for.

    Some servers begin a listing of versions in the middle of the key that they were
    told to begin behind.
    """
    if limit is not None and limit <= 0:
        return
    given = 0
    async with aclosing(rows):
        async for row in rows:
            if row.key.encode() <= after.encode():
                continue
            yield row
            given += 1
            if given == limit:
                return


def parse_versions(page: "ListObjectVersionsOutputTypeDef") -> Sequence[ObjectVersion]:
    """A page's rows in the listing's order, which botocore splits into two lists."""
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
    return sorted(
        rows, key=lambda v: (v.key.encode(), not v.is_latest, -v.last_modified.timestamp())
    )

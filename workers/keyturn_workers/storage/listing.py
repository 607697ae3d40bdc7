"""Listings: the queries, and the meaning of responses (SPEC 8.5, 9.3, 10). Pure.

A server lists in one of two orders, `byte_order` or `path_order`, and continues in the same one
after the key that it is given. Its own markers are used only if a page has no entry: on Ceph's
gateway a marker is a key, and not encoded.

An entry of a listing is an object's key, or with a delimiter a common prefix: the part of a key up
to and including the first delimiter after the prefix. The common prefix is the entry of all keys
below it. So when a listing resumes after a common prefix, or after a key below one, that whole
group is skipped. Servers disagree about this: some would list the group again, some would skip the
key behind it. A request therefore starts after the last key that the group could hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, Generic, TypeVar
from urllib.parse import quote

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import Order, path_order
from keyturn_workers.core.storage_values import (
    PAGE_KEYS,
    ListingPage,
    MultipartUpload,
    ObjectSummary,
    ObjectVersion,
)
from keyturn_workers.storage.s3_wire import (
    decode_names,
    find_columns,
    find_rows,
    find_text,
    parse_number,
)

_S3_KEY_MAX_BYTES: Final = 1024
# The last characters of one, two, three and four bytes of UTF-8, in byte order.
_LAST_CHARACTERS: Final = ("", "\x7f", "\u07ff", "\uffff", "\U0010ffff")

_Row = TypeVar("_Row", ObjectVersion, MultipartUpload)


@dataclass(frozen=True, slots=True)
class ServerPage:
    """One page of entries as the server lists it, with its marker of the next page, if any."""

    objects: Sequence[ObjectSummary]
    prefixes: Sequence[str]
    token: str
    is_last: bool

    def last_entry(self, order: Order) -> str:
        """Return the last entry in the server's order; empty if there is none."""
        ends = [*(row.key for row in self.objects[-1:]), *self.prefixes[-1:]]
        return max(ends, default="", key=order)


@dataclass(frozen=True, slots=True)
class MarkedPage(Generic[_Row]):
    """One page of versions or of open multipart uploads.

    `following` is the key, and its version or upload, after which the next page starts, or None.
    """

    rows: Sequence[_Row]
    following: tuple[str, str] | None


def entry_of(key: str, prefix: str, delimiter: str) -> str:
    """Return the entry of a key, or of a common prefix, that begins with the prefix."""
    end = key.find(delimiter, len(prefix)) if delimiter else -1
    return key if end < 0 else key[: end + len(delimiter)]


def start_after(prefix: str, delimiter: str, entry: str, order: Order) -> str:
    """Return the key after which a server must start to list the entries after `entry`.

    The key is empty if the server must start at the prefix. The page may begin with the entry
    itself. `delimiter` and `entry` may be empty.
    """
    if order is path_order and entry and not delimiter and not entry.endswith("/"):
        # A server with folders leaves out the folder that has the name to start after.
        entry += "/"
    if entry in ("", prefix):
        return ""
    if delimiter and entry.endswith(delimiter):
        return last_key_below(entry)
    # Some servers refuse impossible keys.
    return entry.encode()[:_S3_KEY_MAX_BYTES].decode(errors="ignore")


def last_key_below(folder: str) -> str:
    """Return the last key of S3's greatest length that begins with `folder`."""
    full, rest = divmod(max(0, _S3_KEY_MAX_BYTES - len(folder.encode())), 4)
    return folder + full * _LAST_CHARACTERS[4] + _LAST_CHARACTERS[rest]


def objects_query(
    prefix: str, limit: int, *, delimiter: str = "", start: str = "", token: str = ""
) -> str:
    """Return the query of one request for objects, percent-encoded.

    `token` continues a page on which the server listed nothing new, in place of `start`.
    """
    where = {"continuation-token": token} if token else {"start-after": start}
    return _query({"list-type": "2", "delimiter": delimiter, **_page(prefix, limit), **where})


def versions_query(prefix: str, limit: int, key: str, version: str) -> str:
    """Return the query of one request for versions, percent-encoded.

    The listing starts after this version of the key, or after all its versions.
    """
    markers = {"key-marker": key, "version-id-marker": version}
    return _query({**_page(prefix, limit), **markers}) + "&versions="


def uploads_query(prefix: str, key: str, upload_id: str) -> str:
    """Return the query of one request for open multipart uploads, percent-encoded."""
    # Without `encoding-type`: some servers never encode these keys.
    markers = {"key-marker": key, "upload-id-marker": upload_id}
    return _query({"max-uploads": str(PAGE_KEYS), "prefix": prefix, **markers}) + "&uploads="


def _page(prefix: str, limit: int) -> Mapping[str, str]:
    return {"encoding-type": "url", "max-keys": str(limit), "prefix": prefix}


def _query(fields: Mapping[str, str]) -> str:
    return "&".join(f"{name}={quote(text, safe='')}" for name, text in fields.items() if text)


def parse_etags(body: bytes, date: datetime | None) -> ListingPage:
    """Parse the response to `objects_query` without a delimiter: only keys and ETags.

    Raises:
        StorageUnavailableError: the response is not a whole listing.
    """
    with _reading(body, "ListBucketResult"):
        keys, etags = find_columns(find_rows("Contents", body), "Key", "ETag")
        bodies = (etag.strip('"') for etag in etags)
        page = dict(zip(_decoded(keys, body), bodies, strict=True))
        return ListingPage(page, not _is_truncated(body), date)


def parse_entries(body: bytes, prefix: str) -> ServerPage:
    """Parse the response to `objects_query`.

    Raises:
        StorageUnavailableError: the response is not a whole listing of this prefix.
    """
    with _reading(body, "ListBucketResult"):
        rows = find_rows("Contents", body)
        keys, sizes, etags, times = find_columns(rows, "Key", "Size", "ETag", "LastModified")
        objects = [
            ObjectSummary(key, parse_number(size), etag.strip('"'), _parse_time(time))
            for key, size, etag, time in zip(_decoded(keys, body), sizes, etags, times, strict=True)
        ]
        (folders,) = find_columns(find_rows("CommonPrefixes", body), "Prefix")
        prefixes = _decoded(folders, body)
        _check_prefix([*(row.key for row in objects), *prefixes], prefix)
        token = find_text("NextContinuationToken", body) or ""
        return ServerPage(objects, prefixes, token, is_last=not _is_truncated(body))


def parse_versions(body: bytes, prefix: str) -> MarkedPage[ObjectVersion]:
    """Parse the response to `versions_query`.

    Raises:
        StorageUnavailableError: the response is not a whole listing of this prefix in byte order.
    """
    with _reading(body, "ListVersionsResult"):
        rows = [*_versions("Version", body, prefix), *_versions("DeleteMarker", body, prefix)]
        # For one key the latest comes first, then the newest.
        rows.sort(key=lambda row: (row.key, not row.is_latest, -row.last_modified.timestamp()))
        if not _is_truncated(body):
            return MarkedPage(rows, None)
        key = rows[-1].key if rows else _marker("NextKeyMarker", body)
        return MarkedPage(rows, (key, find_text("NextVersionIdMarker", body) or ""))


def _versions(kind: str, body: bytes, prefix: str) -> Sequence[ObjectVersion]:
    rows = find_rows(kind, body)
    columns = find_columns(rows, "Key", "VersionId", "IsLatest", "LastModified")
    keys, ids, latest, times = columns
    keys = _decoded(keys, body)
    _check_prefix(keys, prefix)
    if any(key < before for before, key in pairwise(keys)):
        # A server with another order leaves out keys on its later pages.
        raise ValueError("versions that are not in byte order")
    is_marker = kind == "DeleteMarker"
    sizes, etags = [[""] * len(rows)] * 2 if is_marker else find_columns(rows, "Size", "ETag")
    return [
        ObjectVersion(
            key=key,
            version_id=version_id,
            is_latest=is_latest == "true",
            is_delete_marker=is_marker,
            size_bytes=parse_number(size or "0"),
            etag=etag.strip('"'),
            last_modified=_parse_time(time),
        )
        for key, version_id, is_latest, time, size, etag in zip(
            keys, ids, latest, times, sizes, etags, strict=True
        )
    ]


def parse_uploads(body: bytes) -> MarkedPage[MultipartUpload]:
    """Parse the response to `uploads_query`.

    Raises:
        StorageUnavailableError: the response is not a whole listing.
    """
    with _reading(body, "ListMultipartUploadsResult"):
        columns = find_columns(find_rows("Upload", body), "Key", "UploadId", "Initiated")
        keys, ids, times = columns
        uploads = [
            MultipartUpload(key, upload_id, _parse_time(time))
            for key, upload_id, time in zip(_decoded(keys, body), ids, times, strict=True)
        ]
        if not _is_truncated(body):
            return MarkedPage(uploads, None)
        upload_id = find_text("NextUploadIdMarker", body) or ""
        return MarkedPage(uploads, (_marker("NextKeyMarker", body), upload_id))


@contextmanager
def _reading(body: bytes, document: str) -> Iterator[None]:
    """Raise StorageUnavailableError if the document is not whole, or its content is invalid."""
    if not body.rstrip().endswith(f"</{document}>".encode()):
        raise StorageUnavailableError("list: response without outcome")
    try:
        yield
    except ValueError as exc:
        raise StorageUnavailableError("list: unreadable response") from exc


def _is_truncated(body: bytes) -> bool:
    """Check if more pages follow.

    Raises:
        ValueError: the response does not say so in the one form that S3 defines. Taken for the
            last page, it would make objects look absent.
    """
    stated = find_text("IsTruncated", body)
    if stated not in ("true", "false"):
        raise ValueError("neither true nor false")
    return stated == "true"


def _marker(name: str, body: bytes) -> str:
    (marker,) = _decoded([find_text(name, body) or ""], body)
    return marker


def _decoded(names: Sequence[str], body: bytes) -> Sequence[str]:
    return decode_names(names) if b"<EncodingType>url</EncodingType>" in body else names


def _check_prefix(names: Sequence[str], prefix: str) -> None:
    if not all(name.startswith(prefix) for name in names):
        # The row is of another project, if the prefix is a project's.
        raise ValueError("a row outside the prefix")


def _parse_time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    if time.tzinfo is not UTC:
        raise ValueError("a time that is not UTC")
    return time

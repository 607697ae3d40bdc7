"""Listings by folder, one page at a time (SPEC 9.3, 10). Pure.

An entry of a listing is an object's key, or with a delimiter a common prefix: the part of a key up
to and including the first delimiter after the prefix. The common prefix is the entry of all keys
below it. So when a listing resumes after a common prefix, or after a key below one, that whole
group is skipped. Servers disagree about this: some would list the group again, some would skip the
key behind it. A request therefore starts after the last key that the group could hold, and what a
server lists too early is dropped.
"""

from datetime import datetime
from typing import Final
from urllib.parse import quote

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.listing import decode_keys, element, is_encoded
from keyturn_workers.storage.port import EntriesPage, ObjectSummary

_S3_KEY_MAX_BYTES: Final = 1024
_UNRESERVED: Final = "-_.~"
# The last characters of one, two, three and four bytes of UTF-8, in byte order.
_LAST_CHARACTERS: Final = ("", "\x7f", "\u07ff", "\uffff", "\U0010ffff")


def is_after_all(prefix: str, after: str) -> bool:
    """Whether all keys under the prefix sort before `after`."""
    return after > prefix and not after.startswith(prefix)


def start_after(prefix: str, delimiter: str, after: str) -> str:
    """The key after which a server must start to list the entries after `after`.

    It is empty if the server must start at the prefix.
    """
    if not after.startswith(prefix):
        return ""
    end = after.find(delimiter, len(prefix)) if delimiter else -1
    return after if end < 0 else _last_key_below(after[: end + len(delimiter)])


def _last_key_below(folder: str) -> str:
    """The last key of S3's greatest length that begins with `folder`."""
    full, rest = divmod(max(0, _S3_KEY_MAX_BYTES - len(folder.encode())), 4)
    return folder + full * _LAST_CHARACTERS[4] + _LAST_CHARACTERS[rest]


def entries_query(prefix: str, delimiter: str, limit: int, *, start: str, token: str) -> str:
    """The query of one request, percent-encoded.

    `token` continues a page on which the server listed nothing, in place of `start`.
    """
    fields = {"delimiter": delimiter, "encoding-type": "url", "list-type": "2"}
    fields |= {"max-keys": str(limit), "prefix": prefix}
    fields |= {"continuation-token": token} if token else {"start-after": start}
    return "&".join(
        f"{name}={quote(value, safe=_UNRESERVED)}" for name, value in fields.items() if value
    )


def parse_entries(body: bytes, prefix: str) -> tuple[EntriesPage, str]:
    """Parse the response to `entries_query`; return the page, and the server's marker if any.

    Raises:
        StorageUnavailableError: the response is not a whole listing of this prefix.
    """
    if not body.rstrip().endswith(b"</ListBucketResult>"):
        raise StorageUnavailableError("list: response without outcome")
    try:
        truncated = element(b"IsTruncated", body) == "true"
        has_token = truncated and b"<NextContinuationToken>" in body
        token = element(b"NextContinuationToken", body) if has_token else ""
        encoded = is_encoded(body)
        objects = [_summary(row, encoded=encoded) for row in _rows(body, b"Contents")]
        prefixes = [
            decode_keys(element(b"Prefix", row), encoded=encoded)
            for row in _rows(body, b"CommonPrefixes")
        ]
    except ValueError as exc:
        raise StorageUnavailableError("list: unreadable response") from exc
    names = [*(row.key for row in objects), *prefixes]
    if not all(name.startswith(prefix) for name in names):
        # Of another project, if this prefix is one's.
        raise StorageUnavailableError("list: a row outside the prefix")
    next_after = max(names, default="") if truncated else None
    return EntriesPage(objects, prefixes, next_after), decode_keys(token, encoded=False)


def _rows(body: bytes, name: bytes) -> list[bytes]:
    _, *rows = body.split(b"<%b>" % name)
    ends = [row.find(b"</%b>" % name) for row in rows]
    if -1 in ends:
        raise ValueError("a row without an end")
    return [row[:end] for row, end in zip(rows, ends, strict=True)]


def _summary(row: bytes, *, encoded: bool) -> ObjectSummary:
    modified = datetime.fromisoformat(element(b"LastModified", row))
    if modified.tzinfo is None:
        raise ValueError("a time without a zone")
    return ObjectSummary(
        key=decode_keys(element(b"Key", row), encoded=encoded),
        size_bytes=int(element(b"Size", row)),
        etag=decode_keys(element(b"ETag", row), encoded=False).strip('"'),
        last_modified=modified,
    )


def without_early(page: EntriesPage, after: str) -> EntriesPage:
    """The page without the entries up to `after`, which some servers list again."""
    return EntriesPage(
        [row for row in page.objects if row.key > after],
        [folder for folder in page.prefixes if folder > after],
        page.next_after,
    )

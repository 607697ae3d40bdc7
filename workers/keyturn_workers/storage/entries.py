"""Listings by folder, one page at a time (SPEC 9.3, 10). Pure.

An entry of a listing is an object's key, or with a delimiter a common prefix: the part of a key up
to and including the first delimiter after the prefix. The common prefix is the entry of all keys
below it. So when a listing resumes after a common prefix, or after a key below one, that whole
group is skipped. Servers disagree about this: some would list the group again, some would skip the
key behind it. A request therefore starts after the last key that the group could hold, and what a
server lists too early is dropped.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.listing import decode_keys, element, is_encoded, is_truncated
from keyturn_workers.storage.port import EntriesPage, ObjectSummary

_S3_KEY_MAX_BYTES: Final = 1024
_VERSIONS: Final = ".versions"
_UNRESERVED: Final = "-_.~"
# The last characters of one, two, three and four bytes of UTF-8, in byte order.
_LAST_CHARACTERS: Final = ("", "\x7f", "\u07ff", "\uffff", "\U0010ffff")

_ELEMENTS: Final = tuple(
    re.compile(rb"<%b>([^<]+)</%b>" % (name, name))
    for name in (b"Key", b"LastModified", b"ETag", b"Size")
)


def is_after_all(prefix: str, after: str) -> bool:
    """Whether all keys under the prefix sort before `after`."""
    return after > prefix and not after.startswith(prefix)


def start_after(prefix: str, delimiter: str, after: str) -> str:
    """The key after which a server must start to list the entries after `after`.

    It is empty if the server must start at the prefix.
    """
    if not after.startswith(prefix) or after == prefix:
        return ""  # `without_early` drops an object whose key is the prefix itself
    end = after.find(delimiter, len(prefix)) if delimiter else -1
    if end >= 0:
        return last_key_below(after[: end + len(delimiter)])
    # Some servers refuse what is no possible key. No key lies between this one and `after`, but
    # for a few at a cut character, which `without_early` drops.
    return after.encode()[:_S3_KEY_MAX_BYTES].decode(errors="ignore")


def is_longer_than_keys(prefix: str) -> bool:
    """Whether no key can begin with this. A server may refuse to list it."""
    return len(prefix.encode()) > _S3_KEY_MAX_BYTES


def last_key_below(folder: str) -> str:
    """The last key of S3's greatest length that begins with `folder`."""
    full, rest = divmod(max(0, _S3_KEY_MAX_BYTES - len(folder.encode())), 4)
    return folder + full * _LAST_CHARACTERS[4] + _LAST_CHARACTERS[rest]


def last_key_before(name: str) -> str:
    """The last key of S3's greatest length that sorts before `name` and all keys beginning with it.

    The last character of `name` must not be U+0000.
    """
    return last_key_below(name[:-1] + chr(ord(name[-1]) - 1))


def without_folder_ending(prefix: str) -> str:
    """The prefix, without an ending that may match a folder name such as `a.versions`.

    For the prefix `a.`, a server with such folders also lists `a`, or a common prefix that no key
    has.
    """
    key, dot, ending = prefix.rpartition(_VERSIONS[0])
    ends_key = bool(key) and not key.endswith("/")
    return key if ends_key and _VERSIONS.startswith(dot + ending) else prefix


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
        truncated = is_truncated(body)
        has_token = truncated and b"<NextContinuationToken>" in body
        token = element(b"NextContinuationToken", body) if has_token else ""
        encoded = is_encoded(body)
        objects = _parse_objects(body, encoded=encoded)
        _, *groups = body.split(b"<CommonPrefixes>")
        folders = [element(b"Prefix", group).encode() for group in groups]
        prefixes = _decode_all(folders, encoded=encoded)
    except ValueError as exc:
        raise StorageUnavailableError("list: unreadable response") from exc
    names = [*(row.key for row in objects), *prefixes]
    if not all(name.startswith(prefix) for name in names):
        # Of another project, if this prefix is one's.
        raise StorageUnavailableError("list: a row outside the prefix")
    next_after = max(names, default="") if truncated else None
    return EntriesPage(objects, prefixes, next_after), decode_keys(token, encoded=False)


def _parse_objects(body: bytes, *, encoded: bool) -> list[ObjectSummary]:
    """Parse the objects of a listing, a thousand rows at once: this must be fast.

    Raises:
        ValueError: an object lacks an element, or has one of another form.
    """
    keys, modified, etags, sizes = (pattern.findall(body) for pattern in _ELEMENTS)
    if not body.count(b"</Contents>") == len(keys) == len(modified) == len(etags) == len(sizes):
        raise ValueError("an object lacks an element")
    columns = zip(
        _decode_all(keys, encoded=encoded),
        map(int, sizes),
        _decode_all(etags, encoded=False),
        map(_parse_time, modified),
        strict=True,
    )
    return [ObjectSummary(k, size, etag.strip('"'), time) for k, size, etag, time in columns]


def _parse_time(text: bytes) -> datetime:
    time = datetime.fromisoformat(text.decode())
    if time.tzinfo is not UTC:
        raise ValueError("a time that is not UTC")
    return time


def _decode_all(keys: Sequence[bytes], *, encoded: bool) -> list[str]:
    """Decode keys, all at once unless one of them has a line break."""
    if not keys:
        return []
    decoded = decode_keys(b"\n".join(keys).decode(), encoded=encoded).split("\n")
    if len(decoded) == len(keys):
        return decoded
    return [decode_keys(key.decode(), encoded=encoded) for key in keys]


def page_within(page: EntriesPage, prefix: str) -> EntriesPage:
    """Only the entries with this prefix, from a page that begins with them.

    If other entries follow them on the page, no later page has this prefix.
    """
    objects = [row for row in page.objects if row.key.startswith(prefix)]
    prefixes = [folder for folder in page.prefixes if folder.startswith(prefix)]
    passed = len(objects) + len(prefixes) < len(page.objects) + len(page.prefixes)
    return EntriesPage(objects, prefixes, None if passed else page.next_after)


def without_early(page: EntriesPage, after: str) -> EntriesPage:
    """The page without the entries up to `after`, which some servers list again."""
    return EntriesPage(
        [row for row in page.objects if row.key > after],
        [folder for folder in page.prefixes if folder > after],
        page.next_after,
    )

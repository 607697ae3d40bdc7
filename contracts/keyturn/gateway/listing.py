"""Pages of a listing: their requests, and the check of the responses (SPEC 9.3). Pure.

A page is accepted only if it fits the request: every entry is under the prefix and after the last
one, in the one order of the whole listing. So a listing never yields an entry twice, and always
advances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import pairwise
from typing import Any, Final, TypeAlias
from urllib.parse import quote, urlencode

from keyturn.errors import MalformedRequestError, UnexpectedResponseError
from keyturn.identifiers import (
    OBJECT_KEY_MAX_BYTES,
    Order,
    byte_order,
    has_control_characters,
    is_object_key,
    parse_time,
    path_order,
)

PAGE_MAX_ENTRIES: Final = 1000
PAGE_MAX_BYTES: Final = 8 * 1024 * 1024
"""More than the size of 1000 keys of 900 bytes with every character escaped in JSON."""
DELIMITER: Final = "/"
_S3_KEY_MAX_BYTES: Final = 1024  # of a `next`, which may be another writer's key
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object of a listing.

    Attributes:
        key: The object's key.
        size_bytes: Length of the plaintext, computed from the stored length; not authenticated.
            None if no read would open the object.
        changed_at: The storage's last write of the object; a rotation counts.
    """

    key: str
    size_bytes: int | None
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class ListedPrefix:
    """A folder in a listing by delimiter: the common beginning of the keys of its objects.

    Attributes:
        prefix: The text up to and including the delimiter. Only deleted objects may be left.
    """

    prefix: str


Entry: TypeAlias = ListedObject | ListedPrefix


@dataclass(frozen=True, slots=True)
class PageRequest:
    """The parameters of a request for a page.

    Args:
        prefix: The beginning of the keys; may be empty.
        delimiter: `/` to list one level, or None for all keys.
        after: The entry after which the page begins; empty for the first page.
        limit: The maximum of entries, 1 to 1000.
        orders: The storage's order is one of these; pages show which.

    Raises:
        MalformedRequestError: the gateway would reject it.
    """

    prefix: str
    delimiter: str | None
    after: str
    limit: int
    orders: Sequence[Order] = (byte_order, path_order)

    def __post_init__(self) -> None:
        if self.delimiter not in (None, DELIMITER):
            raise MalformedRequestError("delimiter must be / or None")
        if not 1 <= self.limit <= PAGE_MAX_ENTRIES:
            raise MalformedRequestError(f"page_size must be 1 to {PAGE_MAX_ENTRIES}")
        _check_text("prefix", self.prefix, OBJECT_KEY_MAX_BYTES)
        _check_text("after", self.after, _S3_KEY_MAX_BYTES)
        if has_control_characters(self.prefix):
            raise MalformedRequestError("prefix cannot contain control characters")

    @property
    def query(self) -> str:
        """The query of the request's URL, encoded."""
        optional = {"prefix": self.prefix, "delimiter": self.delimiter, "after": self.after}
        given = {name: value for name, value in optional.items() if value}
        return urlencode({**given, "limit": self.limit}, quote_via=quote, safe="")


def _check_text(name: str, text: str, max_bytes: int) -> None:
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise MalformedRequestError(f"{name} must be valid UTF-8") from None
    if size_bytes > max_bytes:
        raise MalformedRequestError(f"{name} has at most {max_bytes} bytes of UTF-8")


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a listing.

    Attributes:
        entries: In the storage's order; there may be none on any page.
        following: The request for the next page; None after the last one.
    """

    entries: Sequence[Entry]
    following: PageRequest | None


def parse_page(document: Mapping[str, Any], request: PageRequest) -> Page:
    """Return the page in a response.

    Raises:
        UnexpectedResponseError: it does not fit the request.
    """
    objects, prefixes = document.get("objects"), document.get("prefixes")
    if not isinstance(objects, list) or not isinstance(prefixes, list) or "next" not in document:
        raise _unfit("is not a listing")
    listed_objects = [_object(fields, request) for fields in objects]
    listed_prefixes = [_prefix(text, request) for text in prefixes]
    keys = [listed.key for listed in listed_objects]
    folders = [listed.prefix for listed in listed_prefixes]
    if len(keys) + len(folders) > request.limit:
        raise _unfit("holds more entries than requested")
    orders = [
        order
        for order in request.orders
        if _ascends(keys, request.after, order) and _ascends(folders, request.after, order)
    ]
    if not orders:
        raise _unfit("is not in order")
    entries: list[Entry] = [*listed_objects, *listed_prefixes]
    entries.sort(key=lambda entry: orders[0](_name(entry)))
    next_after = document["next"]
    if next_after is None:
        return Page(entries, None)
    ends = [*keys[-1:], *folders[-1:]]
    orders = [order for order in orders if _advances(next_after, request, ends, order)]
    if not orders:
        raise _unfit("does not advance")
    return Page(entries, replace(request, after=next_after, orders=orders))


def _ascends(names: Sequence[str], after: str, order: Order) -> bool:
    rows = [*([order(after)] if after else []), *map(order, names)]
    return all(before < name for before, name in pairwise(rows))


def _name(entry: Entry) -> str:
    return entry.key if isinstance(entry, ListedObject) else entry.prefix


def _object(fields: object, request: PageRequest) -> ListedObject:
    if not isinstance(fields, dict):
        raise _unfit("holds an entry that is not an object")
    key, size, changed_at = fields.get("key"), fields.get("size"), fields.get("changed_at")
    if not isinstance(key, str) or not is_object_key(key) or not key.startswith(request.prefix):
        raise _unfit("holds a key that was not requested")
    if request.delimiter and DELIMITER in key[len(request.prefix) :]:
        raise _unfit("holds an object below a prefix")
    if "size" not in fields or not (size is None or (type(size) is int and size >= 0)):
        raise _unfit("holds an object without a size")
    try:
        return ListedObject(key, size, parse_time(str(changed_at)))
    except ValueError:
        raise _unfit("holds an object without a time") from None


def _prefix(text: object, request: PageRequest) -> ListedPrefix:
    if not request.delimiter or not isinstance(text, str) or not text.startswith(request.prefix):
        raise _unfit("holds a prefix that was not requested")
    ends_at = text.find(DELIMITER, len(request.prefix))
    if ends_at < 0 or ends_at != len(text) - 1 or not is_object_key(text[:-1]):
        raise _unfit("holds a prefix that was not requested")
    return ListedPrefix(text)


def _advances(next_after: object, request: PageRequest, ends: Sequence[str], order: Order) -> bool:
    """Return whether the listing advances: at most this page's last entry may be repeated."""
    if not isinstance(next_after, str) or len(next_after.encode()) > _S3_KEY_MAX_BYTES:
        raise _unfit("has no valid `next`")
    is_after = not request.after or order(next_after) > order(request.after)
    is_last = all(order(next_after) >= order(end) for end in ends)
    return bool(next_after) and is_after and is_last and next_after.startswith(request.prefix)


def _unfit(what: str) -> UnexpectedResponseError:
    return UnexpectedResponseError(f"the response {what}", status=_OK)

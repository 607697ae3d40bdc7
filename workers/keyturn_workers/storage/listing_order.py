"""Finds out in which order a server lists, without writing to it (SPEC 8.5, 10).

Servers sort keys by their bytes or by their segments (`storage.segment_order`). Workers measure the
order when they start. Commands and the gateway may not write to the bucket as workers do, so there
the storage finds out the order from the keys that it lists, as soon as it matters.

Two keys sort differently only if, at the first character where they differ, one has a slash and the
other a character that sorts before the slash (or, on a server that keeps versions in a folder
`a.versions`, one key ends there and the other has such a character or a slash). A key that has no
such character after the listing's prefix is therefore in its place: no key with smaller bytes
follows it. Hence

- a listing that is not truncated is complete, and only has to be sorted;
- a page whose names have no such character is correct in either order;
- a page that starts after a key lacks at most the folders that this key is a sibling of, and the
  folder of its own name.

Any other name shows the order:

- `a/x`: in byte order, a listing that starts after all names beginning with `a.` shows names below
  `a/` first. In segment order, the whole folder `a/` comes before that start.
- `a-x`: in segment order, `a-x` and its siblings come after all of `a/`. In byte order, none does.

A name that such a request lists proves the order. A name that it does not list proves it only if
the name existed all the time, so the page is then read again.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.entries import last_key_below
from keyturn_workers.storage.port import PAGE_KEYS, EntriesPage
from keyturn_workers.storage.segment_order import Fetch, folders_around, parent_of

Rows = Mapping[str, object]
"""The entries of a page by their names; equal values mean the same object."""

_SLASH: Final = "/"
_BEFORE_SLASH: Final = "."
_ATTEMPTS: Final = 5


async def page_or_order(
    read: Callable[[], Awaitable[EntriesPage]], fetch: Fetch, prefix: str, after: str
) -> EntriesPage | bool:
    """Read a page that is correct in either order, or find out the order.

    Args:
        read: Reads the page, for a server that sorts by bytes.
        fetch: Makes one request, without a delimiter.
        prefix: The prefix of the listing.
        after: The name that it starts after; empty, or longer than the prefix.

    Returns:
        The page with its entries in byte order; or, if it depends on the order, whether the server
        lists by segments.

    Raises:
        StorageUnavailableError: the names that would show the order disappear.
    """
    for _ in range(_ATTEMPTS):
        page = await read()
        if not after and page.next_after is None:
            return _in_byte_order(page)
        rows = rows_of(page)
        if has_witness(rows, prefix):

            async def read_again() -> Rows:
                return rows_of(await read())

            order = await find_order(rows, read_again, fetch, prefix)
            if order is None:
                continue
            return order
        hidden = await _find_hidden(fetch, prefix, after)
        if hidden is None:
            return _in_byte_order(page)
        if (order := await _find_order_by_folder(fetch, hidden)) is not None:
            return order
    raise StorageUnavailableError("list: keys disappeared while their order was tested")


def rows_of(page: EntriesPage) -> Rows:
    """The entries of a page by their names."""
    return {row.key: row for row in page.objects} | dict.fromkeys(page.prefixes)


def has_witness(names: Iterable[str], prefix: str) -> bool:
    """Whether one of these names shows the order of a listing of this prefix."""
    return _witness(names, prefix) is not None


async def find_order(
    rows: Rows, read_again: Callable[[], Awaitable[Rows]], fetch: Fetch, prefix: str
) -> bool | None:
    """Find out whether the server lists by segments.

    Args:
        rows: What a listing of the prefix showed.
        read_again: Repeats that listing.
        fetch: Makes one request, without a delimiter.
        prefix: The prefix of the listing.

    Returns:
        None if no name shows the order, or if the tested name disappeared meanwhile.
    """
    witness = _witness(rows, prefix)
    if witness is None:
        return None
    name, at = witness
    folder = name[:at]
    if name[at] == _SLASH:
        start = last_key_below(folder + _BEFORE_SLASH)
        listed, _ = await fetch(parent_of(folder), start, 1)
        if any(other.startswith(folder + _SLASH) for other in listed):
            return False
        by_segment = True
    else:
        start = last_key_below(folder + _SLASH)
        listed, _ = await fetch(parent_of(folder), start, 1)
        if any(other < start for other in listed):
            return True
        by_segment = False
    again = await read_again()
    return by_segment if name in again and again[name] == rows[name] else None


async def find_order_by_listing(fetch: Fetch, prefix: str) -> bool | None:
    """List the objects under a prefix until one shows the order; None if none does."""
    start = ""
    while True:
        rows, following = await fetch(prefix, start, PAGE_KEYS)

        async def read_again(start: str = start) -> Rows:
            return (await fetch(prefix, start, PAGE_KEYS))[0]

        order = await find_order(rows, read_again, fetch, prefix)
        if order is not None or not following:
            return order
        if following == start:
            raise StorageUnavailableError("list: no progress")
        start = following


def _witness(names: Iterable[str], prefix: str) -> tuple[str, int] | None:
    """A name that shows the order, and where its folder ends, or the folder beside it.

    Prefers a name within the folder.
    """
    found: tuple[str, int] | None = None
    for name in names:
        for at, _ in folders_around(name, len(prefix)):
            if name[at] == _SLASH:
                return name, at
            found = found or (name, at)
    return found


async def _find_hidden(fetch: Fetch, prefix: str, after: str) -> str | None:
    """A folder whose keys a listing by segments would leave out if it starts after `after`."""
    if not after:
        return None
    for at, folder in folders_around(after + _SLASH, len(prefix)):
        if at == len(after) or after[at] < _SLASH:
            listed, _ = await fetch(folder + _SLASH, "", 1)
            if listed:
                return folder
    return None


async def _find_order_by_folder(fetch: Fetch, folder: str) -> bool | None:
    async def read() -> Rows:
        return (await fetch(folder + _SLASH, "", 1))[0]

    return await find_order(await read(), read, fetch, folder)


def _in_byte_order(page: EntriesPage) -> EntriesPage:
    objects = sorted(page.objects, key=lambda row: row.key)
    return EntriesPage(objects, sorted(page.prefixes), page.next_after)

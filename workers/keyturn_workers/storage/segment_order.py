"""Listings in byte order from a server that sorts keys by their segments (SPEC 8.5, 10).

S3 sorts keys by their bytes, and a sweep's pages are ranges of that order. A server that keeps keys
in folders sorts them by segments: `a/x` comes before `a-b` and `a.txt`, since the folder's name `a`
sorts before the others. Its `start-after` means that order too. So a listing from `a-b` on would
miss all of `a/`.

Here such listings are put into byte order, page by page. Only the *siblings* of a folder `a/` are
out of place: names that begin with `a` and go on with a character before the slash. In byte order
they precede the folder's keys; the server lists them behind these. So

- where a page ends within a folder, its siblings are listed before the folder's keys are returned;
- where a listing starts after a sibling (`a-b`), the folder `a/` is returned behind its siblings.

A server that keeps versions in a folder `a.versions` sorts the object `a` behind `a-b` too. There
such objects are requested by themselves where a page ends before them.

This costs a small request for each folder that a page ends in, and one for each character before
the slash in the key that a listing starts after.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Literal

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.entries import is_after_all, last_key_below
from keyturn_workers.storage.port import EntriesPage, ObjectSummary

Entries = Mapping[str, ObjectSummary | None]
"""Objects by their keys; common prefixes, which end with the delimiter, with None."""

Fetch = Callable[[str, str, int], Awaitable[tuple[Entries, str]]]
"""Requests one page: prefix, the name to start after, and the most entries.

Returns the entries, and the server's own name of the last one, to continue after it; empty if none
follow."""

_Entry = tuple[str, ObjectSummary | None]
_Rows = AsyncGenerator[_Entry, None]

_SLASH: Final = "/"
_BEFORE_SLASH: Final = "."  # the last character before it
_VERSIONS: Final = ".versions"
_BEFORE_VERSIONS: Final = ".versionr"


@dataclass(frozen=True, slots=True, order=True)
class _Insert:
    """Entries that are returned just before the first name from `place` on."""

    place: str
    kind: Literal["folder", "siblings"]
    folder: str  # without the slash


@dataclass(slots=True)
class _Progress:
    """How far a listing is.

    Attributes:
        start: What the next request starts after, in the server's order.
        after: Names up to this one, in byte order, are not returned.
        siblings_of: The listing is of this folder's siblings alone; None for all names.
        passed: The folders whose siblings have been returned, or are none.
        looked_for: The objects that were requested by themselves, and are not returned again.
        inserts: What is due later, in the order of its places.
    """

    start: str = ""
    after: str = ""
    siblings_of: str | None = None
    passed: set[str] = field(default_factory=set)
    looked_for: set[str] = field(default_factory=set)
    inserts: list[_Insert] = field(default_factory=list)

    def belongs(self, name: str) -> bool:
        """Whether this listing is of this name."""
        return self.siblings_of is None or _is_sibling(name, self.siblings_of)

    def is_behind(self, name: str) -> bool:
        """Whether this name, and all that follow it, are not of this listing."""
        return not self.belongs(name) and name != self.siblings_of

    def is_due(self, name: str) -> bool:
        """Whether this name is to be returned: it was not, and is of no folder that passed."""
        return name > self.after and not any(
            character < _SLASH and name[:at] in self.passed for at, character in enumerate(name)
        )


class SegmentOrder:
    """Lists one bucket of such a server in byte order.

    Args:
        fetch: Makes one request.
        delimiter: `/`, or empty; what `fetch` groups by.
        page_size: How many entries a request asks for.
        versioned: Whether the bucket keeps versions.
    """

    def __init__(
        self, fetch: Fetch, *, delimiter: str, page_size: int, versioned: bool = False
    ) -> None:
        self._fetch = fetch
        self._versioned = versioned
        self._delimiter = delimiter
        self._page_size = page_size

    async def objects(
        self, prefix: str, after: str = "", limit: int | None = None
    ) -> AsyncIterator[ObjectSummary]:
        """Yield the objects under a prefix that sort after `after`, at most `limit` of them."""
        if is_after_all(prefix, after) or (limit is not None and limit <= 0):
            return
        count = 0
        async with aclosing(self.entries(prefix, after)) as entries:
            async for _, found in entries:
                if found is not None:
                    yield found
                    count += 1
                    if count == limit:
                        return

    async def page(self, prefix: str, after: str, limit: int) -> EntriesPage:
        """Read the next entries, at most `limit` of them, as `Storage.list_entries` does."""
        rows: list[_Entry] = []
        async with aclosing(self.entries(prefix, after)) as entries:
            async for entry in entries:
                if len(rows) == limit:
                    following = rows[-1][0]
                    break
                rows.append(entry)
            else:
                following = None
        objects = [found for _, found in rows if found is not None]
        return EntriesPage(objects, [name for name, found in rows if found is None], following)

    def entries(self, prefix: str, after: str = "") -> _Rows:
        """Yield the entries under a prefix that sort after `after`, in byte order.

        With a delimiter no entry is yielded that is, or contains, the beginning of `after`.

        Raises:
            StorageUnavailableError: a page is empty although more follow.
        """
        return self._run(prefix, self._begin(prefix, after if after.startswith(prefix) else ""))

    def _begin(self, prefix: str, after: str) -> _Progress:
        if len(after) < len(prefix):
            return _Progress()
        if after == prefix and after.endswith(_SLASH):
            return _Progress(after=after)
        end = after.find(self._delimiter, len(prefix)) if self._delimiter else -1
        if end >= 0:
            after = after[: end + 1]
            progress = _Progress(after=after, start=last_key_below(after))
        elif after.endswith(_SLASH):
            progress = _Progress(after=after, start=after)
        else:
            # Its folder comes behind its siblings, and the server lists it before them.
            progress = _Progress(after=after, start=last_key_below(after + _SLASH))
            progress.inserts.append(_Insert(after + _SLASH, "folder", after))
        for at, folder in folders_around(after, len(prefix)):
            if after[at] == _SLASH:
                progress.passed.add(folder)
            else:
                progress.inserts.append(_Insert(folder + _SLASH, "folder", folder))
        return progress

    async def _run(self, prefix: str, progress: _Progress) -> _Rows:
        last: str | None = None
        while last != "":
            listed, following = await self._fetch(prefix, progress.start, self._page_size)
            if following and (not listed or following == last):
                raise StorageUnavailableError("list: no progress")
            page = {name: found for name, found in listed.items() if progress.belongs(name)}
            last = "" if any(map(progress.is_behind, listed)) else following
            for name in progress.looked_for & page.keys():
                del page[name]
            if last:
                late = await self._late_objects(prefix, page, last, progress)
                await self._end_page(prefix, page, last, progress)
                page |= late
            for name in sorted(filter(progress.is_due, page)):
                while progress.inserts and progress.inserts[0].place <= name:
                    async for entry in self._inserted(progress.inserts.pop(0), progress.after):
                        yield entry
                yield name, page[name]
        for insert in progress.inserts:
            async for entry in self._inserted(insert, progress.after):
                yield entry

    async def _end_page(self, prefix: str, page: Entries, last: str, progress: _Progress) -> None:
        """Find what the page leaves out of place, and where the next one starts."""
        progress.start = last
        shortest = len(prefix) if progress.siblings_of is None else len(progress.siblings_of) + 1
        for at, folder in folders_around(last, shortest):
            if folder in progress.passed:
                if last[at] < _SLASH:
                    # The rest of them has been returned, and what is a sibling of one of them.
                    progress.start = last_key_below(folder + _BEFORE_SLASH)
                    progress.inserts = [
                        insert
                        for insert in progress.inserts
                        if not _is_sibling(insert.folder, folder)
                    ]
                continue
            if folder + _SLASH <= progress.after:
                out_of_place = False  # what would be is not due
            elif last[at] == _SLASH:
                out_of_place = await self._has_siblings(folder)
            else:
                below = folder + _SLASH
                out_of_place = any(name.startswith(below) for name in page if progress.is_due(name))
                if not out_of_place:
                    continue
                progress.start = last_key_below(folder + _BEFORE_SLASH)
            progress.passed.add(folder)
            if out_of_place:
                # Folders among these siblings are listed with them.
                progress.inserts = [
                    insert for insert in progress.inserts if not _is_sibling(insert.folder, folder)
                ]
                progress.inserts.append(_Insert(folder + _SLASH, "siblings", folder))
        progress.inserts.sort()

    async def _late_objects(
        self, prefix: str, page: Entries, last: str, progress: _Progress
    ) -> Entries:
        """The objects that precede the last entry in byte order, and follow it on the server."""
        late: dict[str, ObjectSummary | None] = {}
        if not self._versioned:
            return late
        for at in range(max(len(prefix), 1), len(last)):
            key, rest = last[:at], last[at:].partition(_SLASH)[0]
            follows = not key.endswith(_SLASH) and rest < _VERSIONS
            if not follows or key in page or key in progress.looked_for:
                continue
            progress.looked_for.add(key)
            found, _ = await self._fetch(parent_of(key), last_key_below(key + _BEFORE_VERSIONS), 1)
            if key in found and progress.belongs(key):
                late[key] = found[key]
        return late

    async def _has_siblings(self, folder: str) -> bool:
        # The first one may be an object of the folder's name.
        page, _ = await self._fetch(parent_of(folder), last_key_below(folder + _SLASH), 2)
        return any(_is_sibling(name, folder) for name in page)

    async def _inserted(self, insert: _Insert, after: str) -> _Rows:
        below = insert.folder + _SLASH
        if insert.kind == "siblings":
            progress = _Progress(last_key_below(below), after, insert.folder)
            rows = self._run(parent_of(insert.folder), progress)
        elif self._delimiter:
            rows = self._folder(below)
        else:
            rows = self.entries(below)
        async for entry in rows:
            yield entry

    async def _folder(self, name: str) -> _Rows:
        """The common prefix, if any key is below it."""
        page, _ = await self._fetch(name, "", 1)
        if page:
            yield name, None


def parent_of(name: str) -> str:
    """The folder that contains this name, with its slash.

    Used as the prefix of requests: a server may not support prefixes that end within a name.
    """
    return name[: name.rfind(_SLASH) + 1]


def _is_sibling(name: str, folder: str) -> bool:
    """Whether the name precedes the folder's keys in byte order, and follows them on the server."""
    return name.startswith(folder) and len(name) > len(folder) and name[len(folder)] < _SLASH


def folders_around(name: str, shortest: int) -> Iterator[tuple[int, str]]:
    """The folders that the name is in or is a sibling of, the longest first, and their lengths.

    Only these can give the name another place in the order of segments than in the order of bytes.

    Args:
        name: A key, or a common prefix.
        shortest: The least length of a folder; that of the listing's prefix.
    """
    for at in range(len(name) - 1, max(shortest, 1) - 1, -1):
        if name[at] <= _SLASH and name[at - 1] != _SLASH:
            yield at, name[:at]

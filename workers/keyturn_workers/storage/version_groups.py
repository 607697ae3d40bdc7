"""Versions in byte order from a server whose pages of them lose keys (SPEC 8.5, 10).

A server that keeps keys in folders collects a page in the order of its folders, and continues after
the page's last key by its bytes. So it leaves out each key that its folders have later and that
sorts earlier: of `a/1` to `a/2000` and `a-b`, the second page no longer has `a-b`. And a listing
that starts after `a-b` leaves out the folder `a/`, which sorts behind it.

So a listing that is truncated is split by the next character, until no answer is; of a truncated
one, only the groups that precede the last one are used. A folder that a start would leave out is
listed by itself.

Such a server keeps the versions of `a` in a folder `a.versions`, which it lists after all of `a/`
and `a-b`. If those fill a page, the versions of `a` are found by the folder's name, or by a listing
with a delimiter that reduces the others to a few rows. If they do not fit into a page, they are
read page by page.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.entries import last_key_below
from keyturn_workers.storage.listing import order_of_version
from keyturn_workers.storage.port import ObjectVersion

Fetch = Callable[[str, str, str, str], Awaitable[tuple[Sequence[ObjectVersion], bool]]]
"""Requests one page: prefix, the key after which to start, a delimiter, and a version.

With a version, the page starts after that version of the key. Returns the versions, ordered as the
port orders them, and whether the page is truncated."""

_SLASH: Final = "/"
# The characters that sort before the slash.
_BEFORE_SLASH: Final = tuple(map(chr, range(1, ord(_SLASH))))
# Any of these makes one row of the keys that could hide a key itself.
_DELIMITERS: Final = ("/", "-", ".", " ", "_")
_VERSIONS: Final = ".versions"
_UNVERSIONED: Final = "null"

_Versions = AsyncGenerator[ObjectVersion, None]


class VersionGroups:
    """Lists the versions in one bucket of such a server.

    Args:
        fetch: Makes one request.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._known: ObjectVersion | None = None  # any version that is in such a folder
        self._finds_folders: bool | None = None

    async def versions(self, prefix: str, after: str = "") -> _Versions:  # noqa: C901, PLR0912  # a merge
        """Yield the versions under a prefix whose keys sort after `after`, as the port orders them.

        Raises:
            StorageUnavailableError: a key has more versions than fit into a page, and so many keys
                are below and beside it that the server shows only those.
        """
        if after and not after.startswith(prefix):
            if after > prefix:
                return
            after = ""
        # Listed by themselves, each before the first key that sorts behind it.
        folders = _left_out(prefix, after)
        taken = set(folders)
        page, truncated = await self._page(prefix, after)
        if truncated and not after:
            for version in await self._own(prefix, page):
                yield version
            if all(version.key == prefix for version in page):
                # Versions of this key, or of one that the prefix found by its folder, fill it.
                page, truncated = await self._page(prefix, prefix)
        start, more = after or prefix, True
        while more:
            rows = [row for row in page if not any(map(row.key.startswith, taken))]
            group = _last_group(rows, prefix) if truncated else ""
            if group and group < _SLASH and prefix + _SLASH not in taken:
                # The next start leaves it out.
                taken.add(prefix + _SLASH)
                folders = sorted([*folders, prefix + _SLASH])
            for part in _parts(rows, prefix, group, start):
                key = part if isinstance(part, str) else part.key
                while folders and folders[0] <= key:
                    async for version in self.versions(folders.pop(0), after):
                        yield version
                if isinstance(part, str):
                    # It has these folders too.
                    folders = [folder for folder in folders if not folder.startswith(part)]
                    async for version in self.versions(part, after):
                        yield version
                else:
                    yield part
            more = truncated
            if more:
                start = last_key_below(prefix + group)
                page, truncated = await self._page(prefix, start)
        for folder in folders:
            async for version in self.versions(folder, after):
                yield version

    async def _page(
        self, prefix: str, after: str, delimiter: str = "", version: str = ""
    ) -> tuple[Sequence[ObjectVersion], bool]:
        page, truncated = await self._fetch(prefix, after, delimiter, version)
        if self._known is None:
            self._known = next((row for row in page if row.version_id != _UNVERSIONED), None)
        # For the prefix `a.`, the server also finds `a`, through its folder `a.versions`. Other
        # servers start in the middle of the key that was to be skipped.
        rows = [row for row in page if row.key.startswith(prefix)]
        return [row for row in rows if version or row.key > after], truncated

    async def _own(self, key: str, page: Sequence[ObjectVersion]) -> Sequence[ObjectVersion]:
        """The versions of the key itself, given the first page of keys that begin with it.

        Raises:
            StorageUnavailableError: too many versions of this key, and too many keys beside it.
        """
        own = await self._read_own(key, "", page)
        if own is None:
            own = await self._find_own_by_folder(key, page)
        for delimiter in _DELIMITERS:
            if own is not None:
                break
            first, truncated = await self._page(key, "", delimiter)
            own = await self._read_own(key, delimiter, first, truncated=truncated)
        if own is None:
            raise StorageUnavailableError(
                "list versions: too many versions of a key and of keys beside it"
            )
        by_id = {version.version_id: version for version in own}
        return sorted(by_id.values(), key=order_of_version)

    async def _read_own(
        self, key: str, delimiter: str, page: Sequence[ObjectVersion], *, truncated: bool = True
    ) -> Sequence[ObjectVersion] | None:
        """The versions of the key, page by page; None if other keys fill the pages.

        Raises:
            StorageUnavailableError: the server lists the same versions again.
        """
        own: list[ObjectVersion] = []
        starts: set[str] = set()
        while truncated and not any(_is_behind(version.key[len(key) :]) for version in page):
            found = [version for version in page if version.key == key]
            if not found:
                return None
            own += found
            # The place of a delete marker among versions of the same second is not known.
            bodies = [version for version in found if not version.is_delete_marker]
            last = (bodies or found)[-1].version_id
            if last in starts:
                raise StorageUnavailableError("list versions: no progress")
            starts.add(last)
            page, truncated = await self._page(key, key, delimiter, last)
        return [*own, *(version for version in page if version.key == key)]

    async def _find_own_by_folder(
        self, key: str, page: Sequence[ObjectVersion]
    ) -> Sequence[ObjectVersion] | None:
        """The versions of the key, by their folder's name; None if the server cannot find them so.

        The folder lacks a version that was written before versioning was enabled. `page` has that
        one, because it precedes all others.
        """
        found, complete = await self._find_folder(key)
        if not found and self._finds_folders is None and self._known is not None:
            # No versions exist, or the server finds none this way: a known key shows which.
            self._finds_folders = bool((await self._find_folder(self._known.key))[0])
        if not complete or not (found or self._finds_folders):
            return None
        return [*(version for version in page if version.key == key), *found]

    async def _find_folder(self, key: str) -> tuple[Sequence[ObjectVersion], bool]:
        page, truncated = await self._fetch(key + _VERSIONS, "", "", "")
        found = [version for version in page if version.key == key]
        return found, not truncated or len(found) < len(page)


def _is_behind(rest: str) -> bool:
    """Whether the server lists a key with this rest after the folder with the key's versions."""
    return rest > _VERSIONS and rest[0] != _SLASH


def _left_out(prefix: str, after: str) -> list[str]:
    """The folders under the prefix that a listing after this key leaves out, in byte order."""
    return sorted(
        after[:at] + _SLASH
        for at in range(max(len(prefix), 1), len(after))
        if after[at] < _SLASH and after[at - 1] != _SLASH
    )


def _last_group(rows: Sequence[ObjectVersion], prefix: str) -> str:
    """The next character of the keys that the server collected last.

    Raises:
        StorageUnavailableError: there is no group, although the page is truncated.
    """
    characters = {version.key[len(prefix)] for version in rows if version.key != prefix}
    if not characters:
        raise StorageUnavailableError("list versions: no progress")
    return max(characters, key=lambda character: (character != _SLASH, character))


def _parts(
    rows: Sequence[ObjectVersion], prefix: str, group: str, start: str
) -> Iterator[ObjectVersion | str]:
    """What one page has whole, and then the prefixes to list instead of its last group."""
    if not group:
        yield from rows
        return
    for version in rows:
        character = version.key[len(prefix) :][:1]
        # Behind a group of siblings comes their folder, which is listed by itself.
        if character and character < group and (character != _SLASH or group > _SLASH):
            yield version
    if group == _SLASH:
        siblings = (prefix + character for character in _BEFORE_SLASH)
        # Whatever else there is, the server has it behind this folder.
        yield from (sibling for sibling in siblings if last_key_below(sibling) > start)
    yield prefix + group

"""Versions in byte order from a server whose pages of them lose keys (SPEC 8.5, 10).

A server that keeps keys in folders collects a page in the order of its folders, and continues after
the page's last key by its bytes. So it leaves out each key that its folders have later and that
sorts earlier: of `a/1` to `a/2000` and `a-b`, the second page no longer has `a-b`. And a listing
that starts after `a-b` leaves out the folder `a/`, which sorts behind it.

So a listing that is truncated is split by the next character, until no answer is; of a truncated
one, only the groups that precede the last one are used. A folder that a start would leave out is
listed by itself.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.entries import last_key_below
from keyturn_workers.storage.port import ObjectVersion

Fetch = Callable[[str, str, str], Awaitable[tuple[Sequence[ObjectVersion], bool]]]
"""Requests one page: prefix, the key after which to start, and a delimiter.

Returns the versions in the order of the port, and whether the page is truncated."""

_SLASH: Final = "/"
# The characters that sort before the slash.
_BEFORE_SLASH: Final = tuple(map(chr, range(1, ord(_SLASH))))
# Any of these makes one row of the keys that could hide a key itself.
_DELIMITERS: Final = ("/", "-", ".", " ", "_")
_VERSIONS: Final = ".versions"

_Versions = AsyncGenerator[ObjectVersion, None]


class VersionGroups:
    """Lists the versions in one bucket of such a server.

    Args:
        fetch: Makes one request.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch

    async def versions(self, prefix: str, after: str = "") -> _Versions:  # noqa: C901, PLR0912  # a merge
        """Yield the versions under a prefix whose keys sort after `after`, as the port orders them.

        Raises:
            StorageUnavailableError: there are more versions at or beside one key than the server
                shows at once.
        """
        if after and not after.startswith(prefix):
            if after > prefix:
                return
            after = ""
        # Listed by themselves, each before the first key that sorts behind it.
        folders = _left_out(prefix, after)
        taken = set(folders)
        page, truncated = await self._fetch(prefix, after, "")
        if truncated and not after:
            for version in await self._own(prefix, page):
                yield version
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
                page, truncated = await self._fetch(prefix, start, "")
        for folder in folders:
            async for version in self.versions(folder, after):
                yield version

    async def _own(self, key: str, page: Sequence[ObjectVersion]) -> Sequence[ObjectVersion]:
        """The versions of the key itself."""
        truncated = True
        for delimiter in ("", *_DELIMITERS):
            if delimiter:
                page, truncated = await self._fetch(key, "", delimiter)
            behind = (version.key[len(key) :] for version in page)
            passed = any(rest > _VERSIONS and rest[0] != _SLASH for rest in behind)
            if passed or not truncated:
                return [version for version in page if version.key == key]
        raise StorageUnavailableError("list versions: too many at or beside one key")


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
        StorageUnavailableError: there is none: all are versions of one key.
    """
    characters = {version.key[len(prefix)] for version in rows if version.key != prefix}
    if not characters:
        raise StorageUnavailableError("list versions: too many of one key")
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

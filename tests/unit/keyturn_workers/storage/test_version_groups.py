"""Versions come complete from a server whose pages of them lose keys (SPEC 8.5, 10)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage import ObjectVersion
from keyturn_workers.storage.version_groups import VersionGroups

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NOW = datetime(2026, 11, 26, tzinfo=UTC)


def version(key: str, number: int) -> ObjectVersion:
    return ObjectVersion(key, f"{number}", number == 0, False, 1, "e", _NOW)  # noqa: FBT003


class Server:
    """The model: a page is collected by folders, and continued by bytes."""

    suffix = ".versions"

    def __init__(self, counts: Mapping[str, int], most: int) -> None:
        self.counts = counts
        self.most = most
        self.requests = 0

    async def fetch(
        self, prefix: str, after: str, delimiter: str, version_id: str
    ) -> tuple[Sequence[ObjectVersion], bool]:
        self.requests += 1
        collected: list[tuple[str, int]] = []
        for key in sorted(self.counts, key=_path):
            first = int(version_id) + 1 if version_id and key == after else 0
            follows = key > after or first > 0
            # A key is found by its folder's name. If the page starts elsewhere, nothing is found.
            found = f"{key}{self.suffix}".startswith(prefix) and after[: len(prefix)] in (
                "",
                prefix,
            )
            if found and follows and not _is_left_out(key, after):
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                name = key if end < 0 else key[: end + 1]
                rows = range(first, self.counts[key]) if end < 0 else range(1)
                collected += [(name, n) for n in rows if end < 0 or (name, n) not in collected]
        collected = sorted(collected[: self.most + 1])
        shown = [version(key, n) for key, n in collected[: self.most] if key in self.counts]
        return shown, len(collected) > self.most

    def groups(self) -> VersionGroups:
        return VersionGroups(self.fetch)


class FindsNoFolders(Server):
    """A server that matches prefixes only with keys, not with folder names."""

    suffix = ""


def _is_left_out(key: str, after: str) -> bool:
    """A folder is skipped whole if its name sorts before the key to start after."""
    folders = [key[:at] for at in range(len(key)) if key[at] == "/"]
    return any(
        folder < after and not after.startswith(f"{folder}/") and folder != after
        for folder in folders
    )


def _path(key: str) -> list[str]:
    return f"{key}.versions".split("/")


_SEGMENTS = st.text("ab-.0", min_size=1, max_size=3)
_KEYS = st.lists(_SEGMENTS, min_size=1, max_size=3).map(lambda parts: "p/" + "/".join(parts))


@pytest.mark.slow
@given(
    counts=st.dictionaries(_KEYS, st.sampled_from([1, 2, 3, 16]), max_size=25),
    after=st.one_of(st.just(""), _KEYS),
    prefix=st.sampled_from(["p/", "p/a", "p/a/", "p", "p/a."]),
    most=st.sampled_from([4, 5, 7, 1000]),
    kind=st.sampled_from([Server, FindsNoFolders]),
)
async def test_every_version_once_in_byte_order(
    counts: Mapping[str, int], after: str, prefix: str, most: int, kind: type[Server]
) -> None:
    """Or an error that says that the server cannot show them; never a list with one missing."""
    groups = kind(counts, most).groups()
    wanted = [
        version(key, n)
        for key in sorted(counts)
        if key.startswith(prefix) and key > after
        for n in range(counts[key])
    ]
    try:
        listed = [row async for row in groups.versions(prefix, after)]
    except StorageUnavailableError:
        assert max(counts.values()) > most or (kind is FindsNoFolders and most < 1000)
        return
    assert listed == wanted


async def test_what_the_servers_own_pages_lose() -> None:
    """`p/a-b` comes behind the folder, and sorts before the last key of the first page."""
    keys = [f"p/a/{n:03}" for n in range(30)]
    server = Server(dict.fromkeys([*keys, "p/a-b"], 1), 20)
    first, truncated = await server.fetch("p/", "", "", "")
    rest, more = await server.fetch("p/", first[-1].key, "", "")
    assert truncated
    assert not more
    assert "p/a-b" not in {row.key for row in [*first, *rest]}
    listed = [row.key async for row in server.groups().versions("p/")]
    assert listed == ["p/a-b", *keys]


async def test_a_page_that_is_whole_costs_one_request() -> None:
    server = Server({f"p/a/{n}": 2 for n in range(100)}, 1000)
    assert len([row async for row in server.groups().versions("p/")]) == 200
    assert server.requests == 1


@pytest.mark.parametrize(
    "counts",
    [
        # More versions of one key than fit into a page.
        {"p/a": 23, "p/b": 2},
        {"p/a": 2, "p/a-1": 3, "p/a/1": 3, "p/b": 17},
        # The folder `p/a` and its siblings each fill a page, and hide whether `p/a` exists.
        {f"p/a{middle}{n}": 1 for middle in "/-." for n in range(9)},
        {"p/a": 3} | {f"p/a{middle}{n}": 1 for middle in "/-." for n in range(9)},
        # Also found by the prefix `p/a.`.
        {"p/a": 2} | {f"p/a.{n}": 1 for n in range(9)},
        {"p/a": 9, "p/a.": 2} | {f"p/a.{n}": 1 for n in range(9)},
    ],
)
async def test_more_than_a_page_at_or_beside_one_key(counts: Mapping[str, int]) -> None:
    listed = [row async for row in Server(counts, 5).groups().versions("p/")]
    assert listed == [version(key, n) for key in sorted(counts) for n in range(counts[key])]


@pytest.mark.parametrize("own", [0, 3])
async def test_without_folders_to_find_what_is_hidden_is_an_error(own: int) -> None:
    """The key is not taken to be missing."""
    counts = {"p/a": own} | {f"p/a{middle}{n}": 1 for middle in "/-" for n in range(9)}
    with pytest.raises(StorageUnavailableError):
        [row async for row in FindsNoFolders(counts, 5).groups().versions("p/")]


async def test_more_than_a_page_at_and_beside_one_key_is_an_error() -> None:
    counts = {"p/a": 9} | {f"p/a{middle}{n}": 1 for middle in "/-" for n in range(9)}
    with pytest.raises(StorageUnavailableError):
        [row async for row in Server(counts, 5).groups().versions("p/")]


async def test_a_server_that_repeats_the_versions_of_a_key_is_an_error() -> None:
    """It passes over the version to start after; asked again and again, it would never end."""

    class Repeating(Server):
        async def fetch(
            self, prefix: str, after: str, delimiter: str, version_id: str
        ) -> tuple[Sequence[ObjectVersion], bool]:
            assert self.requests < 9
            return await super().fetch(prefix, "" if version_id else after, delimiter, "")

    with pytest.raises(StorageUnavailableError, match="no progress"):
        [row async for row in Repeating({"p/a": 9}, 5).groups().versions("p/")]

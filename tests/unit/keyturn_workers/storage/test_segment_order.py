"""Listings of a server that sorts by segments come in byte order, from any key on (SPEC 10)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage import ObjectSummary
from keyturn_workers.storage.entries import is_after_all
from keyturn_workers.storage.segment_order import SegmentOrder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyturn_workers.storage.segment_order import Entries

_NOW = datetime(2026, 11, 26, tzinfo=UTC)


class Server:
    """The model: keys in folders, pages in the order of segments."""

    def __init__(
        self, keys: Iterable[str], delimiter: str, most: int = 1000, *, versioned: bool = False
    ) -> None:
        self.keys = list(keys)
        self.delimiter = delimiter
        self.most = most
        self.requests = 0
        self.versioned = versioned

    async def fetch(self, prefix: str, start: str, limit: int) -> tuple[Entries, str]:
        self.requests += 1
        assert start.startswith(prefix) or not start
        names = entries_of(self.keys, prefix, self.delimiter)
        ordered = sorted(names, key=self._path)
        following = [n for n in ordered if self._path(n) > segments(start) and n != start]
        size = min(limit, self.most)
        page: Entries = {name: _found(name, self.delimiter) for name in following[:size]}
        last = following[size - 1] if size < len(following) else ""
        return page, f"{last}.versions" if last and self._is_versioned(last) else last

    def _path(self, name: str) -> list[str]:
        """Where the server has an entry: a versioned object is a folder `….versions`."""
        return segments(f"{name}.versions" if self._is_versioned(name) else name)

    def _is_versioned(self, name: str) -> bool:
        return self.versioned and not (self.delimiter and name.endswith("/"))

    def order(self) -> SegmentOrder:
        return SegmentOrder(
            self.fetch,
            delimiter=self.delimiter,
            page_size=self.most,
            versioned=self.versioned,
        )


def _found(name: str, delimiter: str) -> ObjectSummary | None:
    is_folder = bool(delimiter) and name.endswith(delimiter)
    return None if is_folder else ObjectSummary(name, 1, "e", _NOW)


def segments(name: str) -> list[str]:
    return name.rstrip("/").split("/") if name else []


def entries_of(keys: Iterable[str], prefix: str, delimiter: str) -> set[str]:
    names = set()
    for key in keys:
        if key.startswith(prefix):
            end = key.find(delimiter, len(prefix)) if delimiter else -1
            names.add(key if end < 0 else key[: end + 1])
    return names


def expected(keys: Iterable[str], prefix: str, delimiter: str, after: str) -> list[str]:
    names = sorted(entries_of(keys, prefix, delimiter))
    return [name for name in names if name > after]


# Characters before the slash, the slash, and characters behind it.
_SEGMENTS = st.text("ab-.0", min_size=1, max_size=3)
_KEYS = st.lists(_SEGMENTS, min_size=1, max_size=3).map(lambda parts: "p/" + "/".join(parts))


def without_conflicts(keys: set[str]) -> set[str]:
    """No object is a folder as well: such a server has no place for both."""
    return {key for key in keys if not any(other.startswith(f"{key}/") for other in keys)}


@pytest.mark.slow
@given(
    keys=st.sets(_KEYS, max_size=25).map(without_conflicts),
    after=st.one_of(st.just(""), _KEYS, _KEYS.map(lambda key: f"{key}/")),
    prefix=st.sampled_from(["p/", "p/a", "p/a/", "p"]),
    delimiter=st.sampled_from(["", "/"]),
    most=st.sampled_from([1, 2, 3, 7, 1000]),
    versioned=st.booleans(),
)
async def test_every_entry_once_in_byte_order(
    keys: set[str], after: str, prefix: str, delimiter: str, most: int, *, versioned: bool
) -> None:
    """From any key on, that exists or not, and whatever the size of a page."""
    assume(not is_after_all(prefix, after))
    order = Server(keys, delimiter, most, versioned=versioned).order()
    page = await order.page(prefix, after, 1000)
    wanted = expected(keys, prefix, delimiter, after)
    names = [*(row.key for row in page.objects), *page.prefixes]
    assert sorted(names) == wanted
    assert page.next_after is None
    if not delimiter:
        assert [row.key async for row in order.objects(prefix, after)] == wanted


@pytest.mark.slow
@given(
    keys=st.sets(_KEYS, max_size=25).map(without_conflicts),
    delimiter=st.sampled_from(["", "/"]),
    limit=st.integers(1, 4),
    versioned=st.booleans(),
)
async def test_pages_adjoin(keys: set[str], delimiter: str, limit: int, *, versioned: bool) -> None:
    order = Server(keys, delimiter, limit + 1, versioned=versioned).order()
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await order.page("p/", after, limit)
        here = sorted([*(row.key for row in page.objects), *page.prefixes])
        assert len(here) <= limit
        names += here
        after = page.next_after
    assert names == expected(keys, "p/", delimiter, "")


# Short names of few characters before the slash: folders whose siblings are folders with siblings.
_CROWDED: Final = st.lists(st.text("a-.0", min_size=1, max_size=2), min_size=1, max_size=3).map(
    lambda parts: "p/" + "/".join(parts)
)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    keys=st.sets(_CROWDED, min_size=4, max_size=10).map(without_conflicts),
    prefix=st.sampled_from(["p/", "p/a"]),
    versioned=st.booleans(),
)
async def test_pages_of_one_key(keys: set[str], prefix: str, *, versioned: bool) -> None:
    """Every page ends between what is out of place and what it precedes."""
    order = Server(keys, "", 1, versioned=versioned).order()
    assert [row.key async for row in order.objects(prefix)] == expected(keys, prefix, "", "")


@pytest.mark.parametrize(
    ("keys", "prefix"),
    [
        (["p/a---", "p/a-/b", "p/a-0a.", "p/a.", "p/a/a/a."], "p/a"),
        (["p/--./0aa/--", "p/--/a0-/-.", "p/-/a-.", "p/-00/-", "p/."], "p/"),
    ],
)
async def test_siblings_of_siblings_are_listed_once(keys: list[str], prefix: str) -> None:
    """A folder's siblings are listed before its keys, and theirs with them: not again later."""
    order = Server(keys, "", 1).order()
    assert [row.key async for row in order.objects(prefix)] == sorted(keys)


async def test_what_a_filter_by_bytes_alone_would_miss() -> None:
    """The server's own pages after `p/a-1` have no `p/a/1`, which follows in byte order."""
    server = Server(["p/a/1", "p/a-1", "p/b"], "")
    page, _ = await server.fetch("p/", "p/a-1", 10)
    assert list(page) == ["p/b"]
    listed = [row.key async for row in server.order().objects("p/", "p/a-1")]
    assert listed == ["p/a/1", "p/b"]


@pytest.mark.parametrize("limit", [0, 1, 2])
async def test_a_limit(limit: int) -> None:
    order = Server(["p/a/1", "p/a-1", "p/b"], "").order()
    listed = [row.key async for row in order.objects("p/", "", limit)]
    assert listed == ["p/a-1", "p/a/1", "p/b"][:limit]


@pytest.mark.slow
async def test_a_large_listing_costs_few_requests_more() -> None:
    keys = [f"p/{folder}/{n:05}" for folder in ("docs", "images") for n in range(5000)]
    server = Server(keys, "")
    assert len([row async for row in server.order().objects("p/")]) == 10_000
    assert server.requests <= 10 + 3


async def test_an_empty_page_that_more_follow_is_an_error() -> None:
    async def fetch(_prefix: str, _start: str, _limit: int) -> tuple[Entries, str]:
        return {}, "p/a"

    order = SegmentOrder(fetch, delimiter="", page_size=10)
    with pytest.raises(StorageUnavailableError):
        await order.page("p/", "", 10)

"""Listings are complete and in byte order, even if no probe measured the order (SPEC 8.5, 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.entries import is_after_all
from tests.unit.keyturn_workers.storage.listed_bucket import ORDERS, ListedBucket, entries_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn_workers.storage.s3_http import S3Response
    from tests.unit.keyturn_workers.storage.listed_bucket import Order

_SEGMENTS = st.text("ab-.0", min_size=1, max_size=3)
_KEYS = st.lists(_SEGMENTS, min_size=1, max_size=3).map(lambda parts: "p/" + "/".join(parts))
# Only names without folders: a listing may then have many pages that do not show the order.
_FLAT = st.text("ab0", min_size=1, max_size=3).map(lambda name: f"p/{name}")
_PREFIXES = st.sampled_from(["p/", "p/a", "p/a/", "p", "", "p/a.", "p/0."])
_PAGES = st.sampled_from([1, 2, 3, 7, 1000])


def _without_conflicts(keys: set[str]) -> set[str]:
    """Drop objects that are also folders: a server with folders cannot store both."""
    return {key for key in keys if not any(other.startswith(f"{key}/") for other in keys)}


_SETS = st.builds(
    lambda flat, keys: _without_conflicts(flat | keys),
    st.sets(_FLAT, max_size=12),
    st.sets(_KEYS, max_size=12),
)
_AFTER = st.one_of(st.just(""), _KEYS, _FLAT, _KEYS.map(lambda key: f"{key}/"))


@given(
    keys=_SETS,
    order=st.sampled_from(ORDERS),
    after=_AFTER,
    prefix=_PREFIXES,
    page_keys=_PAGES,
    limit=st.sampled_from([None, 0, 1, 5]),
    measured=st.booleans(),
)
async def test_every_object_once_in_byte_order(
    keys: set[str],
    order: Order,
    after: str,
    prefix: str,
    page_keys: int,
    limit: int | None,
    *,
    measured: bool,
) -> None:
    """From any key on, for any order of the server and any size of a page."""
    assume(not is_after_all(prefix, after))
    bucket = ListedBucket(keys, order, page_keys)
    storage = bucket.storage(by_segment=bucket.by_segment if measured else None)
    listed = [row.key async for row in storage.list(prefix, after=after, limit=limit)]
    wanted = sorted(key for key in keys if key.startswith(prefix) and key > after)
    assert listed == wanted[:limit]
    assert storage.capabilities.listings_by_segment in (None, bucket.by_segment)


@pytest.mark.slow
@given(
    keys=_SETS,
    order=st.sampled_from(ORDERS),
    prefix=_PREFIXES,
    page_keys=_PAGES,
    limit=st.integers(1, 4),
    delimiter=st.sampled_from(["", "/"]),
    measured=st.booleans(),
)
async def test_pages_of_entries_adjoin(
    keys: set[str],
    order: Order,
    prefix: str,
    page_keys: int,
    limit: int,
    delimiter: str,
    *,
    measured: bool,
) -> None:
    bucket = ListedBucket(keys, order, page_keys)
    storage = bucket.storage(by_segment=bucket.by_segment if measured else None)
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await storage.list_entries(prefix, delimiter=delimiter, after=after, limit=limit)
        names += sorted([*(row.key for row in page.objects), *page.prefixes])
        after = page.next_after
    assert names == sorted(entries_of(keys, prefix, delimiter))


@pytest.mark.slow
@given(
    keys=st.one_of(_SETS, st.sets(_FLAT, max_size=12)),
    gone=st.sets(_KEYS, max_size=5),
    order=st.sampled_from(ORDERS),
    after=_AFTER,
    prefix=_PREFIXES,
    page_keys=st.sampled_from([3, 7, 20, 1000]),
    enrolled=st.booleans(),
)
async def test_every_version_once_in_byte_order(
    keys: set[str],
    gone: set[str],
    order: Order,
    after: str,
    prefix: str,
    page_keys: int,
    *,
    enrolled: bool,
) -> None:
    """Or an error if the server cannot show them all, but never an incomplete list."""
    assume(not is_after_all(prefix, after))
    bucket = ListedBucket(_without_conflicts(keys | gone), order, page_keys)
    bucket.deleted = gone
    bucket.keys |= {".keyturn/keyrings/p.json"} if enrolled else set()
    bucket.versions_per_key = 2
    wanted = sorted(key for key in bucket.keys if key.startswith(prefix) and key > after)
    try:
        rows = [row async for row in bucket.storage().list_versions(prefix, after=after)]
    except StorageUnavailableError:
        assert page_keys < 1000
        assert bucket.by_segment or not enrolled
        return
    assert [(row.key, row.version_id) for row in rows] == [(k, v) for k in wanted for v in "01"]


@pytest.mark.parametrize("after", ["p/a-1", "p/a"])
async def test_what_the_order_of_bytes_alone_would_miss(after: str) -> None:
    """The server's pages after `p/a-1` have no `p/a/1`, and nothing on them is out of order."""
    keys = {"p/a/1", "p/a/2", "p/b"}
    as_bytes = ListedBucket(keys, "segments").storage(by_segment=False)
    assert [row.key async for row in as_bytes.list("p/", after=after)] == ["p/b"]
    storage = ListedBucket(keys, "segments").storage()
    assert [row.key async for row in storage.list("p/", after=after)] == ["p/a/1", "p/a/2", "p/b"]
    assert storage.capabilities.listings_by_segment


@pytest.mark.parametrize("order", ORDERS)
async def test_a_prefix_that_also_matches_a_folder_of_versions(order: Order) -> None:
    """For `p/a.`, a server with such folders also finds `p/a`, or a folder that does not exist."""
    storage = ListedBucket({"p/a", "p/a.b", "p/a.v/1"}, order).storage()
    assert [row.key async for row in storage.list("p/a.")] == ["p/a.b", "p/a.v/1"]
    page = await storage.list_entries("p/a.", delimiter="/")
    assert ([row.key for row in page.objects], page.prefixes) == (["p/a.b"], ["p/a.v/"])


@pytest.mark.parametrize("order", ORDERS)
async def test_no_request_has_a_prefix_that_is_too_long_for_a_key(order: Order) -> None:
    """A server may refuse one. Nothing is below the last possible key before `p/a.`."""
    for keys in (["p/ab"], ["p/a.b", "p/a.v/1"]):
        listed = [row.key async for row in _Strict(keys, order).storage().list("p/a.")]
        assert listed == [key for key in keys if key.startswith("p/a.")]


class _Strict(ListedBucket):
    """Refuses prefixes that no key can have."""

    async def call(self, *request: object, query: str, **fields: Any) -> S3Response:
        (prefix,) = parse_qs(query).get("prefix", [""])
        assert len(prefix.encode()) <= 1024
        return await super().call(*request, query=query, **fields)


@pytest.mark.parametrize("order", ORDERS)
async def test_a_short_listing_costs_one_request(order: Order) -> None:
    bucket = ListedBucket({"p/a!b", "p/a/b", "p/a-1/x"}, order)
    assert [row.key async for row in bucket.storage().list("p/", limit=1000)] == [
        "p/a!b",
        "p/a-1/x",
        "p/a/b",
    ]
    assert bucket.requests == {"objects": 1}
    assert len([row async for row in bucket.storage().list_versions("p/")]) == 3
    assert bucket.requests == {"objects": 1, "versions": 1}


@pytest.mark.parametrize(
    ("order", "more"),
    [
        # A page that shows the order, the test request, and with folders also that page again.
        ("bytes", {"p/a/{:04}": 2, "p/{:04}.txt": 3, "p/{:04}": 6}),
        ("segments", {"p/a/{:04}": 5}),
    ],
)
async def test_what_finding_out_costs(order: Order, more: Mapping[str, int]) -> None:
    """A few requests, once; if no name shows the order, one small request for each page."""
    for form, requests in more.items():
        bucket = ListedBucket(map(form.format, range(700)), order, 100)
        storage = bucket.storage()
        for _ in range(2):
            assert len([row async for row in storage.list("p/")]) == 700
        listings, again = 7, 7
        if form == "p/{:04}":
            again += requests
        assert bucket.requests["objects"] == listings + again + requests


@pytest.mark.parametrize("order", ["bytes", "segments"])
@pytest.mark.parametrize("name", ["p/a/1", "p/a-1"])
async def test_a_name_that_disappears_shows_nothing(order: Order, name: str) -> None:
    """A name that the test does not list proves nothing if it is gone, so another is tested."""
    bucket = _Shrinking({name, "p/b/1", "p/c"}, order, 2)
    bucket.leaves = {2: name}
    storage = bucket.storage()
    listed = [row.key async for row in storage.list("p/", limit=2)]
    assert listed == ["p/b/1", "p/c"]
    assert storage.capabilities.listings_by_segment in (None, bucket.by_segment)


async def test_names_that_disappear_one_by_one_are_an_error() -> None:
    keys = [f"p/{number}/x" for number in range(9)]
    bucket = _Shrinking({*keys, "p/9", "p/99"}, "segments", 3)
    bucket.leaves = dict(zip(range(2, 100, 3), keys, strict=False))
    with pytest.raises(StorageUnavailableError):
        [row async for row in bucket.storage().list("p/")]


class _Shrinking(ListedBucket):
    """Loses an object before each of these requests."""

    leaves: Mapping[int, str]

    async def call(self, *request: object, **fields: Any) -> S3Response:
        self.keys.discard(self.leaves.get(self.requests["objects"] + 1, ""))
        return await super().call(*request, **fields)

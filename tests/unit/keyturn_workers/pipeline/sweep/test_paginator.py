"""Pages touch each other and cover every key, whatever the project holds (SPEC 8.5)."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.core.sweep_record import KeyRange, OpenPage, Round
from keyturn_workers.pipeline.sweep.page_object_keys import list_batches
from keyturn_workers.pipeline.sweep.paginator import MAX_OPEN_PAGES, Paginator
from tests.unit.keyturn_workers.pipeline.sweep.records import round_of
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterable

KEYS = st.sets(st.text("ab/-9zé\U0001f600", min_size=1, max_size=4), max_size=60)


def bucket(keys: Iterable[str], *, by_path: bool = False) -> MemoryStorage:
    storage = MemoryStorage(capabilities=Capabilities(lists_by_path=by_path))
    for key in keys:
        storage.plant(f"acme/{key}", b"", Headers({}))
    # Neighbors, which no page of this project may show.
    for other in ("acm/k", "acme-2/k", "acmf/k", ".keyturn/keyrings/acme.json"):
        storage.plant(other, b"", Headers({}))
    return storage


async def all_pages(paginator: Paginator, of: Round) -> tuple[list[OpenPage], int]:
    """Every page and the number of keys, in as many steps as it takes; each is proven at once."""
    pages: list[OpenPage] = []
    while not of.complete:
        of = await paginator.extend("acme", of)
        assert len(of.open_pages) <= MAX_OPEN_PAGES
        pages += of.open_pages
        of = replace(of, open_pages=())
    return pages, of.keys


async def keys_of(storage: MemoryStorage, page: OpenPage, size: int = 3) -> list[str]:
    rows = list_batches(storage, "acme", page.after, page.last, versioned=False, size=size)
    return [row.key async for batch in rows for row in batch]


@settings(max_examples=60, deadline=None)
@given(keys=KEYS, page_keys=st.integers(1, 7), borders=KEYS, by_path=st.booleans())
async def test_every_key_is_in_exactly_one_page(
    keys: set[str], page_keys: int, borders: set[str], *, by_path: bool
) -> None:
    """By one range of keys or by several, wherever their borders are, in either order."""
    storage = bucket(keys, by_path=by_path)
    edges = ["", *sorted(borders, key=storage.capabilities.order)[:5], ""]
    ranges = tuple(KeyRange(start, end) for start, end in itertools.pairwise(edges))
    pages, count = await all_pages(Paginator(storage, page_keys), round_of(ranges=ranges))
    found = [key for page in pages for key in await keys_of(storage, page)]
    assert sorted(found, key=str.encode) == sorted(keys, key=str.encode)
    assert len({page.page for page in pages}) == len(pages)
    assert count == len(keys)


@settings(max_examples=30, deadline=None)
@given(keys=KEYS, later=KEYS, page_keys=st.integers(1, 7), by_path=st.booleans())
async def test_a_key_that_comes_after_planning_is_in_a_page_too(
    keys: set[str], later: set[str], page_keys: int, *, by_path: bool
) -> None:
    """Pages are ranges without gaps, not lists: what is uploaded meanwhile is inspected."""
    storage = bucket(keys, by_path=by_path)
    pages, _ = await all_pages(Paginator(storage, page_keys), round_of())
    for key in later:
        storage.plant(f"acme/{key}", b"", Headers({}))
    found = [key for page in pages for key in await keys_of(storage, page)]
    assert sorted(found, key=str.encode) == sorted(keys | later, key=str.encode)


async def test_ranges_of_the_wrong_order_would_miss_a_key() -> None:
    """The broken variant: a page ends where a key sorts behind its end by bytes, not by paths."""
    storage = bucket(["a/x", "a-b", "b"], by_path=True)
    page = OpenPage(page=0, after="", last="a-b")
    assert await keys_of(storage, page) == ["a/x", "a-b"]
    storage.capabilities = Capabilities()
    assert await keys_of(storage, page) == []


async def test_an_empty_project_has_one_page() -> None:
    pages, _ = await all_pages(Paginator(bucket(()), 5), round_of())
    assert [(page.after, page.last) for page in pages] == [("", "")]


@pytest.mark.slow
@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize(
    "names",
    [
        pytest.param([f"{n:06}" for n in range(1200)], id="numbered"),
        pytest.param([f"{n * 7919 % 4096:03x}/{n}" for n in range(1200)], id="by hash"),
        pytest.param([f"logs/2026/{n:05}" for n in range(1200)], id="with a long prefix"),
        pytest.param([f"{n % 30}{'-/'[n % 2]}{n}" for n in range(1200)], id="beside folders"),
        pytest.param(["\U0001f600" * (n // 30 + 1) + str(n) for n in range(1200)], id="not ASCII"),
    ],
)
async def test_a_large_project_is_listed_by_ranges_that_cover_it(
    names: list[str], *, by_path: bool
) -> None:
    storage = bucket(names, by_path=by_path)
    paginator = Paginator(storage, 20)
    ranges = await paginator.key_ranges("acme")
    assert (ranges[0].through, ranges[-1].end) == ("", "")
    for one, other in itertools.pairwise(ranges):
        assert one.end == other.through
    pages, count = await all_pages(paginator, round_of(ranges=ranges))
    found = [key for page in pages for key in await keys_of(storage, page, 50)]
    assert sorted(found) == sorted(names)
    assert count == len(names)


async def test_a_small_project_has_one_range() -> None:
    assert await Paginator(bucket("abc"), 20).key_ranges("acme") == (KeyRange(),)


async def test_names_that_spread_behind_many_alike_are_listed_in_parallel_too() -> None:
    """The early keys alone would show no border beyond their own prefix."""
    storage = bucket([*(f"a/{n:04}" for n in range(500)), *(f"{first}/1" for first in "bcdefg")])
    ranges = await Paginator(storage, 20).key_ranges("acme")
    assert len({each.through[:1] for each in ranges}) > 3


async def test_a_key_that_all_others_begin_with_hinders_no_listing_by_ranges() -> None:
    storage = bucket(["a", *(f"a{n:03}" for n in range(500))])
    assert len(await Paginator(storage, 20).key_ranges("acme")) > 1


async def test_names_that_spread_are_listed_in_parallel() -> None:
    storage = bucket([f"{n * 7919 % 4096:03x}/{n}" for n in range(1200)])
    assert len(await Paginator(storage, 20).key_ranges("acme")) > 2

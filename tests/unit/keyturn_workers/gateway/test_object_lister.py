"""Pages of a project's objects, against a model of what they must show (SPEC 9.3)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.crypto import new_dek
from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import byte_order, is_object_key, object_s3_key
from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.gateway import listing
from keyturn_workers.gateway.listing import (
    HEADS_AT_ONCE,
    LISTINGS_AT_ONCE,
    ListingQuery,
    ObjectLister,
)
from keyturn_workers.storage import Capabilities, Headers
from tests.unit.keyturn_workers.factories import keyring, v0_metadata, v0_ring
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.identifiers import Order
    from keyturn_workers.gateway.listing import Page
    from keyturn_workers.keyring import Keyring
    from keyturn_workers.storage import ObjectHead

RING = keyring()
TOMBSTONE = Headers({"enc-algo": "deleted"})
PLAIN = Headers({})
SEALED = bytes(72)


class Watched(MemoryStorage):
    """A bucket that records which objects were looked at, and how many at once."""

    def __init__(self, *, by_path: bool = False) -> None:
        super().__init__(capabilities=Capabilities(lists_by_path=by_path))
        self.looked_at: list[str] = []
        self.at_once = 0
        self.most_at_once = 0

    async def head(self, key: str) -> ObjectHead:
        self.looked_at.append(key)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        try:
            return await super().head(key)
        finally:
            self.at_once -= 1


def holding(
    objects: Mapping[str, bytes], headers: Headers = TOMBSTONE, *, by_path: bool = False
) -> Watched:
    """A bucket with these objects of `acme`; what has no bytes has these headers."""
    storage = Watched(by_path=by_path)
    for key, body in objects.items():
        storage.plant(object_s3_key("acme", key), body, PLAIN if body else headers)
    return storage


async def list_page(storage: MemoryStorage, ring: Keyring = RING, **query: str | int) -> Page:
    return await ObjectLister(storage).list(ring, replace(ListingQuery(), **query))  # type: ignore[arg-type]


def names(page: Page, order: Order = byte_order) -> list[str]:
    return sorted([*(each.key for each in page.objects), *page.prefixes], key=order)


# The model.

_KEYS = st.text(st.sampled_from("ab/-0.~ü\U0010ffff\x01"), min_size=1, max_size=5)


def entries_of(
    objects: Mapping[str, bytes], prefix: str, delimiter: str, after: str, order: Order
) -> list[str]:
    """Every entry once, in order: a folder with only deleted objects is one, too."""
    found = set()
    for key, body in objects.items():
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        entry = key if end < 0 else key[: end + 1]
        is_folder = end >= 0
        if key.startswith(prefix) and is_object_key(entry.removesuffix("/") if is_folder else key):
            found |= {entry} if is_folder or body else set()
    return sorted((e for e in found if not after or order(e) > order(after)), key=order)


@settings(max_examples=40)
@given(
    st.dictionaries(_KEYS, st.sampled_from([b"", SEALED]), max_size=12),
    _KEYS | st.just(""),
    st.sampled_from(["", "/"]),
    st.just("") | _KEYS,
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
)
def test_all_pages_together_are_the_listing(
    objects: dict[str, bytes],
    prefix: str,
    delimiter: str,
    after: str,
    limit: int,
    page_keys: int,
    max_listings: int,
    by_path: bool,  # drawn by position
) -> None:
    """Each entry exactly once, in the storage's order, whatever the pages' ends are."""
    storage = holding(objects, by_path=by_path)
    order = storage.capabilities.order
    storage.page_keys = page_keys

    async def pages() -> list[str]:
        listed: list[str] = []
        following: str | None = after
        while following is not None:
            page = await list_page(
                storage, prefix=prefix, delimiter=delimiter, after=following, limit=limit
            )
            assert len(names(page)) <= limit
            listed += names(page, order)
            assert page.next_after is None or order(page.next_after) > order(following)
            following = page.next_after
        return listed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(listing, "MAX_LISTINGS", max_listings)
        assert asyncio.run(pages()) == entries_of(objects, prefix, delimiter, after, order)


# What is looked at.


async def test_only_objects_without_bytes_are_looked_at() -> None:
    storage = holding({"a": SEALED, "b": b"", "c": b"x", "d/e": b""})
    page = await list_page(storage)
    assert [(each.key, each.size_bytes) for each in page.objects] == [("a", 0), ("c", None)]
    assert storage.looked_at == ["acme/b", "acme/d/e"]
    storage.looked_at.clear()
    assert (await list_page(storage, delimiter="/")).prefixes == ["d/"]
    assert storage.looked_at == ["acme/b"]


async def test_an_empty_object_that_is_no_tombstone_is_listed() -> None:
    """Another writer made it: it is there, and no read opens it."""
    page = await list_page(holding({"a": b""}, PLAIN))
    assert [(each.key, each.size_bytes) for each in page.objects] == [("a", None)]


async def test_a_project_that_allows_other_objects_is_listed_by_what_they_are() -> None:
    dek = new_dek()
    storage = holding({"a": SEALED, "b": b"x", "gone": b""})
    storage.plant("acme/v0", bytes(128), Headers(v0_metadata(dek, dek)))
    for ring, sizes in (
        (replace(RING, plaintext_allowed=True), {"a": 72, "b": 1, "v0": None}),
        (v0_ring(RING), {"a": None, "b": None, "v0": 100}),
    ):
        storage.looked_at.clear()
        page = await list_page(storage, ring)
        assert {each.key: each.size_bytes for each in page.objects} == sizes
        assert len(storage.looked_at) == 4


async def test_keys_that_are_no_object_keys_are_not_listed() -> None:
    foreign = ["", "/", "a/", "a//b", "../up", "\x01", "f\x7f/x", "a" * 901, "./x"]
    storage = holding({"a/b": SEALED, **dict.fromkeys(foreign, b"")})
    storage.plant(".keyturn/keyrings/acme.json", b"{}", PLAIN)
    storage.plant("acme-2/x", SEALED, PLAIN)
    assert names(await list_page(storage)) == ["a/b"]
    assert names(await list_page(storage, delimiter="/")) == ["a/"]
    assert names(await list_page(storage, delimiter="/", prefix="a/")) == ["a/b"]
    assert storage.looked_at == []


async def test_a_prefix_that_no_key_has_costs_no_request() -> None:
    storage = holding({"a": SEALED})
    for prefix in ("../acme/", "/", "a//"):
        page = await list_page(storage, prefix=prefix)
        assert (names(page), page.next_after) == ([], None)
    assert not storage.calls["list_entries"]


# Bounds.


async def test_a_page_of_tombstones_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page costs a bounded number of requests, and the next one continues there."""
    monkeypatch.setattr(listing, "MAX_HEADS", 20)
    storage = holding({f"{number:03}": b"" for number in range(50)} | {"x": SEALED})
    found, looked_at = [], []
    following: str | None = ""
    while following is not None:
        storage.looked_at.clear()
        page = await list_page(storage, after=following, limit=15)
        found.append((names(page), page.next_after))
        looked_at.append(len(storage.looked_at))
        following = page.next_after
    assert found == [([], "019"), ([], "039"), (["x"], None)]
    assert looked_at == [20, 20, 10]


async def test_a_page_needs_a_bounded_number_of_listings() -> None:
    storage = holding({f"{number:03}": b"" for number in range(50)})
    page = await list_page(storage, limit=1)
    assert (names(page), page.next_after) == ([], "007")
    assert storage.calls["list_entries"] == 8


async def test_heads_are_sent_a_few_at_a_time() -> None:
    storage = holding({f"{number:03}": b"" for number in range(200)})
    rings = [keyring(project=f"p{number}") for number in range(6)]
    for ring in rings:
        for number in range(200):
            storage.plant(object_s3_key(ring.project, f"{number:03}"), b"", TOMBSTONE)
    lister = ObjectLister(storage)
    await lister.list(RING, ListingQuery())
    assert storage.most_at_once == 16
    await asyncio.gather(*(lister.list(ring, ListingQuery()) for ring in rings))
    assert storage.most_at_once == HEADS_AT_ONCE == 64


async def test_the_heads_of_one_project_do_not_delay_those_of_another() -> None:
    """A project with many pages at once would have nearly all of the gateway's HEAD requests."""
    storage = holding({f"{number:03}": b"" for number in range(200)})
    storage.plant(object_s3_key("other", "a"), b"", PLAIN)
    lister = ObjectLister(storage)
    pages = [asyncio.create_task(lister.list(RING, ListingQuery())) for _ in range(20)]
    for _ in range(30):
        await asyncio.sleep(0)
    began = len(storage.looked_at)
    assert began
    assert names(await lister.list(keyring(project="other"), ListingQuery())) == ["a"]
    assert storage.looked_at.index("other/a") - began <= 64
    assert storage.most_at_once <= 17
    assert all(page.next_after is None for page in await asyncio.gather(*pages))
    assert len(storage.looked_at) == 20 * 200 + 1


async def test_pages_are_read_a_few_at_a_time() -> None:
    storage = holding({})
    lister, at_once, most_at_once = ObjectLister(storage), 0, 0
    rings = [keyring(project=f"p{number}") for number in range(5)]

    async def counted() -> None:
        nonlocal at_once, most_at_once
        at_once += 1
        most_at_once = max(most_at_once, at_once)
        await asyncio.sleep(0)
        at_once -= 1

    for projects, most in ((rings[:1], 4), (rings, 16)):
        for _ in range(40):
            storage.before_next("list_entries", counted)
        pages = [lister.list(ring, ListingQuery()) for ring in projects * (40 // len(projects))]
        assert len(await asyncio.gather(*pages)) == 40
        assert (at_once, most_at_once) == (0, most)
    assert most_at_once == LISTINGS_AT_ONCE


# Failures.


async def test_an_object_that_disappears_meanwhile_is_not_listed() -> None:
    storage = holding({"a": b"", "b": SEALED})
    storage.fail_next("head", MissingError("NoSuchKey"))
    assert names(await list_page(storage)) == ["b"]


@pytest.mark.parametrize("operation", ["list_entries", "head"])
@pytest.mark.parametrize("error", [StorageUnavailableError("down"), RefusedError("403")])
async def test_a_failure_of_the_storage_is_one_of_the_page(
    operation: str, error: Exception
) -> None:
    storage = holding({"a": b"", "b": b""})
    storage.fail_next(operation, error)
    with pytest.raises(StorageUnavailableError):
        await list_page(storage)
    assert storage.at_once == 0

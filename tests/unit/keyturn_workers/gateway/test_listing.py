"""Listings: their parameters, their pages, and what is sent (SPEC 1, 4, 9.3)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.errors import MalformedRequestError, StorageUnavailableError
from keyturn.identifiers import byte_order, is_object_key, object_s3_key, parse_time
from keyturn_workers.core.errors import MissingError, RefusedError
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.gateway import listing
from keyturn_workers.gateway.listing import (
    HEADS_AT_ONCE,
    LISTINGS_AT_ONCE,
    ListingQuery,
    ObjectLister,
    encrypted_size,
    is_tombstone,
    needs_head,
    size_by_metadata,
)
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    sealed_object,
)
from tests.unit.keyturn_workers.gateway.bench import KEY, NEW_API_KEY, TARGET, Bench
from tests.unit.keyturn_workers.gateway.serving import Connection, Serving
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.identifiers import Order
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.storage_values import ObjectHead
    from keyturn_workers.gateway.listing import Page

# --- The parameters of a list request, and the sizes of a listing (SPEC 4, 9.3)


RING = keyring()
DESIRED = desired_state(RING, MASTER_KEYS)
PLAINTEXT = replace(RING, plaintext_allowed=True)


@pytest.mark.parametrize(
    ("query", "parsed"),
    [
        (b"", ListingQuery()),
        (b"prefix=&delimiter=&after=", ListingQuery()),
        (b"prefix=a%2Fb+c%2B%25&delimiter=/&after=a/%01&limit=1", None),
        (b"limit=1000", ListingQuery(limit=1000)),
        (b"prefix=" + b"%C3%BC" * 450, ListingQuery("ü" * 450)),
        (b"after=" + b"%C3%BC" * 512, ListingQuery(after="ü" * 512)),
    ],
)
def test_a_query_is_parsed(query: bytes, parsed: ListingQuery | None) -> None:
    expected = parsed or ListingQuery("a/b c+%", "/", "a/\x01", 1)
    assert ListingQuery.parse(query) == expected


@pytest.mark.parametrize(
    "query",
    [
        b"limit=0",
        b"limit=1001",
        b"limit=01",
        b"limit=-1",
        b"limit=",
        b"limit=1.0",
        "limit=\u0661".encode(),
        b"limit=%D9%A1",
        b"delimiter=%2F%2F",
        b"delimiter=a",
        b"prefix=a&prefix=a",
        b"after=a&after=b",
        b"other=1",
        b"Prefix=a",
        b"=",
        b"prefix=%FF",
        b"prefix=%ED%A0%80",
        b"after=%C3",
        b"prefix=\xc3\xbc",
        b"prefix=%00",
        b"prefix=a%0Ab",
        b"prefix=%C2%85",
        b"prefix=" + b"a" * 901,
        b"after=" + b"%C3%BC" * 512 + b"a",
        b"&".join(b"a%d=" % number for number in range(17)),
    ],
)
def test_a_malformed_query_is_refused(query: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        ListingQuery.parse(query)


@pytest.mark.parametrize(
    ("prefix", "is_empty"),
    [
        ("", False),
        ("a", False),
        ("a/", False),
        ("..a", False),
        ("a/..", False),
        (".", False),
        ("/", True),
        ("../other/", True),
        ("a//", True),
        ("a/./b", True),
        ("a/../b", True),
    ],
)
def test_a_prefix_that_no_key_has(prefix: str, *, is_empty: bool) -> None:
    query = ListingQuery.parse(f"prefix={quote(prefix, safe='')}".encode())
    assert query.is_empty is is_empty


def test_only_an_object_without_bytes_is_looked_at_unless_the_project_allows_others() -> None:
    assert [needs_head(RING, size) for size in (0, 1, 72)] == [True, False, False]
    assert [needs_head(PLAINTEXT, size) for size in (0, 1, 72)] == [True, True, True]


@pytest.mark.parametrize("size", [0, 1, 16383, 16384, 16385, 100_000])
def test_the_size_of_an_encrypted_object(size: int) -> None:
    wraps, body = sealed_object(DESIRED, "k", bytes(size))
    assert encrypted_size(len(body)) == size
    for ring in (RING, PLAINTEXT):
        assert size_by_metadata(ring, enc(wraps), len(body)) == size


@pytest.mark.parametrize("stored_bytes", [0, 1, 71, 56 + 16400 + 15])
def test_no_encrypted_object_has_this_size(stored_bytes: int) -> None:
    assert encrypted_size(stored_bytes) is None
    metadata = enc(sealed_object(DESIRED, "k")[0])
    assert size_by_metadata(RING, metadata, stored_bytes) is None


def test_the_size_of_plaintext() -> None:
    assert size_by_metadata(PLAINTEXT, {"author": "kim"}, 5) == 5
    assert size_by_metadata(RING, {}, 5) is None


@pytest.mark.parametrize(
    "metadata",
    [
        {"enc-algo": "AES-256-GCM", "enc-dek-user": "x"},
        {"enc-dek-user": "x"},
        {"enc-algo": "Cobblestone-256"},
    ],
)
def test_what_no_read_would_open_has_no_size(metadata: dict[str, str]) -> None:
    assert size_by_metadata(PLAINTEXT, metadata, 128) is None


def test_a_tombstone_is_one_by_its_algorithm_alone() -> None:
    assert is_tombstone(deleted(DESIRED, "k"))
    assert is_tombstone({"enc-algo": "deleted"})
    assert not is_tombstone({})
    assert not is_tombstone(enc(sealed_object(DESIRED, "k")[0]))


# --- Pages of a project's objects, against a model of what they must show (SPEC 9.3)


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


async def test_a_project_that_allows_plaintext_is_listed_by_what_its_objects_are() -> None:
    storage = holding({"a": SEALED, "b": b"x", "gone": b""})
    storage.plant("acme/odd", bytes(128), Headers({"enc-algo": "AES-256-GCM"}))
    page = await list_page(storage, PLAINTEXT)
    sizes = {each.key: each.size_bytes for each in page.objects}
    assert sizes == {"a": 72, "b": 1, "odd": None}
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


# --- Listings over HTTP (SPEC 9.1, 9.3, 12)


LIST = "/v1/projects/acme/objects"


def _serving(**more: Any) -> Serving:
    serving = Serving(**more)
    for key in ("a/1", "a/2", "b", "ü + %"):
        serving.bench.plant_sealed(b"hello", key)
    serving.bench.plant({"enc-algo": "deleted"}, b"", "gone")
    return serving


async def test_a_page_is_served() -> None:
    serving = _serving()
    got = await serving.ask(target=LIST)
    head = await serving.bench.storage.head(object_s3_key("acme", "b"))
    assert got.status == 200
    assert got.headers["content-type"] == "application/json"
    assert got.headers["cache-control"] == "no-store"
    document = got.document()
    assert set(document) == {"objects", "prefixes", "next"}
    assert [each["key"] for each in document["objects"]] == ["a/1", "a/2", "b", "ü + %"]
    listed = document["objects"][2]
    assert (set(listed), listed["key"], listed["size"]) == ({"key", "size", "changed_at"}, "b", 5)
    assert parse_time(listed["changed_at"]) == head.last_modified
    assert (document["prefixes"], document["next"]) == ([], None)
    assert serving.counted("requests_total", route="listing", method="GET", status="200") == 1


async def test_a_rotation_moves_changed_at_and_not_last_modified() -> None:
    """A listing reads no metadata, so it cannot show when the content was stored."""
    serving = Serving()
    wraps, body = sealed_object(serving.bench.desired, KEY, b"content")
    stored_at = {"enc-stored-at": "2026-11-02T03:04:05.600000Z"}  # of the first rewrap
    serving.bench.plant(enc(wraps) | stored_at, body)
    rewrapped = await serving.bench.storage.head(TARGET)
    (listed,) = (await serving.ask(target=LIST)).document()["objects"]
    assert parse_time(listed["changed_at"]) == rewrapped.last_modified
    read = await serving.ask("HEAD")
    assert read.headers["last-modified"] == "Mon, 02 Nov 2026 03:04:05 GMT"


async def test_pages_follow_one_another() -> None:
    serving = _serving()
    first = (await serving.ask(target=f"{LIST}?delimiter=/&limit=2")).document()
    assert [each["key"] for each in first["objects"]] == ["b"]
    assert (first["prefixes"], first["next"]) == (["a/"], "b")
    rest = (await serving.ask(target=f"{LIST}?delimiter=%2F&after=b")).document()
    assert [each["key"] for each in rest["objects"]] == ["ü + %"]
    within = (await serving.ask(target=f"{LIST}?prefix=a/&after=a/1")).document()
    assert [each["key"] for each in within["objects"]] == ["a/2"]


@pytest.mark.parametrize("query", ["limit=0", "delimiter=x", "prefix=a&prefix=b", "key=a"])
async def test_a_malformed_query_is_a_400(query: str) -> None:
    got = await _serving().ask(target=f"{LIST}?{query}")
    assert (got.status, got.document()["code"]) == (400, "malformed_request")


@pytest.mark.parametrize(
    ("target", "key"),
    [
        (LIST, None),
        (LIST, NEW_API_KEY),
        ("/v1/projects/other/objects", NEW_API_KEY),
        ("/v1/projects/.keyturn/objects", NEW_API_KEY),
        # Not even a malformed query is reported to a caller without the key.
        (f"{LIST}?limit=0", NEW_API_KEY),
    ],
)
async def test_without_the_projects_key_nothing_is_read(target: str, key: str | None) -> None:
    serving = _serving()
    got = await serving.ask(target=target, key=key)
    assert (got.status, got.document()["code"]) == (401, "unauthorized")
    assert not serving.bench.storage.calls["list_entries"]


async def test_a_project_lists_only_its_own_objects() -> None:
    """A prefix is never resolved, and keys of a longer project id are not under it."""
    serving = _serving()
    for key in ("acme-2/x", "other/x", ".keyturn/sweeps/x"):
        serving.bench.storage.plant(key, bytes(72), Headers({}))
    for prefix in ("../other/", "../", "/", "-2/", "..%2F.keyturn/", "."):
        got = await serving.ask(target=f"{LIST}?prefix={prefix}")
        assert (got.status, got.document()["objects"]) == (200, [])


async def test_a_failing_storage_is_a_503(capsys: pytest.CaptureFixture[str]) -> None:
    serving = _serving()
    serving.bench.storage.fail_next("list_entries", StorageUnavailableError("down"))
    got = await serving.ask(target=LIST)
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")
    assert "project='acme' key=None" in capsys.readouterr().out


async def test_a_listing_holds_a_place_of_the_projects_share() -> None:
    serving = _serving(concurrency=4, project_share=0.25)
    busy, resumed = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        busy.set()
        await resumed.wait()

    serving.bench.storage.before_next("list_entries", wait)
    first = asyncio.create_task(serving.ask(target=LIST))
    await busy.wait()
    refused = await serving.ask(target=LIST)
    assert (refused.status, refused.document()["code"]) == (429, "too_many_requests")
    resumed.set()
    assert (await first).status == 200
    assert (await serving.ask(target=LIST)).status == 200


async def test_a_full_gateway_refuses_a_listing() -> None:
    serving = _serving(concurrency=1)
    busy, resumed = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        busy.set()
        await resumed.wait()

    serving.bench.storage.before_next("list_entries", wait)
    first = asyncio.create_task(serving.ask(target=LIST))
    await busy.wait()
    refused = await serving.ask(target=LIST)
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    resumed.set()
    assert (await first).status == 200


async def test_a_disconnect_ends_the_work() -> None:
    serving = _serving()
    busy, connection = asyncio.Event(), Connection()
    ended = []

    async def wait() -> None:
        busy.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("list_entries")
            raise

    serving.bench.storage.before_next("list_entries", wait)
    asking = asyncio.create_task(serving.ask(target=LIST, on=connection))
    await busy.wait()
    connection.gone.set()
    async with asyncio.timeout(5):
        await asking
    assert ended == ["list_entries"]


async def test_kinds_of_objects_are_those_of_the_keyring() -> None:
    serving = Serving(Bench(cache_s=0))
    serving.bench.plant({}, b"plain", "a")
    assert (await serving.ask(target=LIST)).document()["objects"][0]["size"] is None
    serving.bench.allow_plaintext()
    assert (await serving.ask(target=LIST)).document()["objects"][0]["size"] == 5


async def test_other_methods_are_not_allowed() -> None:
    for method in ("POST", "PUT", "DELETE"):
        assert (await _serving().ask(method, LIST)).status == 405

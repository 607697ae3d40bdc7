"""Listings: what is requested, what is used of a response, what is refused (SPEC 8.5, 9.3, 10).

Real servers are in `tests/integration/storage/test_listing.py` and `test_path_order.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import byte_order, path_order
from keyturn_workers.storage import Capabilities, s3_listings
from keyturn_workers.storage.listing import entry_of
from tests.unit.keyturn_workers.storage.listed_bucket import ListedBucket
from tests.unit.keyturn_workers.storage.scripted_server import TIME, Reply, listed, query_values

if TYPE_CHECKING:
    from keyturn_workers.storage.s3 import S3Storage
    from tests.unit.keyturn_workers.storage.scripted_server import ScriptedServer

_NAME = st.text("ab-.01", min_size=1, max_size=3)
_KEY = st.lists(_NAME, min_size=1, max_size=3).map(lambda names: "p/" + "/".join(names))
_PAGES = st.sampled_from([1, 2, 3, 7, 1000])


_KEYS = st.sets(_KEY, max_size=20)


@given(
    keys=_KEYS,
    after=st.one_of(st.just(""), _KEY, _KEY.map(lambda key: f"{key}/")),
    prefix=st.sampled_from(["p/", "p/a", "p/a/", "p", "", "p/a."]),
    page_keys=_PAGES,
    limit=st.sampled_from([None, 0, 1, 5]),
    by_path=st.booleans(),
    measured=st.booleans(),
)
async def test_every_object_once_in_the_servers_order(
    keys: set[str],
    after: str,
    prefix: str,
    page_keys: int,
    limit: int | None,
    *,
    by_path: bool,
    measured: bool,
) -> None:
    """From any key on, also where it is a folder as well, or where the order was not measured."""
    assume(after.startswith(prefix) or measured)
    storage = ListedBucket(keys, by_path=by_path, page_keys=page_keys).storage(measured=measured)
    order = path_order if by_path else byte_order
    listed_keys = [row.key async for row in storage.list(prefix, after=after, limit=limit)]
    wanted = [key for key in keys if key.startswith(prefix)]
    if after:
        wanted = [key for key in wanted if order(key) > order(after)]
    assert listed_keys == sorted(wanted, key=order)[:limit]


@given(
    keys=_KEYS,
    after=st.one_of(st.just(""), _KEY),
    prefix=st.sampled_from(["p/", "p/a", "p/a/"]),
    page_keys=_PAGES,
    limit=st.integers(1, 4),
    delimiter=st.sampled_from(["", "/"]),
    by_path=st.booleans(),
    measured=st.booleans(),
)
async def test_every_entry_once_in_pages(
    keys: set[str],
    after: str,
    prefix: str,
    page_keys: int,
    limit: int,
    delimiter: str,
    *,
    by_path: bool,
    measured: bool,
) -> None:
    assume(after.startswith(prefix) or measured)
    storage = ListedBucket(keys, by_path=by_path, page_keys=page_keys).storage(measured=measured)
    order = path_order if by_path else byte_order
    names: list[str] = []
    following: str | None = after
    while following is not None:
        page = await storage.list_entries(prefix, delimiter=delimiter, after=following, limit=limit)
        here = [*(row.key for row in page.objects), *page.prefixes]
        assert len(here) <= limit
        names += sorted(here, key=order)
        following = page.next_after
    entries = {entry_of(key, prefix, delimiter) for key in keys if key.startswith(prefix)}
    if after.startswith(prefix):
        entries = {n for n in entries if order(n) > order(entry_of(after, prefix, delimiter))}
    elif order(after) > order(prefix):
        entries = set()
    assert names == sorted(entries, key=order)


async def test_a_key_that_disappears_does_not_show_the_order(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """It is not listed where byte order has it: only one that is still there proves path order."""
    page = [listed("p/z"), listed("p/a/x"), listed("p/b")]
    for again, by_path in (([listed(), listed()], None), ([listed("p/a/x")], True)):
        storage.capabilities = Capabilities()
        server.script = [*page[1:], *again, page[0]]
        listing = await storage.list_entries("p/", after="p/a")
        assert [row.key for row in listing.objects] == ["p/z"]
        assert storage.capabilities.lists_by_path is by_path
    starts = query_values(server, "start-after")
    assert starts[-1] == "p/a/"
    assert starts[4] == "p/a"


async def test_versions_need_byte_order() -> None:
    """Old versions left out of a page would outlive a rotation."""
    storage = ListedBucket(["p/a"], by_path=True).storage()
    with pytest.raises(StorageUnavailableError, match="byte order"):
        await anext(aiter(storage.list_versions("p/")))


@pytest.mark.parametrize(
    "token", ["p/\x01", "p/&#x1;", "p/&#1;", "p/\ufffe", "p/&#xFFFF;", "p/%2F"]
)
async def test_the_servers_marker_is_not_used(
    server: ScriptedServer, storage: S3Storage, token: str
) -> None:
    """On Ceph's gateway it is an unencoded key; the next page starts after the last row."""
    server.script = [listed("p/%01", "p/%2B+%252F", more=token), listed("p/z")]
    assert [row.key async for row in storage.list("p/")] == ["p/\x01", "p/+ %2F", "p/z"]
    assert query_values(server, "start-after") == [None, "p/+ %2F"]
    assert query_values(server, "continuation-token") == [None, None]


async def test_an_empty_page_is_followed_by_the_servers_marker(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Ceph's gateway gives up after many rows that it skips, and says where."""
    server.script = [listed(more="p/&amp;"), listed("p/a", more="m2"), listed("p/z")]
    page = await storage.list_entries("p/", after="p/a")
    assert [row.key for row in page.objects] == ["p/z"]
    assert query_values(server, "continuation-token") == [None, "p/&", "m2"]
    assert query_values(server, "start-after") == ["p/a", None, None]


@pytest.mark.parametrize("page", [listed(more="t"), listed("p/a", more="t")])
async def test_a_server_that_never_gets_further_is_an_error(
    server: ScriptedServer, storage: S3Storage, monkeypatch: pytest.MonkeyPatch, page: Reply
) -> None:
    monkeypatch.setattr(s3_listings, "_EMPTY_PAGES", 3)
    server.script = [page] * 9
    with pytest.raises(StorageUnavailableError, match="no progress"):
        await storage.list_entries("p/", after="p/a")
    assert len(server.requests) == 3


async def test_behind_all_keys_nothing_is_requested(
    server: ScriptedServer, storage: S3Storage
) -> None:
    page = await storage.list_entries("p/", after="p0")
    assert (page.objects, page.prefixes, page.next_after) == ((), (), None)
    storage.capabilities = Capabilities(lists_by_path=True)
    assert (await storage.list_entries("p/a/", after="p/a-b")).next_after is None
    assert server.requests == []


async def test_a_listing_asks_for_no_more_than_is_wanted(
    server: ScriptedServer, storage: S3Storage
) -> None:
    server.script = [listed("p/a", "p/b", more="token"), listed("p/d")]
    assert [row.key async for row in storage.list("p/", limit=2)] == ["p/a", "p/b"]
    assert query_values(server, "max-keys") == ["2"]
    (row,) = [row async for row in storage.list("p/")]
    assert (row.size_bytes, row.etag) == (1, "e")
    assert query_values(server, "max-keys") == ["2", "1000"]


def _versions(*rows: tuple[str, str], more: tuple[str, str] | None = None) -> Reply:
    listed_rows = "".join(
        f"<Version><Key>{key}</Key><VersionId>{version}</VersionId><IsLatest>false</IsLatest>"
        f"<LastModified>{TIME}</LastModified><ETag>&quot;e&quot;</ETag><Size>1</Size></Version>"
        for key, version in rows
    )
    markers = "<IsTruncated>false</IsTruncated>"
    if more is not None:
        markers = (
            f"<IsTruncated>true</IsTruncated><NextKeyMarker>{more[0]}</NextKeyMarker>"
            f"<NextVersionIdMarker>{more[1]}</NextVersionIdMarker>"
        )
    return Reply(200, f"<ListVersionsResult>{markers}{listed_rows}</ListVersionsResult>".encode())


async def test_a_listing_of_versions_continues_after_its_last_row(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Not at the server's key marker, unless there is no row."""
    server.script = [
        _versions(("p/a", "2"), more=("p/odd", "2")),
        _versions(more=("p/b", "9")),
        _versions(("p/c", "1")),
    ]
    found = [(row.key, row.version_id) async for row in storage.list_versions("p/")]
    assert found == [("p/a", "2"), ("p/c", "1")]
    assert query_values(server, "key-marker") == [None, "p/a", "p/b"]
    assert query_values(server, "version-id-marker") == [None, "2", "9"]


@pytest.mark.parametrize(
    "page", [_versions(("p/a/1", "1"), ("p/a-b", "1")), _versions(more=("p/a", ""))]
)
async def test_versions_in_another_order_or_without_progress_are_an_error(
    server: ScriptedServer, storage: S3Storage, page: Reply
) -> None:
    server.script = [page, page]
    with pytest.raises(StorageUnavailableError):
        await anext(aiter(storage.list_versions("p/", after="p/a")))


async def test_a_listing_of_uploads_that_repeats_its_marker_ends(
    server: ScriptedServer, storage: S3Storage
) -> None:
    page = (
        "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>"
        "<NextKeyMarker>p/\x1f</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
        f"<Upload><Key>p/\x1f</Key><UploadId>u</UploadId><Initiated>{TIME}</Initiated></Upload>"
        "</ListMultipartUploadsResult>"
    )
    server.script = [Reply(200, page.encode())] * 5
    assert len([row async for row in storage.list_multipart_uploads("p/")]) == 2
    assert len(server.requests) == 2

"""Listings: what is requested, what a response may hold, and in which order (SPEC 8.5, 9.3, 10).

Real servers are in `tests/integration/storage/test_listing.py` and `test_path_order.py`.
"""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import parse_qs

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import byte_order, path_order
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.storage import s3_listings
from keyturn_workers.storage.listing import (
    ServerPage,
    entry_of,
    objects_query,
    parse_entries,
    parse_etags,
    parse_uploads,
    parse_versions,
    start_after,
    uploads_query,
    versions_query,
)
from keyturn_workers.storage.s3 import S3Storage
from keyturn_workers.storage.s3_http import S3Response
from tests.unit.keyturn_workers.storage.servers import TIME, Reply, listed, query_values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from keyturn_workers.storage.s3_http import S3HttpClient
    from tests.unit.keyturn_workers.storage.servers import ScriptedServer

LAST: Final = "\U0010ffff"
_NAMES = st.text(st.sampled_from("a/.0~\x7f\uffff" + LAST), max_size=6)
_NAME = st.text("ab-.01", min_size=1, max_size=3)
_KEY = st.lists(_NAME, min_size=1, max_size=3).map(lambda names: "p/" + "/".join(names))
_PAGES = st.sampled_from([1, 2, 3, 7, 1000])
_KEYS = st.sets(_KEY, max_size=20)


def test_a_bucket_lists_by_bytes_unless_it_was_measured() -> None:
    keys = ["a/x", "a-b", "a", "a.b/c", "a0", "\U00010000", "\uffff"]
    by_bytes = sorted(keys, key=Capabilities().order)
    assert by_bytes == sorted(keys, key=byte_order) == sorted(keys, key=str.encode)
    by_path = ["a", "a/x", "a-b", "a.b/c", "a0", "\uffff", "\U00010000"]
    assert sorted(keys, key=Capabilities(lists_by_path=True).order) == by_path
    assert sorted(keys, key=path_order) == by_path


@pytest.mark.parametrize(
    ("delimiter", "entry", "by_bytes", "by_path"),
    [
        ("", "", "", ""),
        ("", "p/", "", ""),
        # A server with folders leaves out the folder that it starts after.
        ("", "p/a/x", "p/a/x", "p/a/x/"),
        ("/", "p/a", "p/a", "p/a"),
        # No longer than a key can be.
        ("", "p/" + "b" * 1023, "p/" + "b" * 1022, "p/" + "b" * 1022),
        ("", "p/b" + "ü" * 512, "p/b" + "ü" * 510, "p/b" + "ü" * 510),
        # A folder is skipped as a whole.
        ("/", "p/a/", "p/a/" + LAST * 255, "p/a/" + LAST * 255),
        ("/", "p/ab/", "p/ab/" + LAST * 254 + "\uffff", "p/ab/" + LAST * 254 + "\uffff"),
        ("/", "p/" + "b" * 1021 + "/", "p/" + "b" * 1021 + "/", "p/" + "b" * 1021 + "/"),
        ("/", "p/abc/", "p/abc/" + LAST * 254 + "\u07ff", "p/abc/" + LAST * 254 + "\u07ff"),
    ],
)
def test_where_a_server_starts(delimiter: str, entry: str, by_bytes: str, by_path: str) -> None:
    assert start_after("p/", delimiter, entry, byte_order) == by_bytes
    assert start_after("p/", delimiter, entry, path_order) == by_path


@settings(max_examples=40)
@given(_NAMES, _NAMES)
def test_no_key_of_a_folder_sorts_behind_its_start(key: str, behind: str) -> None:
    entry = entry_of(f"p/a/{behind}", "p/", "/")
    start = start_after("p/", "/", entry, byte_order)
    assert f"p/a/{key}" <= start < "p/a0"
    assert path_order(f"p/a/{key}") <= path_order(start) < path_order("p/a\x01")
    assert len(start.encode()) == 1024


def test_queries_are_encoded() -> None:
    assert objects_query("p/a b", 7, delimiter="/", start="p/ü+%") == (
        "list-type=2&delimiter=%2F&encoding-type=url&max-keys=7&prefix=p%2Fa%20b"
        "&start-after=p%2F%C3%BC%2B%25"
    )
    assert objects_query("p/", 7, start="p/x", token="t=/") == (
        "list-type=2&encoding-type=url&max-keys=7&prefix=p%2F&continuation-token=t%3D%2F"
    )
    assert versions_query("p/", 7, "p/ü", "") == (
        "encoding-type=url&max-keys=7&prefix=p%2F&key-marker=p%2F%C3%BC&versions="
    )
    assert uploads_query("", "", "") == "max-uploads=1000&uploads="
    assert uploads_query("p/", "p/a", "u+") == (
        "max-uploads=1000&prefix=p%2F&key-marker=p%2Fa&upload-id-marker=u%2B&uploads="
    )


_TIME: Final = "2026-11-24T10:00:00.123Z"


_ROW: Final = (
    f"<Contents><Key>{{key}}</Key><LastModified>{_TIME}</LastModified>"
    "<ETag>&quot;e&amp;1&quot;</ETag><Size>72</Size><Owner><ID>o</ID></Owner></Contents>"
)


_FOLDER: Final = "<CommonPrefixes>\n <Prefix>{folder}</Prefix></CommonPrefixes>"


_UPLOAD: Final = (
    f"<Upload><Key>p/a</Key><UploadId>u</UploadId><Initiated>{_TIME}</Initiated></Upload>"
)


def _body(
    *rows: str, truncated: str = "false", encoded: bool = True, name: str = "ListBucketResult"
) -> bytes:
    encoding = "<EncodingType>url</EncodingType>" if encoded else ""
    return (
        f'<?xml version="1.0"?><{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        "<Name>b</Name><Prefix>p%2F</Prefix><Delimiter>%2F</Delimiter>"
        f"{encoding}<IsTruncated>{truncated}</IsTruncated>{''.join(rows)}</{name}>\n"
    ).encode()


def test_objects_and_common_prefixes_are_parsed() -> None:
    rows = (_ROW.format(key="p/%01+%2B&apos;"), _FOLDER.format(folder="p%2Fb%25%2F"))
    page = parse_entries(_body(*rows, truncated="true"), "p/")
    (row,) = page.objects
    assert (row.key, row.size_bytes, row.etag) == ("p/\x01 +'", 72, "e&1")
    assert row.last_modified == datetime(2026, 11, 24, 10, 0, 0, 123_000, UTC)
    assert (page.prefixes, page.is_last, page.token) == (["p/b%/"], False, "")
    assert parse_entries(_body(*rows), "p/").is_last
    date = datetime(2026, 11, 24, 10, tzinfo=UTC)
    etags = parse_etags(_body(*rows, truncated="true"), date)
    assert (etags.etags, etags.is_last, etags.date) == ({"p/\x01 +'": "e&1"}, False, date)
    assert parse_etags(_body(), None).is_last


def test_the_last_entry_depends_on_the_order() -> None:
    body = _body(_ROW.format(key="p/a-b"), _FOLDER.format(folder="p/a/"))
    assert parse_entries(body, "p/").last_entry(byte_order) == "p/a/"
    assert parse_entries(body, "p/").last_entry(path_order) == "p/a-b"
    assert parse_entries(_body(), "p/").last_entry(byte_order) == ""


def test_keys_with_line_breaks_are_parsed() -> None:
    body = _body(*(_ROW.format(key=key) for key in ("p/a%0Ab", "p/c", "p/d%0D%0A")))
    page = parse_entries(body, "p/")
    assert [row.key for row in page.objects] == ["p/a\nb", "p/c", "p/d\r\n"]
    assert list(parse_etags(body, None).etags) == ["p/a\nb", "p/c", "p/d\r\n"]


def test_keys_that_are_not_encoded_are_parsed() -> None:
    body = _body(_ROW.format(key="p/%2F+&amp;\x01"), encoded=False)
    assert parse_entries(body, "p/").objects[0].key == "p/%2F+&\x01"


def _version(kind: str, version_id: str, seconds: int, *, latest: bool) -> str:
    body = "<ETag>&quot;e&quot;</ETag><Size>3</Size>" if kind == "Version" else ""
    return (
        f"<{kind}><Key>p/a</Key><VersionId>{version_id}</VersionId>{body}"
        f"<IsLatest>{str(latest).lower()}</IsLatest>"
        f"<LastModified>2026-11-24T10:00:0{seconds}.000Z</LastModified></{kind}>"
    )


def test_versions_and_delete_markers_come_with_the_latest_first() -> None:
    """Whatever order a server gives them."""
    body = _body(
        _version("Version", "1", 1, latest=False),
        _version("Version", "3", 3, latest=False),
        _version("DeleteMarker", "2", 2, latest=False),
        _version("DeleteMarker", "4", 3, latest=True),
        "<NextVersionIdMarker>1</NextVersionIdMarker>",
        truncated="true",
        name="ListVersionsResult",
    )
    page = parse_versions(body, "p/")
    assert [row.version_id for row in page.rows] == ["4", "3", "2", "1"]
    assert [row.is_delete_marker for row in page.rows] == [True, False, True, False]
    assert [(row.etag, row.size_bytes) for row in page.rows] == [("", 0), ("e", 3)] * 2
    assert page.following == ("p/a", "1")


def test_uploads_are_parsed() -> None:
    page = parse_uploads(_body(_UPLOAD, encoded=False, name="ListMultipartUploadsResult"))
    assert [(row.key, row.upload_id) for row in page.rows] == [("p/a", "u")]
    assert page.following is None


_OBJECT: Final = _ROW.format(key="p/a")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<Error><Code>SlowDown</Code></Error>",
        _body() + b"cut",
        _body(truncated="True"),
        _body(truncated=""),
        b"<ListBucketResult></ListBucketResult>",
        _body(_OBJECT.replace("<Size>72", "<Size>many")),
        _body(_OBJECT.replace("<Size>72", "<Size>-72")),
        _body(_ROW.format(key="p/%FF")),
        _body(_OBJECT.replace(".123Z", "")),
        _body(_OBJECT.replace(".123Z", "+02:00")),
        _body(_OBJECT.replace("</Contents>", "")),
        _body(_FOLDER.format(folder="p/a/").replace("Prefix>", "Suffix>")),
        # Of another project: never shown.
        _body(_ROW.format(key="q/a")),
        _body(_FOLDER.format(folder="q/")),
    ],
)
def test_a_malformed_response_is_an_error(body: bytes) -> None:
    with pytest.raises(StorageUnavailableError):
        parse_entries(body, "p/")


@pytest.mark.parametrize(
    "parse",
    [lambda body: parse_etags(body, None), lambda body: parse_versions(body, "p/"), parse_uploads],
)
def test_a_response_to_another_request_is_an_error(parse: Callable[[bytes], object]) -> None:
    with pytest.raises(StorageUnavailableError):
        parse(_body(name="ListAllMyBucketsResult"))
    with pytest.raises(StorageUnavailableError):
        parse(re.sub(rb"<IsTruncated>.*</IsTruncated>", b"", _body()))


_WHOLE: Final = _body(_ROW.format(key="p/%2Fa"), _FOLDER.format(folder="p/b/"), truncated="true")


@settings(max_examples=40)
@given(st.integers(0, len(_WHOLE)), st.integers(0, 40), st.binary(max_size=8))
def test_whatever_bytes_are_in_a_response_it_is_a_page_or_an_error(
    at: int, length: int, new: bytes
) -> None:
    try:
        page = parse_entries(_WHOLE[:at] + new + _WHOLE[at + length :], "p/")
    except StorageUnavailableError:
        return
    names = [*(row.key for row in page.objects), *page.prefixes]
    assert all(name.startswith("p/") for name in names)
    assert all(row.last_modified.tzinfo is UTC for row in page.objects)


class ListedBucket:
    """An in-memory bucket for listings only, in one of the orders that servers use.

    It replaces the HTTP client of `S3Storage`, and answers as the server would.

    Args:
        keys: The objects.
        by_path: Whether it keeps them in folders, as SeaweedFS does.
        page_keys: The most entries of a page.
    """

    def __init__(self, keys: Iterable[str], *, by_path: bool, page_keys: int = 1000) -> None:
        self._keys = set(keys)
        self._by_path = by_path
        self._page_keys = page_keys

    def storage(self, *, measured: bool = True) -> S3Storage:
        """A storage that uses this server, and knows its order if it is measured."""
        known = Capabilities(lists_by_path=self._by_path if measured else None)
        return S3Storage(cast("S3HttpClient", self), known)

    async def call(self, *_request: object, query: str, **_: object) -> S3Response:
        """A listing of objects, as `S3HttpClient` requests it."""
        fields = {name: values[0] for name, values in parse_qs(query).items()}
        prefix, delimiter = fields.get("prefix", ""), fields.get("delimiter", "")
        start = fields.get("continuation-token") or fields.get("start-after", "")
        order = path_order if self._by_path else byte_order
        names: dict[str, None] = {}
        for key in sorted(self._keys, key=order):
            if key.startswith(prefix) and order(key) > order(start) and not self._hides(key, start):
                names[entry_of(key, prefix, delimiter)] = None
        max_keys = int(fields["max-keys"])
        page = list(names)[: min(max_keys, self._page_keys)]
        left = list(names)[len(page) :]
        # SeaweedFS ends a listing after a full page, if only keys below its last object follow.
        hides = self._by_path and len(page) == max_keys
        is_last = all(hides and name.startswith(f"{page[-1]}/") for name in left)
        more = "" if is_last else page[-1]
        folders = [name for name in page if delimiter and name.endswith(delimiter)]
        keys = [name for name in page if name not in folders]
        return S3Response(200, {}, listed(*keys, folders=folders, more=more).body)

    def _hides(self, key: str, start: str) -> bool:
        """The folder that has the name to start after is left out with it."""
        return self._by_path and start != "" and key.startswith(f"{start}/")


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
@example(  # the second folder hides behind a full page of a folder and an object
    keys={"p/a/x", "p/b", "p/b/x"},
    after="",
    prefix="p/",
    page_keys=1000,
    limit=2,
    delimiter="/",
    by_path=True,
    measured=True,
)
@example(  # the last entry of a page is an object by paths, and a folder by bytes
    keys={"p/a/x", "p/a-b", "p/b"},
    after="",
    prefix="p/",
    page_keys=1000,
    limit=2,
    delimiter="/",
    by_path=True,
    measured=True,
)
@example(
    keys={"p/a/x", "p/a-b", "p/b"},
    after="",
    prefix="p/",
    page_keys=1000,
    limit=2,
    delimiter="/",
    by_path=False,
    measured=True,
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


@pytest.mark.parametrize(("key_bytes", "on_the_loop"), [(1, True), (2**20, False)])
async def test_a_large_page_is_parsed_beside_the_event_loop(
    server: ScriptedServer,
    storage: S3Storage,
    monkeypatch: pytest.MonkeyPatch,
    key_bytes: int,
    *,
    on_the_loop: bool,
) -> None:
    """It may take a tenth of a second, in which nothing else would be served."""
    seen = list[bool]()

    def parse(body: bytes, prefix: str) -> ServerPage:
        seen.append(threading.current_thread() is threading.main_thread())
        return parse_entries(body, prefix)

    monkeypatch.setattr(s3_listings, "parse_entries", parse)
    server.script = [listed("p/" + "a" * key_bytes)]
    assert len((await storage.list_entries("p/")).objects) == 1
    assert seen == [on_the_loop]


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

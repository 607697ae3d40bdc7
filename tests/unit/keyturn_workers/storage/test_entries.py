"""Listings by folder: what is requested, what is used of the response, what is refused (SPEC 9.3).

Real servers are in `tests/integration/storage/test_listing.py`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage import s3
from keyturn_workers.storage.entries import (
    entries_query,
    is_after_all,
    last_key_before,
    parse_entries,
    start_after,
    without_folder_ending,
)
from tests.unit.keyturn_workers.storage.scripted_server import Reply, listed, query_values

if TYPE_CHECKING:
    from keyturn_workers.storage.s3 import S3Storage
    from tests.unit.keyturn_workers.storage.scripted_server import ScriptedServer

LAST: Final = "\U0010ffff"

_NAMES = st.text(st.sampled_from("a/.0~\x7f\uffff" + LAST), max_size=6)


@pytest.mark.parametrize(
    ("prefix", "delimiter", "after", "start"),
    [
        ("p/", "", "", ""),
        ("p/", "", "p/a/x", "p/a/x"),
        ("p/", "/", "p/a", "p/a"),
        ("p/a/", "/", "p/a/", ""),
        # No longer than a key can be.
        ("p/", "", "p/" + "b" * 1023, "p/" + "b" * 1022),
        ("p/", "", "p/b" + "ü" * 512, "p/b" + "ü" * 510),
        # Before or behind the prefix: from its first key on, or nothing at all.
        ("p/", "/", "a/b", ""),
        ("p/", "/", "q", ""),
        # A folder is skipped as a whole, also from a key within it.
        ("p/", "/", "p/a/", "p/a/" + LAST * 255),
        ("p/", "/", "p/a/x/y", "p/a/" + LAST * 255),
        ("p/", "/", "p/ab/", "p/ab/" + LAST * 254 + "\uffff"),
        ("p/", "/", "p/abc/", "p/abc/" + LAST * 254 + "\u07ff"),
        ("p/", "/", "p/abcd/", "p/abcd/" + LAST * 254 + "\x7f"),
        ("p/", "/", "p/" + "a" * 1100 + "/", "p/" + "a" * 1100 + "/"),
    ],
)
def test_where_a_server_starts(prefix: str, delimiter: str, after: str, start: str) -> None:
    assert start_after(prefix, delimiter, after) == start


@settings(max_examples=40)
@given(_NAMES, _NAMES)
def test_no_key_of_a_folder_sorts_behind_its_start(key: str, behind: str) -> None:
    start = start_after("p/", "/", f"p/a/{behind}")
    assert f"p/a/{key}" <= start < "p/a0"
    assert len(start.encode()) == 1024


@settings(max_examples=40)
@given(_NAMES, _NAMES, _NAMES)
def test_what_sorts_behind_all_keys_of_a_prefix(prefix: str, key: str, after: str) -> None:
    """If it is, no key is listed without a request, however long the key is."""
    if is_after_all(prefix, after):
        assert f"{prefix}{key}".encode() < after.encode()
        assert (prefix + LAST * 20).encode() < after.encode()


def test_the_query_is_encoded() -> None:
    query = entries_query("p/a b", "/", 7, start="p/ü+%", token="")
    assert query == (
        "delimiter=%2F&encoding-type=url&list-type=2&max-keys=7&prefix=p%2Fa%20b"
        "&start-after=p%2F%C3%BC%2B%25"
    )
    query = entries_query("p/", "", 7, start="p/x", token="t=/")
    assert (
        query == "encoding-type=url&list-type=2&max-keys=7&prefix=p%2F&continuation-token=t%3D%2F"
    )


_ROW: Final = (
    "<Contents><Key>{key}</Key><LastModified>2026-11-24T10:00:00.123Z</LastModified>"
    "<ETag>&quot;e&amp;1&quot;</ETag><Size>72</Size></Contents>"
)
_FOLDER: Final = "<CommonPrefixes>\n <Prefix>{folder}</Prefix></CommonPrefixes>"


def _body(*rows: str, truncated: str = "false", encoded: bool = True) -> bytes:
    encoding = "<EncodingType>url</EncodingType>" if encoded else ""
    return (
        "<ListBucketResult><Name>b</Name><Prefix>p%2F</Prefix><Delimiter>%2F</Delimiter>"
        f"{encoding}<IsTruncated>{truncated}</IsTruncated>{''.join(rows)}</ListBucketResult>\n"
    ).encode()


def test_objects_and_common_prefixes_are_parsed() -> None:
    rows = (_ROW.format(key="p/%01+%2B&apos;"), _FOLDER.format(folder="p%2Fb%25%2F"))
    page, token = parse_entries(_body(*rows, truncated="true"), "p/")
    (row,) = page.objects
    assert (row.key, row.size_bytes, row.etag) == ("p/\x01 +'", 72, "e&1")
    assert row.last_modified == datetime(2026, 11, 24, 10, 0, 0, 123_000, UTC)
    assert (page.prefixes, page.next_after, token) == (["p/b%/"], "p/b%/", "")
    last, _ = parse_entries(_body(*rows), "p/")
    assert last.next_after is None


def test_keys_with_line_breaks_are_parsed() -> None:
    rows = [_ROW.format(key=key) for key in ("p/a%0Ab", "p/c", "p/d%0D%0A")]
    page, _ = parse_entries(_body(*rows), "p/")
    assert [row.key for row in page.objects] == ["p/a\nb", "p/c", "p/d\r\n"]


def test_keys_that_are_not_encoded_are_parsed() -> None:
    page, _ = parse_entries(_body(_ROW.format(key="p/%2F+&amp;"), encoded=False), "p/")
    assert page.objects[0].key == "p/%2F+&"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<Error><Code>SlowDown</Code></Error>",
        _body() + b"cut",
        _body(truncated="True"),
        _body(truncated=""),
        b"<ListBucketResult></ListBucketResult>",
        _body(_ROW.format(key="p/a").replace("<Size>72", "<Size>many")),
        _body(_ROW.format(key="p/a").replace(".123Z", "")),
        _body(_ROW.format(key="p/a").replace(".123Z", "+02:00")),
        _body(_ROW.format(key="p/a").replace("</Contents>", "")),
        _body(_FOLDER.format(folder="p/a/").replace("Prefix>", "Suffix>")),
        # Of another project: never shown.
        _body(_ROW.format(key="q/a")),
        _body(_FOLDER.format(folder="q/")),
    ],
)
def test_a_malformed_response_is_an_error(body: bytes) -> None:
    with pytest.raises(StorageUnavailableError):
        parse_entries(body, "p/")


_WHOLE: Final = _body(_ROW.format(key="p/%2Fa"), _FOLDER.format(folder="p/b/"), truncated="true")


@settings(max_examples=40)
@given(st.integers(0, len(_WHOLE)), st.integers(0, 40), st.binary(max_size=8))
def test_whatever_bytes_are_in_a_response_it_is_a_page_or_an_error(
    at: int, length: int, new: bytes
) -> None:
    try:
        page, _ = parse_entries(_WHOLE[:at] + new + _WHOLE[at + length :], "p/")
    except StorageUnavailableError:
        return
    names = [*(row.key for row in page.objects), *page.prefixes]
    assert all(name.startswith("p/") for name in names)
    assert all(row.last_modified.tzinfo is UTC for row in page.objects)


async def test_what_a_server_lists_too_early_is_dropped(
    server: ScriptedServer, storage: S3Storage
) -> None:
    server.script = [listed("p/a", "p/b", "p/c")]
    page = await storage.list_entries("p/", after="p/b")
    assert [row.key for row in page.objects] == ["p/c"]


async def test_an_empty_page_is_followed_by_the_servers_marker(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Ceph's gateway gives up after many rows that it skips, and says where."""
    server.script = [listed(more="p/&amp;"), listed("p/a", more="m2"), listed("p/z")]
    page = await storage.list_entries("p/", after="p/a")
    assert [row.key for row in page.objects] == ["p/z"]
    assert query_values(server, "continuation-token") == [None, "p/&", "m2"]
    assert query_values(server, "start-after") == ["p/a", None, None]


@pytest.mark.parametrize("token", ["<NextContinuationToken>t</NextContinuationToken>", ""])
async def test_a_server_that_never_gets_further_is_an_error(
    server: ScriptedServer, storage: S3Storage, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    monkeypatch.setattr(s3, "_EMPTY_PAGES", 3)
    server.script = [Reply(200, _body(token, truncated="true"))] * 9
    with pytest.raises(StorageUnavailableError, match="no progress"):
        await storage.list_entries("p/", after="p/a")
    assert len(server.requests) == (3 if token else 1)


async def test_behind_all_keys_nothing_is_requested(
    server: ScriptedServer, storage: S3Storage
) -> None:
    page = await storage.list_entries("p/", after="p0")
    assert (page.objects, page.prefixes, page.next_after) == ((), (), None)
    assert server.requests == []


@pytest.mark.parametrize(
    ("prefix", "wide"),
    [
        ("p/a.", "p/a"),
        ("p/a.ver", "p/a"),
        ("p/a.versions", "p/a"),
        # None of these can match the folder of an object's versions.
        ("p/a.x", "p/a.x"),
        ("p/a.versions/", "p/a.versions/"),
        ("p/.", "p/."),
        (".", "."),
        ("p/a", "p/a"),
        ("", ""),
    ],
)
def test_a_prefix_without_what_could_be_the_end_of_a_folder(prefix: str, wide: str) -> None:
    assert without_folder_ending(prefix) == wide


@settings(max_examples=40)
@given(_NAMES, st.text(st.sampled_from("./~"), min_size=1, max_size=1), _NAMES)
def test_the_last_key_before_a_prefix(begin: str, end: str, behind: str) -> None:
    before = last_key_before(begin + end)
    assert before < begin + end + behind
    assert not before.startswith(begin + end)

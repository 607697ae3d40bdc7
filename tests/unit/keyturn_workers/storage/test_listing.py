"""Pages of listings: where they start, and what a response may hold (SPEC 8.5, 9.3)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import byte_order, path_order
from keyturn_workers.storage.listing import (
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

if TYPE_CHECKING:
    from collections.abc import Callable

LAST: Final = "\U0010ffff"

_NAMES = st.text(st.sampled_from("a/.0~\x7f\uffff" + LAST), max_size=6)


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

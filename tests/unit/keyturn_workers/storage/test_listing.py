"""Responses to listings: what is used of them, and what is refused (SPEC 8.5)."""

from __future__ import annotations

import html
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage import s3_admin
from keyturn_workers.storage.listing import decode_keys, page_query, parse_page
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tests.unit.keyturn_workers.storage.scripted_server import listed, query_values

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.storage.scripted_server import ScriptedServer


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


async def test_without_the_guard_a_listing_would_break(
    server: ScriptedServer, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: botocore fails on such a response."""
    monkeypatch.setattr(s3_admin, "sanitize_listing", lambda **_event: None)
    async with open_storage(server.settings(), capabilities=storage.capabilities) as unguarded:
        server.script = [listed("p/%01", more="p/\x01")] * 9
        with pytest.raises(StorageUnavailableError):
            await anext(aiter(unguarded.list("p/")))


async def test_unencoded_keys_are_not_sanitized(server: ScriptedServer, storage: S3Storage) -> None:
    """A wrong key would hide an object from a sweep: the listing fails instead."""
    server.script = [listed("p/\x01", encoded="")] * 9
    with pytest.raises(StorageUnavailableError):
        await anext(aiter(storage.list("p/")))


async def test_rows_up_to_the_start_are_skipped(server: ScriptedServer, storage: S3Storage) -> None:
    """A server may start too early; the limit counts the yielded rows."""
    server.script = [listed("p/a", "p/b", "p/c", "p/d", more="more")]
    assert [row.key async for row in storage.list("p/", after="p/b", limit=2)] == ["p/c", "p/d"]
    assert len(server.requests) == 1


# One page, parsed without botocore.

PAGE: Final = (
    b'<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/">'
    b"<Name>b</Name><IsTruncated>%b</IsTruncated><EncodingType>url</EncodingType>"
    b"<Contents><Key>a%%2Fx+y%%C3%%BC</Key><LastModified>2026-11-24T10:00:00.000Z</LastModified>"
    b"<ETag>&quot;e1&quot;</ETag><Size>1</Size></Contents>"
    b'<Contents><Key>b</Key><ETag>"e&amp;2"</ETag><Owner><ID>o</ID></Owner></Contents>'
    b"</ListBucketResult>"
)
DATE: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)


@pytest.mark.parametrize(("truncated", "is_last"), [(b"true", False), (b"false", True)])
def test_a_page_is_parsed(truncated: bytes, *, is_last: bool) -> None:
    page = parse_page(PAGE % truncated, DATE)
    assert list(page.etags.items()) == [("a/x yü", "e1"), ("b", "e&2")]
    assert (page.is_last, page.date) == (is_last, DATE)


def test_an_empty_page_is_parsed() -> None:
    page = parse_page(
        b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>", None
    )
    assert (dict(page.etags), page.is_last, page.date) == ({}, True, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<Error><Code>SlowDown</Code></Error>",
        PAGE % b"true" + b"cut",
        # Each ETag before its key: each key would get the next ETag.
        (
            b"<ListBucketResult><IsTruncated>false</IsTruncated>"
            b"<Contents><ETag>1</ETag><Key>a</Key></Contents>"
            b"<Contents><ETag>2</ETag><Key>b</Key></Contents></ListBucketResult>"
        ),
        # A line break in a key.
        (
            b"<ListBucketResult><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>"
            b"<Contents><Key>a%0Ab</Key><ETag>1</ETag></Contents></ListBucketResult>"
        ),
        b"<ListBucketResult></ListBucketResult>",
        PAGE % b"True",
        PAGE % b"",
        (
            b"<ListBucketResult><IsTruncated>false</IsTruncated>"
            b"<Contents><Key>a</Key></Contents></ListBucketResult>"
        ),
        (
            b"<ListBucketResult><IsTruncated>false</IsTruncated>"
            b"<Contents><Key>\xff</Key><ETag>e</ETag></Contents></ListBucketResult>"
        ),
    ],
)
def test_a_malformed_page_is_an_error(body: bytes) -> None:
    with pytest.raises(StorageUnavailableError):
        parse_page(body, DATE)


def test_the_query_of_a_page_is_encoded() -> None:
    assert page_query("a/b c", "").endswith("&prefix=a%2Fb%20c")
    assert page_query("a", "a/ü").endswith("&prefix=a&start-after=a%2F%C3%BC")


_ODD = st.text(st.sampled_from("%+=&;_#aF2 3\n\r~/\u00e9\u65e5\U0001f5dd'\""), max_size=12)


@given(st.lists(_ODD, max_size=3).map("\n".join), st.sampled_from(["", "/=+%\n&'"]))
def test_keys_are_decoded_as_by_the_standard_library(keys: str, safe: str) -> None:
    """What is left as it is may look like an encoding, and one may be malformed."""
    encoded = quote(keys, safe=safe)
    for text in (encoded, html.escape(encoded), keys):
        assert decode_keys(text, encoded=True) == unquote_plus(html.unescape(text))
        assert decode_keys(text, encoded=False) == html.unescape(text)


@pytest.mark.parametrize("character", ["\u65e5", "%", "&#39;", "&amp;"])
def test_long_keys_are_decoded_fast(character: str) -> None:
    """One page of such keys stopped a gateway or a worker for half a second."""
    text = character * 50_000 if "&" in character else quote(character * 50_000)
    began = time.process_time()
    for _ in range(5):
        fast = decode_keys(text, encoded=True)
    middle = time.process_time()
    assert fast == unquote_plus(html.unescape(text))
    assert 2 * (middle - began) < 5 * (time.process_time() - middle)

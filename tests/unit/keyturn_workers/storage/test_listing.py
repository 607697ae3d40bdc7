"""Responses to listings: what is used of them, and what is refused (SPEC 8.5)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import RefusedError
from keyturn_workers.storage import s3_admin
from keyturn_workers.storage.listing import page_query, parse_page
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tests.unit.keyturn_workers.storage.scripted_server import Reply, scripted_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.keyturn_workers.storage.scripted_server import ScriptedServer

TIME = "2026-11-24T10:00:00.000Z"
ENCODED = "<EncodingType>url</EncodingType>"


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
async def storage(server: ScriptedServer) -> AsyncIterator[S3Storage]:
    async with open_storage(server.settings(), max_connections=4) as storage:
        yield storage


def listed(*keys: str, more: str = "", encoded: str = ENCODED) -> Reply:
    rows = "".join(
        f"<Contents><Key>{key}</Key><LastModified>{TIME}</LastModified>"
        f"<ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>"
        for key in keys
    )
    truncated = "true" if more else "false"
    token = f"<NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    body = (
        f"<ListBucketResult>{encoded}<IsTruncated>{truncated}</IsTruncated>{token}{rows}"
        "</ListBucketResult>"
    )
    return Reply(200, body.encode(), {"Content-Type": "application/xml"})


def query_values(server: ScriptedServer, name: str) -> list[str | None]:
    queries = [parse_qs(urlsplit(request.target).query) for request in server.requests]
    return [query.get(name, [None])[0] for query in queries]


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
    async with open_storage(server.settings()) as unguarded:
        server.script = [listed("p/%01", more="p/\x01")] * 9
        with pytest.raises(StorageUnavailableError):
            await anext(aiter(unguarded.list("p/")))
    assert storage.capabilities is not None


async def test_after_an_empty_page_the_token_is_used(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """There is no row to continue from."""
    server.script = [listed(more="token"), listed("p/z")]
    assert [row.key async for row in storage.list("p/", after="p/a")] == ["p/z"]
    assert query_values(server, "continuation-token") == [None, "token"]


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


async def test_a_listing_of_uploads_that_repeats_its_marker_ends(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """A sanitized marker could request the same page forever."""
    page = (
        "<ListMultipartUploadsResult><IsTruncated>true</IsTruncated>"
        "<NextKeyMarker>p/\x1f</NextKeyMarker><NextUploadIdMarker>u</NextUploadIdMarker>"
        f"<Upload><Key>p/\x1f</Key><UploadId>u</UploadId><Initiated>{TIME}</Initiated></Upload>"
        "</ListMultipartUploadsResult>"
    )
    server.script = [Reply(200, page.encode(), {"Content-Type": "application/xml"})] * 5
    assert len([row async for row in storage.list_multipart_uploads("p/")]) == 2
    assert len(server.requests) == 2


async def test_a_refused_delete_is_an_error_and_a_missing_version_is_not(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Neither is resent."""
    server.script = [Reply(403, b"<Error><Code>AccessDenied</Code></Error>")]
    with pytest.raises(RefusedError):
        await storage.delete_version("p/k", "v")
    server.script = [Reply(404, b"<Error><Code>NoSuchVersion</Code></Error>")]
    await storage.delete_version("p/k", "v")
    assert [request.method for request in server.requests] == ["DELETE", "DELETE"]
    assert query_values(server, "versionId") == ["v", "v"]


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

"""Listings, tags, versions and deletes: what is requested, and what is refused (SPEC 8.5, 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import RefusedError
from tests.unit.keyturn_workers.storage.scripted_server import (
    PROXY_PAGE,
    TIME,
    Reply,
    listed,
    query_values,
)

if TYPE_CHECKING:
    from keyturn_workers.storage.s3 import S3Storage
    from tests.unit.keyturn_workers.storage.scripted_server import ScriptedServer


async def test_after_an_empty_page_the_token_is_used(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """There is no row to continue from."""
    server.script = [listed(more="token"), listed("p/z")]
    assert [row.key async for row in storage.list("p/", after="p/a")] == ["p/z"]
    assert query_values(server, "continuation-token") == [None, "token"]


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


@pytest.mark.slow
async def test_a_404_of_a_proxy_to_an_administrative_request_is_no_missing_object(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """The generated client parses responses itself: the result must be the same."""
    server.script = [Reply(404, PROXY_PAGE)] * 20
    with pytest.raises(StorageUnavailableError):
        _ = [row async for row in storage.list("a/")]
    with pytest.raises(StorageUnavailableError):
        await storage.read_tags("a/k")
    with pytest.raises(StorageUnavailableError):
        await storage.delete("a/k")


def _xml(body: str) -> Reply:
    return Reply(200, body.encode(), {"Content-Type": "application/xml"})


async def test_a_listing_asks_for_no_more_than_is_wanted(
    server: ScriptedServer, storage: S3Storage
) -> None:
    server.script = [listed("p/a", "p/b", "p/c", more="token"), listed("p/d")]
    assert [row.key async for row in storage.list("p/", limit=2)] == ["p/a", "p/b"]
    assert query_values(server, "max-keys") == ["2"]
    server.script = [listed("p/a")]
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
    return _xml(f"<ListVersionsResult>{markers}{listed_rows}</ListVersionsResult>")


async def test_a_listing_of_versions_continues_after_its_last_row(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Not at the server's key marker, which may hold what no XML can."""
    server.script = [
        _versions(("p/a", "2"), more=("p/odd", "2")),
        _versions(more=("p/b", "9")),
        _versions(("p/c", "1")),
    ]
    found = [(row.key, row.version_id) async for row in storage.list_versions("p/")]
    assert found == [("p/a", "2"), ("p/c", "1")]
    assert query_values(server, "key-marker") == [None, "p/a", "p/b"]
    assert query_values(server, "version-id-marker") == [None, "2", "9"]


async def test_a_failed_read_is_repeated_and_a_failed_write_is_not(
    server: ScriptedServer, storage: S3Storage
) -> None:
    failing = Reply(503, b"<Error><Code>SlowDown</Code></Error>")
    tags = "<Tagging><TagSet><Tag><Key>team</Key><Value>a b</Value></Tag></TagSet></Tagging>"
    server.script = [failing, failing, _xml(tags)]
    assert await storage.read_tags("a/k") == {"team": "a b"}
    assert len(server.requests) == 3
    server.script = [failing]
    with pytest.raises(StorageUnavailableError, match="SlowDown"):
        await storage.write_tags("a/k", {"team": "a b"})
    assert [request.method for request in server.requests] == ["GET"] * 3 + ["PUT"]
    assert b"<Key>team</Key><Value>a b</Value>" in server.requests[-1].body


async def test_a_buckets_versioning_is_read(server: ScriptedServer, storage: S3Storage) -> None:
    for expected in ("", "Enabled", "Suspended"):
        status = f"<Status>{expected}</Status>" if expected else ""
        server.script = [_xml(f"<VersioningConfiguration>{status}</VersioningConfiguration>")]
        assert await storage.versioning() == expected


async def test_what_is_missing_already_is_deleted_and_aborted_without_an_error(
    server: ScriptedServer, storage: S3Storage
) -> None:
    server.script = [
        Reply(404, b"<Error><Code>NoSuchUpload</Code></Error>"),
        Reply(404, b"<Error><Code>NoSuchKey</Code></Error>"),
    ]
    await storage.abort_multipart("p/k", "upload")
    await storage.delete("p/k")
    assert [request.method for request in server.requests] == ["DELETE", "DELETE"]
    assert query_values(server, "uploadId") == ["upload", None]


async def test_the_probes_prefix_is_emptied_of_uploads_versions_and_objects(
    server: ScriptedServer, storage: S3Storage
) -> None:
    upload = f"<Upload><Key>p/k</Key><UploadId>u</UploadId><Initiated>{TIME}</Initiated></Upload>"
    server.script = [
        _xml(f"<ListMultipartUploadsResult>{upload}</ListMultipartUploadsResult>"),
        Reply(204),
        _xml("<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"),
        _versions(("p/k", "1")),
        Reply(204),
        listed("p/l"),
        Reply(204),
    ]
    await storage.purge("p/")
    deletes = [request.target for request in server.requests if request.method == "DELETE"]
    assert [target.split("?")[0] for target in deletes] == [
        "/bucket/p/k",
        "/bucket/p/k",
        "/bucket/p/l",
    ]
    assert "uploadId=u" in deletes[0]
    assert "versionId=1" in deletes[1]
    assert all("prefix=p%2F" in r.target for r in server.requests if "prefix" in r.target)

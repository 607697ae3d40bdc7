"""Versions: listed, read, and removed one at a time (SPEC 8.5); locked ones stay."""

from __future__ import annotations

from contextlib import closing
from secrets import token_hex
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.core.errors import MissingError, RefusedError
from keyturn_workers.core.storage_values import Headers, Lease
from tests.integration.storage.conftest import opened
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from keyturn_workers.core.storage_values import ObjectVersion
    from tests.integration.storage.conftest import AnyStorage
    from tools.servers import S3Server

PLAIN = Headers({})


async def all_versions(storage: AnyStorage, **where: str | int) -> list[ObjectVersion]:
    return [row async for row in storage.list_versions("acme/", **where)]  # type: ignore[arg-type]


async def history(storage: AnyStorage) -> None:
    """Of `acme/k` six versions, two of them delete markers; of `acme/z` one."""
    await storage.put("acme/k", b"", Headers({"n": "1"}))
    etag = (await storage.put("acme/k", b"22", Headers({"n": "2"}))).etag
    date = (await storage.head("acme/k")).date
    turned = Headers({"n": "3"})
    await storage.copy_onto_itself("acme/k", turned, source_etag=etag, lease=Lease(date, 15))
    await storage.delete("acme/k")
    await storage.put("acme/k", b"4444", Headers({"n": "4"}))
    await storage.delete("acme/k")
    await storage.put("acme/z", b"z", Headers({"n": "z"}))


async def test_history(versioned: AnyStorage, kind: str) -> None:
    """In the keys' order, the newest first, and each body can be read by its id."""
    await history(versioned)
    *of_k, of_z = await all_versions(versioned)
    assert (of_z.key, of_z.is_latest, of_z.is_delete_marker) == ("acme/z", True, False)
    assert {row.key for row in of_k} == {"acme/k"}
    assert [row.is_latest for row in of_k] == [True, False, False, False, False, False]
    assert of_k[0].is_delete_marker
    sizes = [None if row.is_delete_marker else row.size_bytes for row in of_k]
    expected = [None, 4, None, 2, 2, 0]
    if kind == "moto":  # which reports whole seconds
        assert sorted(sizes, key=str) == sorted(expected, key=str)
    else:
        assert sizes == expected
    starts = {}
    for row in of_k:
        if row.is_delete_marker:
            with pytest.raises(MissingError):
                await versioned.read_start("acme/k", 56, version_id=row.version_id)
            continue
        head, start = await versioned.read_start("acme/k", 56, version_id=row.version_id)
        assert (head.version_id, head.etag) == (row.version_id, row.etag)
        assert (len(start), head.size_bytes) == (row.size_bytes, row.size_bytes)
        starts[head.metadata["n"]] = start
    assert starts == {"1": b"", "2": b"22", "3": b"22", "4": b"4444"}
    with pytest.raises(MissingError):
        await versioned.read_start("acme/k", 56)
    with pytest.raises(MissingError):
        await versioned.read_start("acme/k", 56, version_id="x" * 31)


@pytest.mark.parametrize("page_keys", [1, 2, 3, 1000])
async def test_pages(
    versioned: AnyStorage, page_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key's versions over several pages: none twice, none missed."""
    await history(versioned)
    all_ids = {row.version_id for row in await all_versions(versioned)}
    assert len(all_ids) == 7
    monkeypatch.setattr("keyturn_workers.storage.s3_listings.PAGE_KEYS", page_keys)
    rows = await all_versions(versioned)
    assert len(rows) == 7
    assert {row.version_id for row in rows} == all_ids
    assert [row.key for row in rows] == ["acme/k"] * 6 + ["acme/z"]
    assert [row.is_latest for row in rows] == [True, *[False] * 5, True]


async def test_behind_a_key(versioned: AnyStorage) -> None:
    """None of that key's own versions, though servers begin in the middle of them."""
    await history(versioned)
    assert [row.key for row in await all_versions(versioned, after="acme/k")] == ["acme/z"]
    assert await all_versions(versioned, after="acme/z") == []
    assert len(await all_versions(versioned, limit=3)) == 3
    assert await all_versions(versioned, limit=0) == []


async def test_removed_one_at_a_time(versioned: AnyStorage) -> None:
    """What is under a delete marker comes to light again; the last one leaves nothing."""
    await history(versioned)
    marker, *_ = rows = await all_versions(versioned, limit=6)
    await versioned.delete_version("acme/k", marker.version_id)
    assert (await versioned.read("acme/k"))[1] == b"4444"
    for row in rows:  # the marker for a second time
        await versioned.delete_version(row.key, row.version_id)
    assert [row.key for row in await all_versions(versioned)] == ["acme/z"]


async def test_without_versions(storage: AnyStorage) -> None:
    """Each object is its one version `null`."""
    await storage.put("acme/k", b"1", PLAIN)
    await storage.put("acme/k", b"2", PLAIN)
    assert (await storage.head("acme/k")).version_id is None
    (row,) = await all_versions(storage)
    assert (row.version_id, row.is_latest, row.is_delete_marker) == ("null", True, False)
    assert (await storage.read_start("acme/k", 1, version_id="null"))[1] == b"2"
    await storage.delete_version("acme/k", "null")
    assert await all_versions(storage) == []


@pytest.mark.servers
@pytest.mark.parametrize("server_kind", ["moto", "ceph"])
async def test_a_locked_version(server_kind: str, request: pytest.FixtureRequest) -> None:
    """A lock forbids its removal, not a delete marker on top."""
    server: S3Server = request.getfixturevalue(server_kind)
    bucket = f"keyturn-locks-{token_hex(6)}"
    with closing(sync_client(server)) as client:
        client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    async with opened(server, bucket) as storage:
        await storage.put("acme/k", b"1", Headers({}, None, {"x-amz-object-lock-legal-hold": "ON"}))
        head = await storage.head("acme/k")
        assert head.locked
        assert head.version_id is not None
        with pytest.raises(RefusedError):
            await storage.delete_version("acme/k", head.version_id)
        await storage.delete("acme/k")
        marker, locked = await all_versions(storage)
        assert (marker.is_delete_marker, locked.version_id) == (True, head.version_id)

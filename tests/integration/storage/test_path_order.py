"""SeaweedFS lists by paths: the storage lists every key once, from any key on (SPEC 8.5, 10)."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import path_order
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.storage.listing import entry_of
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
# Around the folders `a` and `a-`. The server has `f`, `f0` and `g/x` as object and as folder.
KEYS = sorted(
    [
        *(f"p/a/{number:02}" for number in range(PAGE + 5)),
        *("p/a!", "p/a-/1", "p/a-/b.c", "p/a-1/x", "p/a-b/c", "p/a.txt", "p/a0", "p/b", "p/b.c"),
        *("p/f", "p/f-", "p/f/1", "p/f/2", "p/f0", "p/f0/1", "p/g/x", "p/g/x/y/z", "p/é/ü", "p/é-"),
    ],
    key=path_order,
)
AFTER = ["", *KEYS, "p/a", "p/a-", "p/a.", "p/a/~", "p/b/", "p/f/", "p/f/0", "p/g", "p/z", "p/0"]


@pytest.fixture(scope="module")
def bucket(seaweedfs: S3Server) -> str:
    name = make_bucket(seaweedfs, "plain")
    with closing(sync_client(seaweedfs)) as client:
        # An object is stored before those below its key: afterwards, the server takes it for them.
        for key in KEYS:
            client.put_object(Bucket=name, Key=key, Body=b"1")
    return name


@pytest.fixture(params=[True, None], ids=["measured", "unknown"])
async def storage(
    seaweedfs: S3Server, bucket: str, request: pytest.FixtureRequest
) -> AsyncIterator[S3Storage]:
    """As a worker opens it, and as a command does."""
    capabilities = Capabilities(lists_by_path=request.param)
    async with open_storage(
        settings_for(seaweedfs, bucket), capabilities=capabilities, max_connections=64
    ) as storage:
        yield storage


@pytest.mark.parametrize("page", [1, 4, PAGE])
async def test_every_object_once_from_any_key_on(
    storage: S3Storage, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr("keyturn_workers.storage.s3_listings.PAGE_KEYS", page)
    opened = storage.capabilities
    for prefix in ("p/", "p/a", "p/a-", "p/f", "p/f/", ""):
        for after in AFTER if page == PAGE else ["", "p/f", "p/f0"]:
            if after.startswith(prefix):
                storage.capabilities = opened
                listed = [row.key async for row in storage.list(prefix, after=after)]
                assert listed == _following(prefix, after), (prefix, after)


@pytest.mark.parametrize("limit", [1, 4, 1000])
async def test_folders_come_once_in_pages(storage: S3Storage, limit: int) -> None:
    opened = storage.capabilities
    for begin in AFTER if limit == 4 else [""]:
        storage.capabilities = opened
        names: list[str] = []
        after: str | None = begin
        while after is not None:
            page = await storage.list_entries("p/", delimiter="/", after=after, limit=limit)
            names += sorted([*(row.key for row in page.objects), *page.prefixes], key=path_order)
            after = page.next_after
        entries = dict.fromkeys(entry_of(key, "p/", "/") for key in KEYS)
        entry = path_order(entry_of(begin, "p/", "/")) if begin else []
        assert names == [name for name in entries if path_order(name) > entry], begin


async def test_a_bucket_that_keeps_versions_is_not_believed(seaweedfs: S3Server) -> None:
    """Its pages of versions leave out keys: `a-b` follows the folder, and sorts before it."""
    name = make_bucket(seaweedfs, "versioned")
    with closing(sync_client(seaweedfs)) as client:
        for key in ("v/a/1", "v/a/2", "v/a-b"):
            client.put_object(Bucket=name, Key=key, Body=b"1")
    for by_path in (True, None):
        async with open_storage(
            settings_for(seaweedfs, name), capabilities=Capabilities(lists_by_path=by_path)
        ) as storage:
            with pytest.raises(StorageUnavailableError):
                _ = [row async for row in storage.list_versions("v/")]


def _following(prefix: str, after: str) -> list[str]:
    keys = [key for key in KEYS if key.startswith(prefix)]
    return [key for key in keys if not after or path_order(key) > path_order(after)]

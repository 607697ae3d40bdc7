"""The same storage three times: in memory, on moto, on Ceph's gateway."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING

import pytest

from keyturn.settings import S3Settings
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tools.harness.memory_storage import MemoryStorage
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tools.servers import S3Server

AnyStorage = S3Storage | MemoryStorage


def settings_for(server: S3Server, bucket: str) -> S3Settings:
    """What a process would read from its environment for this server."""
    environment = server.environment(bucket)
    values = {name.removeprefix("KEYTURN_").lower(): value for name, value in environment.items()}
    return S3Settings.model_validate(values)


@asynccontextmanager
async def opened(server: S3Server, bucket: str) -> AsyncIterator[S3Storage]:
    """A storage on a bucket of this server."""
    async with open_storage(settings_for(server, bucket), max_connections=64) as storage:
        yield storage


@pytest.fixture(
    params=[
        "memory",
        pytest.param("moto", marks=pytest.mark.servers),
        pytest.param("ceph", marks=pytest.mark.servers),
    ]
)
def kind(request: pytest.FixtureRequest) -> str:
    """Which of the three this test runs on."""
    found: str = request.param
    return found


@pytest.fixture
async def storage(
    kind: str, request: pytest.FixtureRequest, new_bucket: Callable[[S3Server], str]
) -> AsyncIterator[AnyStorage]:
    """An empty bucket of that kind."""
    if kind == "memory":
        yield MemoryStorage()
        return
    server: S3Server = request.getfixturevalue(kind)
    async with opened(server, new_bucket(server)) as storage:
        yield storage


@pytest.fixture
async def versioned(
    kind: str, request: pytest.FixtureRequest, new_bucket: Callable[[S3Server], str]
) -> AsyncIterator[AnyStorage]:
    """An empty bucket of that kind that keeps versions."""
    if kind == "memory":
        yield MemoryStorage(versioned=True)
        return
    server: S3Server = request.getfixturevalue(kind)
    bucket = new_bucket(server)
    with closing(sync_client(server)) as client:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    async with opened(server, bucket) as storage:
        yield storage


@pytest.fixture
async def on_ceph(
    ceph: S3Server, new_bucket: Callable[[S3Server], str]
) -> AsyncIterator[S3Storage]:
    """An empty bucket on Ceph's gateway."""
    async with opened(ceph, new_bucket(ceph)) as storage:
        yield storage

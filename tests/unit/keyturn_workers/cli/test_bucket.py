"""A command's bucket: named by its address where it fails, counted, and read in batches."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import AlreadyExistsError, StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn_workers.cli.bucket import count_objects, naming_storage, open_bucket, optional_task
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.storage import s3 as s3_storage
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SETTINGS = S3Settings(s3_endpoint_url="http://kim:sesame@s3.example.com:9000", s3_bucket="bucket")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """How often a bucket was opened, and how."""
    calls: list[dict[str, Any]] = []

    @asynccontextmanager
    async def open_storage(settings: S3Settings, **options: Any) -> AsyncIterator[MemoryStorage]:
        assert settings is _SETTINGS
        calls.append(options)
        yield MemoryStorage()

    monkeypatch.setattr(s3_storage, "open_storage", open_storage)
    return calls


async def test_a_bucket_is_opened_with_as_many_connections_as_the_command_needs(
    opened: list[dict[str, Any]],
) -> None:
    async with open_bucket(_SETTINGS, max_connections=3):
        pass
    assert opened == [{"max_connections": 3}]


async def test_a_storage_that_fails_meanwhile_is_named_by_its_address_without_a_password(
    opened: list[dict[str, Any]],
) -> None:
    async def fail() -> None:
        async with open_bucket(_SETTINGS):
            raise StorageUnavailableError("no answer")

    with pytest.raises(StorageUnavailableError) as raised:
        await fail()
    assert raised.value.detail == (
        "no answer (the storage at http://s3.example.com:9000, bucket bucket)"
    )
    assert len(opened) == 1


def test_an_error_in_a_group_gets_the_endpoint_too() -> None:
    failed = ExceptionGroup("g", [ExceptionGroup("h", [StorageUnavailableError("head: Timeout")])])
    with (
        pytest.raises(StorageUnavailableError, match=r"head: Timeout \(the storage at AWS, region"),
        naming_storage(S3Settings(s3_bucket="files")),
    ):
        raise failed


def test_other_errors_keep_their_text() -> None:
    settings = S3Settings(s3_bucket="files")
    with pytest.raises(AlreadyExistsError, match=r"^already_exists: k$"), naming_storage(settings):
        raise AlreadyExistsError("k")
    group = ExceptionGroup("g", [AlreadyExistsError("k")])
    with pytest.raises(ExceptionGroup) as raised, naming_storage(settings):
        raise group
    assert raised.value is group


async def test_the_objects_of_one_project_are_counted() -> None:
    storage = MemoryStorage()
    for key in ("acme/a", "acme/b/c", "acme-2/a", ".keyturn/keyrings/acme.json"):
        storage.plant(key, b"", Headers({}))
    assert await count_objects(storage, "acme") == 2
    assert await count_objects(storage, "none") == 0


async def test_what_runs_beside_a_command_ends_with_it() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with optional_task(work):
        await begun.wait()
    assert ended.is_set()


async def test_what_fails_beside_a_command_does_not_fail_it() -> None:
    async def work() -> None:
        raise LookupError

    async with optional_task(work):
        await asyncio.sleep(0)


async def test_there_may_be_nothing_to_run_beside_a_command() -> None:
    async with optional_task(None):
        pass

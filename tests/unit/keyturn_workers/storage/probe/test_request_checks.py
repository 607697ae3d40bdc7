"""Each check passes where a storage keeps its promise, and fails where it does not (SPEC 10)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import PreconditionError
from keyturn_workers.storage import Capabilities, Headers
from keyturn_workers.storage.probe import request_checks as checks
from tests.unit.keyturn_workers.storage.probe.broken_storages import (
    EVERYTHING,
    IgnoresIfAbsent,
    IgnoresIfMatch,
    KeepsMetadata,
    ListsLate,
    LosesParts,
    OverwritesOnFailure,
    ReadsStale,
    ShowsDeleted,
    StoresCutPuts,
    TakesLateWrites,
)
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.storage import Condition, Lease, WriteResult
    from keyturn_workers.storage.probe.protocol import Outcome

    Check = Callable[[Any, str], Awaitable[Outcome]]

ALL: dict[str, Check] = {
    name: check
    for name, check in vars(checks).items()
    if inspect.iscoroutinefunction(check) and not name.startswith("_")
}
"""Each check is called with a storage and a key."""


class KeepsOnCopy(MemoryStorage):
    """Takes a copy onto itself, whatever the condition on the source, and changes nothing."""

    async def copy_conditionally(
        self,
        key: str,
        headers: Headers,
        *,
        source_etag: str | None,
        destination: Condition | None,
        lease: Lease,
    ) -> None:
        del headers, source_etag, destination, lease
        await self.head(key)


class IgnoresTheSource(MemoryStorage):
    """Copies whatever the source's ETag is."""

    async def copy_conditionally(
        self,
        key: str,
        headers: Headers,
        *,
        source_etag: str | None,
        destination: Condition | None,
        lease: Lease,
    ) -> None:
        del source_etag
        await super().copy_conditionally(
            key, headers, source_etag=None, destination=destination, lease=lease
        )


class RefusesAndStores(MemoryStorage):
    """Refuses a put by its condition, and stores its body all the same."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        try:
            return await super().put(key, body, headers, condition=condition, lease=lease)
        except PreconditionError:
            await super().put(key, body, headers)
            raise


class DeletesAnyway(MemoryStorage):
    """Looks at no ETag before it deletes."""

    async def delete_if_match(self, key: str, etag: str) -> str | None:
        del etag
        await self.delete(key)
        return None


@pytest.mark.parametrize("name", ALL)
async def test_a_check_passes_where_the_storage_does_everything(name: str) -> None:
    outcome = await ALL[name](MemoryStorage(capabilities=EVERYTHING), "probe")
    assert outcome.ok
    assert outcome.detail


@pytest.mark.parametrize(
    ("name", "storage", "detail"),
    [
        ("create", IgnoresIfAbsent, "not refused"),
        ("create", OverwritesOnFailure, None),
        ("create", RefusesAndStores, "refused, but written nevertheless"),
        ("replace_body", IgnoresIfMatch, "not refused"),
        ("read_after_write", ReadsStale, "a read showed an earlier body"),
        ("read_after_write", ShowsDeleted, "a listing showed a deleted object"),
        ("overwritten_in_listing", ListsLate, "a listing showed an earlier state"),
        ("multipart", LosesParts, "the object differs from its parts"),
        ("replace_metadata", KeepsMetadata, "the metadata is not what was sent"),
        ("copy_source", IgnoresTheSource, "not refused"),
        ("copy_source", KeepsOnCopy, "accepted without effect"),
        ("late_put", lambda: TakesLateWrites("put"), "not refused"),
        ("late_copy", lambda: TakesLateWrites("copy_conditionally"), "not refused"),
        ("late_completion", lambda: TakesLateWrites("complete_multipart"), "not refused"),
        ("conditional_delete", DeletesAnyway, "condition ignored: deleted"),
        ("copy_destination", MemoryStorage, "not refused"),
        ("completion", MemoryStorage, "not refused"),
        ("tags", MemoryStorage, "lost"),
        (
            "unversioned",
            lambda: MemoryStorage(versioned=True, capabilities=EVERYTHING),
            "versioned, and conditions are honored",
        ),
        (
            "unversioned",
            lambda: IgnoresIfAbsent(versioned=True),
            "versioned, and the server ignores If-None-Match: * there",
        ),
    ],
)
async def test_a_check_fails_where_the_storage_breaks_its_promise(
    name: str, storage: Callable[[], MemoryStorage], detail: str | None
) -> None:
    """A failure of the storage that is no refusal is raised: it decides nothing."""
    if detail is None:
        with pytest.raises(StorageUnavailableError):
            await ALL[name](storage(), "probe")
        return
    outcome = await ALL[name](storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, detail)


async def test_each_check_writes_below_its_own_key_alone() -> None:
    for name, check in ALL.items():
        storage = MemoryStorage(capabilities=Capabilities())
        await check(storage, "probe")
        assert all(key.startswith("probe") for key in storage.stored_keys()), name


@pytest.mark.parametrize(
    ("streamed", "from_bytes", "where"),
    [
        (False, 0, "before its body: 0 bytes stored"),
        (False, 1, "within its body: 32768 bytes stored"),
        (True, 0, "before its body, streamed: 32768 bytes stored"),
        (True, 40_000, "within its body, streamed: 65536 bytes stored"),
    ],
)
async def test_what_is_stored_of_a_cut_put_is_found(
    where: str, from_bytes: int, *, streamed: bool
) -> None:
    """In memory nothing is held back, so that the first piece arrives before a streamed cut."""
    storage = StoresCutPuts(streamed=streamed, from_bytes=from_bytes)
    outcome = await checks.cut_puts(storage, "probe")
    assert (outcome.ok, outcome.detail) == (False, f"cut off {where}")

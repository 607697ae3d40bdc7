"""Each check passes where a storage keeps its promise, and fails where not (SPEC 1, 8.5, 10)."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.storage.probe import key_checks, request_checks
from keyturn_workers.storage.probe.race_checks import (
    COMPLETION_ROUNDS,
    ROUNDS,
    WRITERS,
    concurrent_completions,
    concurrent_creates,
    concurrent_replaces,
)
from tests.unit.keyturn_workers.storage.probe.broken_storages import (
    EVERYTHING,
    ChecksThenStores,
    DeletesAnyway,
    HidesNames,
    IgnoresIfAbsent,
    IgnoresIfMatch,
    KeepsMetadata,
    KeysArePaths,
    ListsByPath,
    ListsFew,
    ListsLate,
    LosesParts,
    OverwritesOnFailure,
    ReadsStale,
    ResumesLate,
    ShowsDeleted,
    StoresCutPuts,
    TakesLateWrites,
)
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.core.storage_values import Condition, Lease, WriteResult
    from keyturn_workers.storage.probe.protocol import Outcome

    Check = Callable[[Any, str], Awaitable[Outcome]]

REQUEST_CHECKS: dict[str, Check] = {
    name: check
    for name, check in vars(request_checks).items()
    if inspect.iscoroutinefunction(check) and not name.startswith("_")
}
"""Each check is called with a storage and a key."""
KEY_CHECKS: list[Check] = [
    key_checks.backslashes,
    key_checks.empty_segments,
    key_checks.beside_folder,
    key_checks.long_segment,
    key_checks.hidden_names,
]


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


@pytest.mark.parametrize("name", REQUEST_CHECKS)
async def test_a_check_passes_where_the_storage_does_everything(name: str) -> None:
    outcome = await REQUEST_CHECKS[name](MemoryStorage(capabilities=EVERYTHING), "probe")
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
            await REQUEST_CHECKS[name](storage(), "probe")
        return
    outcome = await REQUEST_CHECKS[name](storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, detail)


async def test_each_check_writes_below_its_own_key_alone() -> None:
    for name, check in REQUEST_CHECKS.items():
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
    outcome = await request_checks.cut_puts(storage, "probe")
    assert (outcome.ok, outcome.detail) == (False, f"cut off {where}")


@pytest.mark.parametrize(
    ("check", "rounds"),
    [
        (concurrent_creates, ROUNDS),
        (concurrent_replaces, ROUNDS),
        (concurrent_completions, COMPLETION_ROUNDS),
    ],
)
async def test_one_writer_in_each_round_is_what_a_storage_promises(
    check: Check, rounds: int
) -> None:
    outcome = await check(MemoryStorage(capabilities=EVERYTHING), "probe")
    assert outcome.ok
    assert outcome.detail == f"one of {WRITERS} stored, {rounds} rounds"


@pytest.mark.parametrize(
    ("check", "storage", "detail"),
    [
        (concurrent_creates, IgnoresIfAbsent, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_creates, ChecksThenStores, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_creates, OverwritesOnFailure, "the stored body is not the winner's"),
        (concurrent_replaces, IgnoresIfMatch, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_replaces, ChecksThenStores, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_replaces, OverwritesOnFailure, "the stored body is not the winner's"),
        (
            concurrent_completions,
            lambda: MemoryStorage(capabilities=Capabilities()),
            f"{WRITERS} of {WRITERS} writers succeeded",
        ),
    ],
)
async def test_a_race_that_two_win_or_a_loser_overwrites_is_found(
    check: Check, storage: Callable[[], MemoryStorage], detail: str
) -> None:
    outcome = await check(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, detail)


class Refusing(MemoryStorage):
    """Fails the first `failures` creates."""

    def __init__(self, failures: int, code: str = "InternalError") -> None:
        super().__init__(capabilities=EVERYTHING)
        self.failures = failures
        self.code = code

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError(f"put: {self.code}")
        return await super().put(key, body, headers, condition=condition, lease=lease)


async def test_a_round_in_which_every_writer_failed_decides_nothing() -> None:
    """It is repeated; a storage that hardly ever decides fails the check."""
    assert (await concurrent_creates(Refusing(3 * WRITERS), "probe")).ok
    outcome = await concurrent_creates(Refusing(9 * WRITERS), "probe")
    assert (outcome.ok, outcome.detail) == (False, "hardly any writer succeeded")
    assert outcome.undecided


class RefusingAll(MemoryStorage):
    """Refuses every conditional put, as if the condition did not hold."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        if condition is not None:
            raise PreconditionError("put: PreconditionFailed")
        return await super().put(key, body, headers, lease=lease)


@pytest.mark.parametrize("storage", [lambda: Refusing(99 * WRITERS, "NotImplemented"), RefusingAll])
async def test_a_storage_that_refuses_every_writer_fails_the_check(
    storage: Callable[[], MemoryStorage],
) -> None:
    """Another attempt would fail in the same way."""
    outcome = await concurrent_creates(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, "hardly any writer succeeded")
    assert not outcome.undecided


@pytest.mark.parametrize("check", KEY_CHECKS, ids=lambda check: check.__name__)
async def test_keys_that_are_only_bytes_pass(check: Check) -> None:
    storage = MemoryStorage()
    outcome = await check(storage, "probe")
    assert outcome.ok
    assert outcome.detail
    assert all(key.startswith("probe") for key in storage.stored_keys())


@pytest.mark.parametrize(
    ("check", "storage", "detail"),
    [
        (key_checks.backslashes, KeysArePaths, "the same object"),
        (key_checks.empty_segments, KeysArePaths, "the same object"),
        (key_checks.beside_folder, KeysArePaths, "refused as if it existed"),
        (key_checks.hidden_names, HidesNames, "hidden: b.versions/a"),
    ],
)
async def test_keys_that_are_paths_are_found(
    check: Check, storage: type[MemoryStorage], detail: str
) -> None:
    outcome = await check(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, detail)


async def test_a_segment_that_is_no_file_name_fails_with_the_servers_error() -> None:
    with pytest.raises(StorageUnavailableError):
        await key_checks.long_segment(KeysArePaths(), "probe")


_NEITHER = "a listing does not resume after its key"


_REFUSED = "versioned, and not listed by bytes"


@pytest.mark.parametrize(
    ("storage", "ok", "detail"),
    [
        (MemoryStorage(), True, "by bytes, each page from its key on"),
        (MemoryStorage(versioned=True), True, "by bytes, each page from its key on"),
        (ListsByPath(), True, key_checks.BY_PATH),
        (ListsByPath(versioned=True), False, _REFUSED),
        (ResumesLate(), False, _NEITHER),
        (ResumesLate(versioned=True), False, _REFUSED),
        (ListsFew(), False, _NEITHER),
    ],
)
async def test_a_listing_resumes_in_one_of_two_orders(
    storage: MemoryStorage, detail: str, *, ok: bool
) -> None:
    outcome = await key_checks.resumed(storage, "probe")
    assert (outcome.ok, outcome.detail) == (ok, detail)


async def test_the_order_is_a_row_of_its_own() -> None:
    assert (await key_checks.in_byte_order(MemoryStorage(), "probe")).ok
    outcome = await key_checks.in_byte_order(ListsByPath(), "probe")
    assert (outcome.ok, outcome.detail) == (False, "by paths")

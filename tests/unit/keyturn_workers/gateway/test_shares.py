"""What one project may use of a gateway: requests, slots, staging (SPEC 9.3, 9.4)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError, TooManyRequestsError
from keyturn.identifiers import staging_s3_key
from keyturn.messages import INLINE_MAX_BYTES
from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from keyturn.publisher.requests import new_id
from keyturn_workers.core.errors import RefusedError as StorageRefusedError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.gateway import uploads
from keyturn_workers.gateway.publishing import PendingRequest, PendingRequests
from keyturn_workers.gateway.shares import (
    ConcurrencyLimit,
    GatewayBusyError,
    ProjectSlots,
    share_of,
)
from keyturn_workers.gateway.uploads import (
    MIN_STAGED_BYTES,
    StagingLedger,
    StagingQuota,
    UploadClaim,
)
from tests.unit.keyturn_workers.gateway.serving import FakePublisher
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.publisher import Publisher

# --- How much of a gateway one project may use (SPEC 9.3)


MIB = MIN_STAGED_BYTES


@pytest.mark.parametrize(
    ("total", "share", "most"),
    [(256, 0.25, 64), (8, 0.25, 2), (2, 0.25, 1), (1, 0.01, 1), (7, 1, 7)],
)
def test_a_share_is_never_less_than_one(total: int, share: float, most: int) -> None:
    assert share_of(total, share) == most


def test_a_project_at_its_share_is_refused_and_others_are_not() -> None:
    limit = ConcurrencyLimit(4, 0.5, "requests")
    with limit.hold("a"), limit.hold("a"):
        with pytest.raises(TooManyRequestsError), limit.hold("a"):
            pass
        with limit.hold("b"):
            assert limit.in_use == 3
    with limit.hold("a"):
        assert limit.in_use == 1


def test_all_are_refused_only_if_all_are_in_use() -> None:
    limit = ConcurrencyLimit(4, 0.5, "requests")
    with limit.hold("a"), limit.hold("a"), limit.hold("b"):
        with limit.hold("b"):
            for project in ("a", "c"):
                with pytest.raises(GatewayBusyError), limit.hold(project):
                    pass
        with limit.hold("c"):
            assert limit.in_use == 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_a_project_that_uses_nothing_leaves_no_entry(steps: list[tuple[str, bool]]) -> None:
    limit = ConcurrencyLimit(6, 0.5, "requests")
    held: list[tuple[str, ExitStack]] = []
    for project, takes in steps:
        own = [each for each in held if each[0] == project]
        if takes and len(own) < 3 and len(held) < 6:
            holding = ExitStack()
            holding.enter_context(limit.hold(project))
            held.append((project, holding))
        elif takes:
            with pytest.raises((TooManyRequestsError, GatewayBusyError)), limit.hold(project):
                pass
        elif own:
            held.remove(own[0])
            own[0][1].close()
        assert limit.in_use == len(held)
        assert set(limit._by_project) == {each[0] for each in held}


def _ledger(mib: int = 16, share: float = 0.25) -> StagingLedger:
    return StagingLedger(mib * MIB, share)


def test_a_project_with_its_share_in_staging_is_refused_and_others_are_not() -> None:
    ledger = _ledger()
    for name in ("1", "2", "3", "4"):
        ledger.reserve("a", name, 10)  # a small one counts as 1 MiB: their number is bounded too
    with pytest.raises(TooManyRequestsError):
        ledger.reserve("a", "5", 10)
    ledger.reserve("b", "6", 4 * MIB)
    assert ledger.used_bytes == 8 * MIB


def test_one_body_of_any_size_fits_while_there_is_room() -> None:
    ledger = _ledger()
    ledger.reserve("a", "1", 16 * MIB)
    with pytest.raises(GatewayBusyError):
        ledger.reserve("b", "2", 1)
    ledger.release("1")
    ledger.reserve("b", "2", 1)


def test_a_body_grows_until_the_share_is_reached() -> None:
    ledger = _ledger()
    ledger.reserve("a", "1", MIB)
    for size_bytes in range(MIB // 2, 3 * MIB, MIB // 2):
        ledger.reserve("a", "2", size_bytes)
    ledger.reserve("a", "2", 3 * MIB)
    assert ledger.used_bytes == 4 * MIB
    with pytest.raises(TooManyRequestsError):
        ledger.reserve("a", "2", 3 * MIB + 1)
    assert ledger.used_bytes == 4 * MIB  # what was refused is not counted
    ledger.release("2")
    assert ledger.used_bytes == MIB


def test_a_later_listing_shows_what_has_left_staging() -> None:
    ledger = _ledger()
    for name in ("coming", "late", "stored", "left"):
        ledger.reserve("a", name, MIB)
    ledger.complete("stored", 1.0)
    ledger.complete("left", 1.0)
    ledger.complete("late", 2.0)
    # A body that was complete only when the listing was sent may be missing from it.
    ledger.apply_listing(2.0, {"left": MIB})
    assert set(ledger._staged) == {"coming", "late", "left"}
    assert ledger.used_bytes == 3 * MIB
    ledger.reserve("a", "room again", MIB)


def test_bodies_of_other_gateways_count_toward_the_total_only() -> None:
    ledger = _ledger(mib=8, share=0.5)
    ledger.apply_listing(1.0, {"theirs": 3 * MIB, "small": 1})
    assert ledger.used_bytes == 4 * MIB
    ledger.reserve("a", "1", 4 * MIB)
    with pytest.raises(GatewayBusyError):
        ledger.reserve("b", "2", 1)
    ledger.apply_listing(2.0, {})
    ledger.reserve("b", "2", 1)


def test_nothing_is_kept_of_a_body_that_left_staging() -> None:
    ledger = _ledger(mib=1000)
    for number in range(100):
        ledger.reserve(f"project-{number}", str(number), number * 100_000)
        ledger.complete(str(number), 1.0)
    ledger.apply_listing(2.0, {})
    ledger.release("unknown")
    ledger.complete("unknown", 3.0)
    assert (ledger._staged, ledger._by_project, ledger.used_bytes) == ({}, {}, 0)


# Slots that callers wait for.


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_two_projects_leave_slots_for_a_third() -> None:
    """Two tenants with four slow bodies each used all eight slots."""
    slots, leave = ProjectSlots(8, 0.25, "uploads", wait_s=30), asyncio.Event()
    taken: list[str] = []

    async def take(project: str) -> None:
        async with slots.hold(project):
            taken.append(project)
            await leave.wait()

    tasks = [asyncio.create_task(take(project)) for project in "aaaabbbb"]
    await _settle()
    assert sorted(taken) == ["a", "a", "b", "b"]
    async with asyncio.timeout(1), slots.hold("c"):
        pass
    leave.set()
    await asyncio.gather(*tasks)
    assert not slots._projects


async def test_those_who_wait_for_a_slot_are_limited_for_each_project() -> None:
    slots, leave = ProjectSlots(4, 0.25, "uploads", wait_s=5), asyncio.Event()

    async def take() -> None:
        async with slots.hold("a"):
            await leave.wait()

    tasks = [asyncio.create_task(take()) for _ in range(5)]
    await _settle()
    with pytest.raises(TooManyRequestsError, match="the project has 5 uploads in progress"):
        await take()
    async with slots.hold("b"):  # and delays no other project
        pass
    leave.set()
    await asyncio.gather(*tasks)


async def test_a_timeout_reports_whose_slots_are_in_use() -> None:
    slots = ProjectSlots(2, 0.5, "uploads", wait_s=0.02)
    async with slots.hold("a"):
        with pytest.raises(TooManyRequestsError):
            async with slots.hold("a"):
                pass
        async with slots.hold("b"):
            with pytest.raises(GatewayBusyError):
                async with slots.hold("c"):
                    pass
    assert not slots._projects


# --- What one project may have in staging, with few listings (SPEC 9.3)


def _quota(storage: MemoryStorage, mib: int = 4) -> StagingQuota:
    return StagingQuota(storage, "gateway", StagingLedger(mib * MIB, 0.5))


async def test_bodies_from_before_the_start_count_toward_the_total() -> None:
    storage = MemoryStorage()
    storage.plant(staging_s3_key("gateway", "old"), bytes(3 * MIB), Headers({}))
    storage.plant(staging_s3_key("other", "theirs"), bytes(9 * MIB), Headers({}))
    quota = _quota(storage)
    await quota.reserve("a", "1", MIB)
    with pytest.raises(GatewayBusyError):
        await quota.reserve("b", "2", MIB)


async def test_refused_uploads_share_listings_with_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood of bodies beyond a share does not become a flood of listings."""
    monkeypatch.setattr(uploads, "_LISTING_MIN_PAUSE_S", 60.0)
    storage = MemoryStorage()
    quota = _quota(storage)
    for number in range(2):
        await quota.reserve("a", f"{number}", MIB)
    refused = [quota.reserve("a", f"more-{number}", MIB) for number in range(200)]
    results = await asyncio.gather(*refused, return_exceptions=True)
    assert {type(result) for result in results} == {TooManyRequestsError}
    assert storage.calls["list"] == 1


async def test_a_failed_listing_of_staging_is_transient() -> None:
    storage = MemoryStorage()
    storage.fail_next("list", StorageRefusedError("AccessDenied"))
    with pytest.raises(StorageUnavailableError):
        await _quota(storage).reserve("a", "1", MIB)


# --- What an upload needs, by the size of its body: its request, a slot, staging (SPEC 9.3, 9.4)


_LARGE = INLINE_MAX_BYTES + 1


@pytest.fixture
def pending() -> PendingRequests:
    return PendingRequests(
        cast("Publisher", FakePublisher()),
        "upload.requested",
        noun="uploads pending",
        per_project=10,
        total=10,
        outcome_wait_s=600,
        project_bytes=INLINE_MAX_BYTES,
    )


Claiming = Callable[[PendingRequest], UploadClaim]


@pytest.fixture
def ledger() -> StagingLedger:
    return StagingLedger(2**30, 1.0)


@pytest.fixture
def claiming(ledger: StagingLedger) -> Claiming:
    slots = ProjectSlots(4, 1.0, "uploads", wait_s=30)
    quota = StagingQuota(MemoryStorage(), "gateway", ledger)
    return lambda pending: UploadClaim(pending, slots, quota)


async def test_an_inline_body_counts_with_its_request(
    claiming: Claiming, pending: PendingRequests, ledger: StagingLedger
) -> None:
    with pending.hold("a", new_id()) as first, pending.hold("a", new_id()) as second:
        async with claiming(first) as claim, claiming(second) as other:
            await claim.grow(INLINE_MAX_BYTES)
            with pytest.raises(TooManyRequestsError):
                await other.grow(1)
        assert (first.size_bytes, ledger.used_bytes) == (INLINE_MAX_BYTES, 0)


async def test_a_body_that_outgrows_its_request_counts_in_staging(
    claiming: Claiming, pending: PendingRequests, ledger: StagingLedger
) -> None:
    with pending.hold("a", new_id()) as request:
        async with claiming(request) as claim:
            for size_bytes in (1000, INLINE_MAX_BYTES, _LARGE):
                await claim.grow(size_bytes)
            assert (request.size_bytes, ledger.used_bytes) == (0, MIN_STAGED_BYTES)


@pytest.mark.parametrize(
    ("error", "left"), [(NotDeliveredError("no"), 0), (OutcomeUnknownError("?"), MIN_STAGED_BYTES)]
)
async def test_what_may_have_been_published_stays_in_staging(
    claiming: Claiming,
    pending: PendingRequests,
    ledger: StagingLedger,
    error: Exception,
    left: int,
) -> None:
    async def publish() -> None:
        with pending.hold("a", new_id()) as request:
            async with claiming(request) as claim:
                await claim.grow(_LARGE)
                raise error

    with pytest.raises(type(error)):
        await publish()
    assert ledger.used_bytes == left

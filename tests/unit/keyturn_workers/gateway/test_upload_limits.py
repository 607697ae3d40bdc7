"""Places for larger bodies, and looks at staging that are few (SPEC 9.3)."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.errors import StorageUnavailableError, TooManyRequestsError
from keyturn.identifiers import staging_s3_key
from keyturn_workers.errors import RefusedError as StorageRefusedError
from keyturn_workers.gateway import staging_quota, upload_limits
from keyturn_workers.gateway.fair_shares import MIN_STAGED_BYTES, GatewayBusyError, StagingLedger
from keyturn_workers.gateway.staging_quota import StagingQuota
from keyturn_workers.gateway.upload_limits import UploadSlots
from keyturn_workers.storage import Headers
from keyturn_workers.testing.memory_storage import MemoryStorage

MIB = MIN_STAGED_BYTES


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_two_projects_leave_places_for_a_third() -> None:
    """Two tenants with four slow bodies each had all eight places, and nobody else had one."""
    places, leave = UploadSlots(8, 0.25), asyncio.Event()
    taken: list[str] = []

    async def take(project: str) -> None:
        async with places.hold(project):
            taken.append(project)
            await leave.wait()

    tasks = [asyncio.create_task(take(project)) for project in "aaaabbbb"]
    await _settle()
    assert sorted(taken) == ["a", "a", "b", "b"]
    async with asyncio.timeout(1), places.hold("c"):
        pass
    leave.set()
    await asyncio.gather(*tasks)
    assert not places._projects


async def test_those_that_wait_are_bounded_by_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_limits, "SLOT_WAIT_S", 5)
    places, leave = UploadSlots(4, 0.25), asyncio.Event()

    async def take() -> None:
        async with places.hold("a"):
            await leave.wait()

    tasks = [asyncio.create_task(take()) for _ in range(5)]
    await _settle()
    with pytest.raises(TooManyRequestsError):
        await take()
    async with places.hold("b"):  # and waits in nobody's way
        pass
    leave.set()
    await asyncio.gather(*tasks)


async def test_who_waits_too_long_learns_whose_places_were_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_limits, "SLOT_WAIT_S", 0.02)
    places = UploadSlots(2, 0.5)
    async with places.hold("a"):
        with pytest.raises(TooManyRequestsError):
            async with places.hold("a"):
                pass
        async with places.hold("b"):
            with pytest.raises(GatewayBusyError):
                async with places.hold("c"):
                    pass
    assert not places._projects


def _staged(storage: MemoryStorage, mib: int = 4) -> StagingQuota:
    return StagingQuota(storage, "gateway", StagingLedger(mib * MIB, 0.5))


async def test_what_was_there_before_the_start_counts_towards_the_total() -> None:
    storage = MemoryStorage()
    storage.plant(staging_s3_key("gateway", "old"), bytes(3 * MIB), Headers({}))
    storage.plant(staging_s3_key("other", "theirs"), bytes(9 * MIB), Headers({}))
    staged = _staged(storage)
    await staged.reserve("a", "1", MIB)
    with pytest.raises(GatewayBusyError):
        await staged.reserve("b", "2", MIB)


async def test_refusals_share_looks_with_a_pause_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood of bodies beyond a share does not become a flood of listings."""
    monkeypatch.setattr(staging_quota, "_LISTING_MIN_PAUSE_S", 60.0)
    storage = MemoryStorage()
    staged = _staged(storage)
    for number in range(2):
        await staged.reserve("a", f"{number}", MIB)
    refused = [staged.reserve("a", f"more-{number}", MIB) for number in range(200)]
    results = await asyncio.gather(*refused, return_exceptions=True)
    assert {type(result) for result in results} == {TooManyRequestsError}
    assert storage.calls["list"] == 1


async def test_a_staging_that_cannot_be_listed_is_for_later() -> None:
    storage = MemoryStorage()
    storage.fail_next("list", StorageRefusedError("AccessDenied"))
    with pytest.raises(StorageUnavailableError):
        await _staged(storage).reserve("a", "1", MIB)

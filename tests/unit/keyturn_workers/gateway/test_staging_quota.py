"""What one project may have in staging, with few listings (SPEC 9.3)."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.errors import StorageUnavailableError, TooManyRequestsError
from keyturn.identifiers import staging_s3_key
from keyturn_workers.errors import RefusedError as StorageRefusedError
from keyturn_workers.gateway import uploads
from keyturn_workers.gateway.shares import GatewayBusyError
from keyturn_workers.gateway.uploads import MIN_STAGED_BYTES, StagingLedger, StagingQuota
from keyturn_workers.storage import Headers
from tools.harness.memory_storage import MemoryStorage

MIB = MIN_STAGED_BYTES


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

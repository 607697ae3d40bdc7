"""What an upload needs, by the size of its body: its request, a slot, staging (SPEC 9.3, 9.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from keyturn.errors import TooManyRequestsError
from keyturn.messages import INLINE_MAX_BYTES
from keyturn.publisher import NotDeliveredError, OutcomeUnknownError
from keyturn.publisher.requests import new_id
from keyturn_workers.gateway.publishing import PendingRequests
from keyturn_workers.gateway.shares import ProjectSlots
from keyturn_workers.gateway.uploads import (
    MIN_STAGED_BYTES,
    StagingLedger,
    StagingQuota,
    UploadLimits,
)
from tests.unit.keyturn_workers.gateway.publishing import FakePublisher
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.publisher import Publisher

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


@pytest.fixture
def ledger() -> StagingLedger:
    return StagingLedger(2**30, 1.0)


@pytest.fixture
def limits(ledger: StagingLedger) -> UploadLimits:
    slots = ProjectSlots(4, 1.0, "uploads", wait_s=30)
    return UploadLimits(slots, StagingQuota(MemoryStorage(), "gateway", ledger))


async def test_an_inline_body_counts_with_its_request(
    limits: UploadLimits, pending: PendingRequests, ledger: StagingLedger
) -> None:
    with pending.hold("a", new_id()) as first, pending.hold("a", new_id()) as second:
        async with limits.hold(first) as claim, limits.hold(second) as other:
            await claim.grow(INLINE_MAX_BYTES)
            with pytest.raises(TooManyRequestsError):
                await other.grow(1)
        assert (first.size_bytes, ledger.used_bytes) == (INLINE_MAX_BYTES, 0)


async def test_a_body_that_outgrows_its_request_counts_in_staging(
    limits: UploadLimits, pending: PendingRequests, ledger: StagingLedger
) -> None:
    with pending.hold("a", new_id()) as request:
        async with limits.hold(request) as claim:
            for size_bytes in (1000, INLINE_MAX_BYTES, _LARGE):
                await claim.grow(size_bytes)
            assert (request.size_bytes, ledger.used_bytes) == (0, MIN_STAGED_BYTES)


@pytest.mark.parametrize(
    ("error", "left"), [(NotDeliveredError("no"), 0), (OutcomeUnknownError("?"), MIN_STAGED_BYTES)]
)
async def test_what_may_have_been_published_stays_in_staging(
    limits: UploadLimits,
    pending: PendingRequests,
    ledger: StagingLedger,
    error: Exception,
    left: int,
) -> None:
    async def publish() -> None:
        with pending.hold("a", new_id()) as request:
            async with limits.hold(request) as claim:
                await claim.grow(_LARGE)
                raise error

    with pytest.raises(type(error)):
        await publish()
    assert ledger.used_bytes == left

"""The order of listings, and where they resume (SPEC 8.5, 10)."""

from __future__ import annotations

import pytest

from keyturn_workers.storage.probe.listing_checks import BY_SEGMENT, byte_order, resumed
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.storage.probe.broken_storages import (
    ListsBySegment,
    ListsFew,
    ListsVersionsBySegment,
    ResumesLate,
)


@pytest.mark.parametrize(
    ("storage", "ok", "detail"),
    [
        (MemoryStorage, True, "by bytes, each page from its key on"),
        (ListsBySegment, True, BY_SEGMENT),
        (ListsVersionsBySegment, True, BY_SEGMENT),
        (ResumesLate, False, "a listing does not resume after its key"),
        (ListsFew, False, "a listing misses keys"),
    ],
)
async def test_a_listing_resumes_in_one_of_two_orders(
    storage: type[MemoryStorage], detail: str, *, ok: bool
) -> None:
    outcome = await resumed(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (ok, detail)


@pytest.mark.parametrize(
    ("storage", "ok", "detail"),
    [(MemoryStorage, True, "in byte order"), (ListsBySegment, False, "by segments")],
)
async def test_the_order_is_a_row_of_its_own(
    storage: type[MemoryStorage], detail: str, *, ok: bool
) -> None:
    outcome = await byte_order(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (ok, detail)

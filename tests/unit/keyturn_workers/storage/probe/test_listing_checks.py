"""The order of listings, and where they resume (SPEC 8.5, 10)."""

from __future__ import annotations

import pytest

from keyturn_workers.storage.probe.listing_checks import BY_PATH, in_byte_order, resumed
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.storage.probe.broken_storages import (
    ListsByPath,
    ListsFew,
    ResumesLate,
)

_NEITHER = "a listing does not resume after its key"
_REFUSED = "versioned, and not listed by bytes"


@pytest.mark.parametrize(
    ("storage", "ok", "detail"),
    [
        (MemoryStorage(), True, "by bytes, each page from its key on"),
        (MemoryStorage(versioned=True), True, "by bytes, each page from its key on"),
        (ListsByPath(), True, BY_PATH),
        (ListsByPath(versioned=True), False, _REFUSED),
        (ResumesLate(), False, _NEITHER),
        (ResumesLate(versioned=True), False, _REFUSED),
        (ListsFew(), False, _NEITHER),
    ],
)
async def test_a_listing_resumes_in_one_of_two_orders(
    storage: MemoryStorage, detail: str, *, ok: bool
) -> None:
    outcome = await resumed(storage, "probe")
    assert (outcome.ok, outcome.detail) == (ok, detail)


async def test_the_order_is_a_row_of_its_own() -> None:
    assert (await in_byte_order(MemoryStorage(), "probe")).ok
    outcome = await in_byte_order(ListsByPath(), "probe")
    assert (outcome.ok, outcome.detail) == (False, "by paths")

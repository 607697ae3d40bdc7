"""A put that is cut off stores nothing, in each form that Keyturn sends (SPEC 10)."""

from __future__ import annotations

import pytest

from keyturn_workers.storage.probe.cut_checks import cut_puts
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.storage.probe.broken_storages import StoresCutPuts


async def test_nothing_is_stored() -> None:
    outcome = await cut_puts(MemoryStorage(), "probe")
    assert outcome.ok
    assert outcome.detail == "nothing stored, cut before and within the body"


@pytest.mark.parametrize(
    ("streamed", "from_bytes", "where"),
    [
        (False, 0, "before its body: 0 bytes stored"),
        (False, 1, "within its body: 32768 bytes stored"),
        (True, 0, "before its body, streamed: 32768 bytes stored"),
        (True, 40_000, "within its body, streamed: 65536 bytes stored"),
    ],
)
async def test_what_is_stored_is_found(where: str, from_bytes: int, *, streamed: bool) -> None:
    """In memory nothing is held back, so that the first piece arrives before a streamed cut."""
    storage = StoresCutPuts(streamed=streamed, from_bytes=from_bytes)
    outcome = await cut_puts(storage, "probe")
    assert (outcome.ok, outcome.detail) == (False, f"cut off {where}")

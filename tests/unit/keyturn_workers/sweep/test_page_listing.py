"""The object keys of a page (SPEC 8.5, 8.6)."""

from __future__ import annotations

import pytest

from keyturn_workers.storage import Headers
from keyturn_workers.sweep.page_listing import Row, list_batches
from tools.harness.memory_storage import MemoryStorage


async def _rows(
    storage: MemoryStorage, after: str, last: str, *, versioned: bool, size: int = 2
) -> list[Row]:
    rows: list[Row] = []
    async for batch in list_batches(storage, "acme", after, last, versioned=versioned, size=size):
        assert 0 < len(batch) <= size
        rows += batch
    return rows


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize(
    ("after", "last", "keys"),
    [("", "", "abcde"), ("a", "d", "bcd"), ("e", "", ""), ("c", "", "de")],
)
async def test_a_page_begins_after_its_first_edge_and_includes_the_last(
    after: str, last: str, keys: str, *, versioned: bool
) -> None:
    storage = MemoryStorage(versioned=versioned)
    for key in "abcde":
        storage.plant(f"acme/{key}", b"", Headers({}))
    storage.plant("acme-2/z", b"", Headers({}))
    rows = await _rows(storage, after, last, versioned=versioned)
    assert [row.key for row in rows] == list(keys)
    assert all(row.exists and not row.noncurrent for row in rows)


async def test_each_key_comes_with_its_noncurrent_versions() -> None:
    storage = MemoryStorage(versioned=True)
    for key in ("a", "a", "a", "b"):
        storage.plant(f"acme/{key}", b"", Headers({}))
    await storage.delete("acme/b")
    one, other = await _rows(storage, "", "", versioned=True)
    assert (one.key, one.exists, len(one.noncurrent)) == ("a", True, 2)
    # The delete marker is the newest version, and no version to remove.
    assert (other.key, other.exists, len(other.noncurrent)) == ("b", False, 1)

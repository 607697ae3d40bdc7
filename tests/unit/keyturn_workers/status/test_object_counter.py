"""Objects are counted some listings at a time, so that no report takes long (SPEC 16.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyturn_workers.status import object_counter
from keyturn_workers.status.object_counter import ObjectCounter
from keyturn_workers.storage import Headers
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    import pytest


def _bucket(count: int) -> MemoryStorage:
    storage = MemoryStorage()
    storage.page_keys = 10
    for number in range(count):
        storage.plant(f"acme/{number:04}", b"", Headers({}))
    storage.plant("acme-2/a", b"", Headers({}))
    return storage


async def test_a_large_project_is_counted_over_several_reports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_counter, "_LISTINGS_AT_ONCE", 2)
    storage = _bucket(45)
    counter = ObjectCounter(storage)
    assert [await counter.count("acme") for _ in range(3)] == [None, None, 45]
    listings = storage.calls["list_entries"]
    assert await counter.count("acme") == 45
    assert storage.calls["list_entries"] == listings == 5


async def test_a_count_that_is_old_is_made_anew_and_shown_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(object_counter, "_LISTINGS_AT_ONCE", 1)
    storage, now = _bucket(11), [0.0]
    counter = ObjectCounter(storage, lambda: now[0])
    assert [await counter.count("acme") for _ in range(2)] == [None, 11]
    storage.plant("acme/new", b"", Headers({}))
    now[0] = 1000.0
    assert [await counter.count("acme") for _ in range(2)] == [11, 12]


async def test_an_empty_project_has_no_objects() -> None:
    assert await ObjectCounter(_bucket(0)).count("acme") == 0


async def test_only_the_last_projects_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_counter, "_MAX_PROJECTS", 1)
    storage = _bucket(1)
    counter = ObjectCounter(storage)
    for project in ("acme", "acme-2", "acme"):
        assert await counter.count(project) == 1
    assert storage.calls["list_entries"] == 3

"""Tags that dead workers left noted are put back (SPEC 8.2)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from keyturn_workers.storage import Headers
from keyturn_workers.sweep.page_tags import restore_noted_tags, restore_page_tags
from keyturn_workers.sweep.plan import OpenPage, Plan, State, SweepRequest
from keyturn_workers.sweep.sweep_store import SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tools.harness.local_keys import operator_keys

NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
STATE: Final = State(1, "9f86d081884c7d65", "m1", plaintext=False, etag="e")
REQUEST: Final = SweepRequest("sweep", "2f6c9a0e-1111-4111-8111-111111111111", "acme", "")
PLAN: Final = Plan(REQUEST, STATE, NOW, NOW)
PAGE: Final = OpenPage(page=3, after="", last="")
TAGS: Final = {"team": "legal"}


async def _noted(plan: Plan = PLAN) -> tuple[MemoryStorage, SweepStore]:
    """An object that lost its tags, one that is gone, and a note of both."""
    storage = MemoryStorage()
    store = SweepStore(storage, operator_keys(MASTER_KEYS))
    storage.plant("acme/a", b"", Headers({}))
    await store.add_tag_note(plan, PAGE, {"a": TAGS, "gone": TAGS}, "m1")
    return storage, store


async def _notes(store: SweepStore) -> list[str]:
    return [path async for path, _ in store.tag_notes(PLAN)]


async def test_noted_tags_of_every_round_are_put_back_and_their_notes_deleted() -> None:
    storage, store = await _noted()
    await restore_noted_tags(storage, store, replace(PLAN, round=7))
    assert await storage.read_tags("acme/a") == TAGS
    assert await _notes(store) == []


async def test_tags_that_an_object_has_are_not_replaced() -> None:
    storage, store = await _noted()
    await storage.write_tags("acme/a", {"team": "sales"})
    await restore_noted_tags(storage, store, PLAN)
    assert await storage.read_tags("acme/a") == {"team": "sales"}


async def test_a_deleted_object_gets_no_tags() -> None:
    storage, store = await _noted()
    storage.plant("acme/a", b"", Headers({"enc-algo": "deleted"}))
    await restore_noted_tags(storage, store, PLAN)
    assert await storage.read_tags("acme/a") == {}


async def test_the_note_of_a_page_is_kept_while_its_sweep_runs() -> None:
    storage, store = await _noted()
    await restore_page_tags(storage, store, PLAN, 0, 3)
    assert await storage.read_tags("acme/a") == TAGS
    assert len(await _notes(store)) == 1
    await restore_page_tags(storage, store, replace(PLAN, status="done"), 0, 3)
    assert await _notes(store) == []


async def test_only_the_notes_of_the_named_page_count() -> None:
    storage, store = await _noted()
    await restore_page_tags(storage, store, PLAN, 1, 3)
    await restore_page_tags(storage, store, PLAN, 0, 4)
    assert await storage.read_tags("acme/a") == {}

"""A fresh key is published once, by its own session, and held for a bounded time."""

from __future__ import annotations

import asyncio

from keyturn.crypto import check_api_key
from keyturn_workers.console.actions.fresh_keys import FreshKeys


async def test_a_key_is_taken_once_by_its_own_session() -> None:
    keys = FreshKeys()
    fresh = keys.make("s1", "acme", 3)
    check_api_key(fresh.api_key.get_secret_value())
    assert fresh.api_key.get_secret_value() not in repr(fresh)
    assert keys.take(fresh.rotation_id, "s2") is None
    assert keys.take(fresh.rotation_id, "s1") == fresh
    assert keys.take(fresh.rotation_id, "s1") is None


async def test_only_the_key_that_was_shown_last_can_be_published() -> None:
    keys = FreshKeys()
    first, elsewhere, other = (
        keys.make("s1", "acme", 3),
        keys.make("s2", "acme", 3),
        keys.make("s1", "zoo", 1),
    )
    second = keys.make("s1", "acme", 3)
    assert keys.find(first.rotation_id, "s1") is None
    assert second.api_key != first.api_key
    assert keys.find(second.rotation_id, "s1") == second
    assert keys.find(elsewhere.rotation_id, "s2") == elsewhere
    assert keys.find(other.rotation_id, "s1") == other


async def test_a_key_expires() -> None:
    keys = FreshKeys(life_s=0.01)
    fresh = keys.make("s1", "acme", 3)
    await asyncio.sleep(0.03)
    assert keys.find(fresh.rotation_id, "s1") is None


async def test_memory_is_bounded() -> None:
    keys = FreshKeys(max_held=2)
    made = [keys.make("s1", f"p{number}", 1) for number in range(3)]
    held = [one for one in made if keys.find(one.rotation_id, "s1") is not None]
    assert held == made[1:]

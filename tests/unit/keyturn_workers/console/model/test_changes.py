"""Subscribers get the topics that changed, all at once, whatever their pace."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from keyturn_workers.console.model.changes import Changes


async def test_a_slow_subscriber_gets_all_topics_at_once() -> None:
    changes = Changes()
    async with aclosing(changes.subscribe()) as topics:
        waiting = asyncio.ensure_future(anext(topics))
        await asyncio.sleep(0)
        changes.publish("sweeps")
        changes.publish("projects", "sweeps")
        assert await waiting == {"sweeps", "projects", "now"}


async def test_a_subscriber_that_left_is_forgotten() -> None:
    changes = Changes()
    topics = changes.subscribe()
    waiting = asyncio.ensure_future(anext(topics))
    await asyncio.sleep(0)
    assert changes.subscribers == 1
    changes.publish("audit")
    await waiting
    await topics.aclose()
    assert changes.subscribers == 0


def test_each_change_has_a_version() -> None:
    changes = Changes()
    changes.publish()
    changes.publish("dead")
    assert changes.version == 2


def test_what_changed_since_a_version_is_known_by_topic() -> None:
    changes = Changes()
    changes.publish("audit")
    seen = changes.version
    changes.publish("dead")
    assert changes.has_changed_since(seen, frozenset({"dead", "audit"}))
    assert changes.has_changed_since(seen, frozenset({"now"}))
    assert not changes.has_changed_since(seen, frozenset({"audit", "sweeps"}))
